"""What surrounds the mLSTM cell, as functions of tensors alone: each operator with inputs of a shape asked for."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kernels.block_diagonal import block_diagonal
from kernels.causal_conv import causal_conv_silu
from kernels.gated_head_norm import gated_head_norm
from kernels.linear_cross_entropy import linear_cross_entropy
from kernels.mlstm_inputs import mlstm_inputs
from kernels.rms_norm import rms_norm
from kernels.rotary import rotary
from kernels.squared_relu import squared_relu
from kernels.swiglu import swiglu
from kernels.token_shift import token_shift


class Problem:
    """An operator as a function of tensors alone, and tensors for it."""

    def __init__(self, function: Callable[..., Any], *tensors: Tensor) -> None:
        self.function, self.tensors = function, tensors

    def run(self, implementation: str, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        """Outputs and the gradients of everything, from inputs and for output gradients rounded to `dtype`."""
        inputs = [t.to(dtype).requires_grad_() for t in self.tensors]
        outputs = self.function(*inputs, implementation=implementation)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        generator = torch.Generator().manual_seed(1)
        weights = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(dtype) for y in outputs]
        gradients = torch.autograd.grad(outputs, inputs, weights)
        return [t.detach().double() for t in (*outputs, *gradients)]

    def rounded(self, dtype: torch.dtype) -> "Problem":
        return Problem(self.function, *(t.to(dtype).double() for t in self.tensors))


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def projection(batch: int, time: int, blocks: int, width: int) -> Problem:
    return Problem(block_diagonal, normal(0, batch, time, blocks * width), normal(1, blocks, width, width))


def convolution(batch: int, time: int, channels: int, resetting: bool) -> Problem:
    generator = torch.Generator().manual_seed(2)
    resets = torch.rand(batch, time, generator=generator) < 0.2 if resetting else None

    def function(x: Tensor, weight: Tensor, bias: Tensor, past: Tensor, implementation: Any) -> tuple[Tensor, Tensor]:
        return causal_conv_silu(x, weight, bias, past=past, resets=resets, implementation=implementation)

    x, past = normal(0, batch, time, channels), normal(3, batch, 3, channels)
    return Problem(function, x, normal(1, channels, 4), normal(2, channels), past)


def norm(batch: int, time: int, heads: int, head_dim: int, skipping: bool) -> Problem:
    def function(h: Tensor, weight: Tensor, gate: Tensor, *rest: Tensor, implementation: Any) -> Tensor:
        skipped, skip = rest if rest else (None, None)
        h = h.transpose(1, 2)
        return gated_head_norm(h, weight, gate, skipped=skipped, skip=skip, implementation=implementation)

    channels = heads * head_dim
    rest = (normal(3, batch, time, channels), normal(4, channels)) if skipping else ()
    h, gate = normal(0, batch, heads, time, head_dim), normal(2, batch, time, channels)
    return Problem(function, h, normal(1, channels), gate, *rest)


def loss(batch: int, time: int, width: int, vocab: int, soft_cap: float | None = None) -> Problem:
    generator = torch.Generator().manual_seed(2)
    targets = torch.randint(vocab, (batch, time), generator=generator)
    targets[0, 0] = -100

    def function(hidden: Tensor, weight: Tensor, implementation: Any) -> Tensor:
        return linear_cross_entropy(hidden, weight, targets, soft_cap=soft_cap, implementation=implementation)

    return Problem(function, 0.5 * normal(0, batch, time, width), normal(1, vocab, width))


def rows_norm(batch: int, time: int, channels: int) -> Problem:
    return Problem(rms_norm, normal(0, batch, time, channels), normal(1, channels))


def gated(batch: int, time: int, channels: int) -> Problem:
    return Problem(swiglu, 3 * normal(0, batch, time, channels), normal(1, batch, time, channels))


def positive(batch: int, time: int, channels: int) -> Problem:
    return Problem(squared_relu, normal(0, batch, time, channels))


def positions(batch: int, time: int, heads: int, head_dim: int, packed: bool) -> Problem:
    """Angles of one set of positions, or of one for each sequence."""
    angles = 3 * normal(2, *((batch, time) if packed else (time,)), head_dim // 2).float()

    def function(query: Tensor, key: Tensor, implementation: Any) -> tuple[Tensor, Tensor]:
        of = angles.to(torch.promote_types(query.dtype, torch.float32))
        return rotary(query, key, of.cos(), of.sin(), implementation=implementation)

    return Problem(function, *(normal(seed, batch, time, heads, head_dim) for seed in (0, 1)))


def inputs_of_mlstm(batch: int, time: int, blocks: int, gates: int) -> Problem:
    x = [normal(seed, batch, time, 4 * blocks) for seed in (0, 1)]
    maps = [normal(seed, blocks, 4, 4) for seed in (2, 3, 4)]
    return Problem(mlstm_inputs, *x, *maps, normal(5, gates, 12 * blocks) / blocks, normal(6, gates))


def mixtures(batch: int, time: int, channels: int, number: int, resetting: bool) -> Problem:
    resets = torch.rand(batch, time, generator=torch.Generator().manual_seed(2)) < 0.2 if resetting else None

    def function(x: Tensor, shares: Tensor, last: Tensor, implementation: Any) -> tuple[Tensor, ...]:
        return tuple(token_shift(x, shares, last=last, resets=resets, implementation=implementation))

    return Problem(function, normal(0, batch, time, channels), normal(1, number, channels), normal(2, batch, channels))


def strided(problem: Problem) -> Problem:
    """The same inputs, every second number of tensors twice as wide, and times before batches."""

    def function(*tensors: Tensor, implementation: Any) -> Any:
        views = []
        for t in tensors:
            wide = torch.stack((t, t), dim=-1).flatten(-2)
            wide = wide.transpose(0, 1).contiguous().transpose(0, 1) if t.ndim > 1 else wide
            views.append(wide[..., ::2])
            assert not views[-1].is_contiguous()
        return problem.function(*views, implementation=implementation)

    return Problem(function, *problem.tensors)
