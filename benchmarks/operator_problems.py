"""Every operator with Triton kernels as a small problem: a function of drawn tensors, with outputs and gradients."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.block_diagonal import block_diagonal
from kernels.causal_conv import causal_conv_silu
from kernels.dispatch import Implementation
from kernels.gated_head_norm import gated_head_norm
from kernels.gated_linear_attention import gated_linear_attention
from kernels.linear_cross_entropy import linear_cross_entropy
from kernels.linear_recurrence import linear_recurrence
from kernels.mlstm import mlstm
from kernels.mlstm_inputs import mlstm_inputs
from kernels.rms_norm import rms_norm
from kernels.rotary import rotary
from kernels.selective_scan import selective_scan
from kernels.slstm import slstm
from kernels.squared_relu import squared_relu
from kernels.swiglu import swiglu
from kernels.token_shift import token_shift
from kernels.wkv import wkv


@dataclass(frozen=True)
class Run:
    """Where the rows are measured, and for how long."""

    device: str
    deadline: float
    rounds: int

    @property
    def dry(self) -> bool:
        return self.device == "cpu"

    def normal(self, *shape: int, seed: int = 0) -> Tensor:
        """Drawn on the CPU in float32, the same on every chip."""
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(self.device)


@dataclass(frozen=True)
class Problem:
    """An operator as a function of tensors and an implementation, with tensors for it."""

    name: str
    function: Callable[..., Any]
    tensors: list[Tensor]

    def passes(self, implementation: Implementation, dtype: torch.dtype) -> list[Tensor]:
        """Outputs, and gradients of everything for drawn ones; inputs are rounded to bfloat16 whatever the dtype."""
        inputs = [t.bfloat16().to(dtype).requires_grad_() for t in self.tensors]
        outputs = self.function(*inputs, implementation=implementation)
        outputs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
        generator = torch.Generator(inputs[0].device).manual_seed(1)
        drawn = [torch.randn(y.shape, generator=generator, device=y.device).bfloat16().to(y.dtype) for y in outputs]
        return [*(y.detach() for y in outputs), *torch.autograd.grad(outputs, inputs, drawn)]


def problems(run: Run) -> list[Problem]:
    """Every operator with Triton kernels: lengths that fill no tile, and states that are reset."""
    batch, length, width, head = (1, 37, 32, 16) if run.dry else (2, 1000, 1024, 256)
    normal = run.normal
    resets = normal(batch, length, seed=9) > 2.0
    pair = [normal(batch, length, width, seed=seed) for seed in (0, 1)]
    targets = torch.arange(length, device=run.device).expand(batch, -1) % 256

    def of_mlstm(q: Tensor, k: Tensor, v: Tensor, gates: Tensor, implementation: Implementation) -> Tensor:
        i, f = gates.float().unbind(-1)
        return mlstm(q, k, v, i, f + 3, resets=resets, implementation=implementation)[0]

    def of_scan(u: Tensor, d: Tensor, a: Tensor, b: Tensor, c: Tensor, implementation: Implementation) -> Tensor:
        delta = torch.nn.functional.softplus(d)
        return selective_scan(u, delta, -a.exp(), b, c, resets=resets, implementation=implementation)[0]

    def of_wkv(k: Tensor, v: Tensor, w: Tensor, u: Tensor, implementation: Implementation) -> Tensor:
        return wkv(k, v, -w.exp(), u, resets=resets, implementation=implementation)[0]

    def of_memory(
        q: Tensor, k: Tensor, v: Tensor, g: Tensor, bonus: Tensor, implementation: Implementation
    ) -> tuple[Tensor, ...]:
        return gated_linear_attention(
            q, k, v, -g.float().exp(), bonus=bonus, resets=resets, implementation=implementation
        )

    def of_recurrence(x: Tensor, g: Tensor, implementation: Implementation) -> Tensor:
        return linear_recurrence(x, -g.float().exp(), resets=resets, implementation=implementation)

    def of_norm(h: Tensor, weight: Tensor, gate: Tensor, implementation: Implementation) -> Tensor:
        return gated_head_norm(h, weight, gate, implementation=implementation)

    def of_rotary(q: Tensor, k: Tensor, implementation: Implementation) -> tuple[Tensor, ...]:
        angles = torch.arange(length, device=run.device)[:, None] / torch.arange(1.0, head // 2 + 1, device=run.device)
        of = angles.to(torch.promote_types(q.dtype, torch.float32))
        return rotary(q, k, of.cos(), of.sin(), implementation=implementation)

    def with_resets(function: Callable[..., Any], first: bool = True) -> Callable[..., Any]:
        def call(*tensors: Tensor, implementation: Implementation) -> Any:
            result = function(*tensors, resets=resets, implementation=implementation)
            return result[0] if first else result

        return call

    made = [
        Problem(
            f"mlstm {dims}",
            of_mlstm,
            [normal(batch, 2, length, dim, seed=seed) for seed, dim in enumerate((dims[0], dims[0], dims[1]))]
            + [normal(batch, 2, length, 2, seed=3)],
        )
        for dims in ([(16, 16)] if run.dry else [(128, 256), (384, 384), (1024, 1024)])
    ]
    return [
        *made,
        Problem(
            "causal_conv_silu",
            with_resets(causal_conv_silu),
            [pair[0], normal(width, 4, seed=2), normal(width, seed=3)],
        ),
        Problem("block_diagonal", block_diagonal, [pair[0], normal(width // 4, 4, 4, seed=2)]),
        Problem(
            "mlstm_inputs",
            mlstm_inputs,
            [
                *(*pair, *(normal(width // 4, 4, 4, seed=seed) for seed in (2, 3, 4))),
                *(normal(8, 3 * width, seed=5) / width**0.5, normal(8, seed=6)),
            ],
        ),
        Problem(
            "gated_head_norm",
            of_norm,
            [normal(batch, length, width // head, head), normal(width, seed=2), pair[1]],
        ),
        Problem("rms_norm", rms_norm, [pair[0], normal(width, seed=2)]),
        Problem("rotary", of_rotary, [x.unflatten(-1, (-1, head)) for x in pair]),
        Problem("swiglu", swiglu, pair),
        Problem("squared_relu", squared_relu, pair[:1]),
        Problem("token_shift", with_resets(token_shift, first=False), [pair[0], normal(3, width, seed=2)]),
        Problem(
            "linear_cross_entropy",
            lambda hidden, weight, implementation: linear_cross_entropy(
                hidden, weight, targets, implementation=implementation
            ),
            [pair[0], normal(256, width, seed=2) / width**0.5],
        ),
        Problem(
            "selective_scan",
            of_scan,
            [*pair, normal(width, 16, seed=2) / 4, *(normal(batch, length, 16, seed=seed) for seed in (3, 4))],
        ),
        Problem(
            "gated_linear_attention",
            of_memory,
            [*(x.unflatten(-1, (-1, head)) for x in (*pair, *pair)), normal(width // head, head, seed=2)],
        ),
        Problem("linear_recurrence", of_recurrence, pair),
        Problem("wkv", of_wkv, [*pair, normal(width, seed=2), normal(width, seed=3)]),
    ]


def slstm_problem(run: Run, dim: int) -> Problem:
    """The sLSTM: its programs wait for one another, which nothing but a GPU can show, so it comes last."""
    batch, length = (1, 7) if run.dry else (18, 300)
    resets = run.normal(batch, length, seed=9) > 2.0

    def of_slstm(gates: Tensor, recurrent: Tensor, implementation: Implementation) -> Tensor:
        return slstm(gates, recurrent, resets=resets, implementation=implementation)[0]

    tensors = [run.normal(batch, length, 4, 4, dim), run.normal(4, 4, dim, dim, seed=1) / dim**0.5]
    return Problem(f"slstm {dim}", of_slstm, tensors)
