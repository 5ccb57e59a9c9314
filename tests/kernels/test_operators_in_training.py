"""Every operator as training uses it: compiled, recomputed, under autocast, its parameters sharded over two ranks."""

import importlib
import math
import os
import pkgutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import kernels
from kernels.attention import attention
from kernels.block_diagonal import block_diagonal
from kernels.bounded_gate import bounded_gate
from kernels.causal_conv import causal_conv_silu
from kernels.delta_rule import delta_rule
from kernels.dispatch import prefer
from kernels.gated_head_norm import gated_head_norm
from kernels.gated_linear_attention import gated_linear_attention
from kernels.linear_cross_entropy import linear_cross_entropy
from kernels.linear_recurrence import linear_recurrence
from kernels.long_convolution import long_convolution
from kernels.lstm import lstm
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

BATCH, TIME, CHANNELS = 2, 9, 16


class Case(NamedTuple):
    """An operator as a function of what varies with the batch and of parameters, to one tensor."""

    function: Callable[..., Tensor]
    inputs: list[Tensor]
    parameters: list[Tensor]


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(math.prod(shape)))


def _mlstm(qkv: Tensor, gates: Tensor, scale: Tensor) -> Tensor:
    q, k, v = (scale * qkv).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
    return mlstm(q, k, v, *gates.permute(2, 0, 3, 1))[0]


def _linear_attention(qkv: Tensor, decay: Tensor, scale: Tensor, bonus: Tensor) -> Tensor:
    q, k, v = (scale * qkv).unflatten(-1, (3, 2, -1)).unbind(2)
    return gated_linear_attention(q, k, v, -decay.unflatten(-1, (2, -1)).exp(), bonus=bonus)[0]


def _delta_rule(qkvab: Tensor, decay: Tensor, scale: Tensor) -> Tensor:
    q, k, v, a, b = (scale * qkvab).unflatten(-1, (5, 2, -1)).unbind(2)
    return delta_rule(q, k, v, a / 8, b / 8, -decay.unflatten(-1, (2, -1)).exp())[0]


def _attention(qkv: Tensor, scale: Tensor) -> Tensor:
    return attention(*(scale * qkv).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4))


def _rotary(qk: Tensor, scale: Tensor) -> Tensor:
    angles = torch.arange(qk.shape[1], device=qk.device)[:, None] / torch.arange(1.0, 5.0, device=qk.device)
    return torch.cat(rotary(*(scale * qk).unflatten(-1, (2, 2, 8)).unbind(2), angles.cos(), angles.sin()), dim=-1)


def _inputs(convolved: Tensor, inner: Tensor, maps: Tensor, gates: Tensor, bias: Tensor) -> Tensor:
    return torch.cat(mlstm_inputs(convolved, inner, *maps.unbind(0), gates, bias), dim=-1)


def _norm(h: Tensor, gate: Tensor, weight: Tensor, skip: Tensor | None) -> Tensor:
    skipped = None if skip is None else h
    return gated_head_norm(h.unflatten(-1, (2, -1)), weight, gate, skipped=skipped, skip=skip)


def _scan(u: Tensor, delta: Tensor, B: Tensor, C: Tensor, A_log: Tensor) -> Tensor:
    return selective_scan(u, nn.functional.softplus(delta), -A_log.exp(), B, C)[0]


def _loss(hidden: Tensor, weight: Tensor) -> Tensor:
    targets = torch.arange(hidden.shape[1], device=hidden.device).expand(hidden.shape[:2])
    return linear_cross_entropy(hidden, weight, targets)


def cases() -> dict[str, Case]:
    """One of each operator, in float32."""
    x = [normal(BATCH, TIME, CHANNELS) / (index + 1) for index in range(4)]
    rows = 4 * CHANNELS
    return {
        "mlstm": Case(_mlstm, [normal(BATCH, TIME, 3 * CHANNELS), normal(BATCH, TIME, 2, 2)], [normal(3 * CHANNELS)]),
        "slstm": Case(
            lambda gates, r: slstm(gates, r)[0], [normal(BATCH, TIME, 4, 2, 8)], [normal(4, 2, 8, 8) / 3]
        ),
        "attention": Case(_attention, [normal(BATCH, TIME, 3 * CHANNELS)], [normal(3 * CHANNELS)]),
        "bounded_gate": Case(lambda x, w: torch.cat(bounded_gate(x, w.sigmoid()), -1), x[:1], [normal(CHANNELS)]),
        "block_diagonal": Case(block_diagonal, x[:1], [normal(4, 4, 4)]),
        "causal_conv_silu": Case(
            lambda x, w, b: causal_conv_silu(x, w, b)[0], x[:1], [normal(CHANNELS, 4), normal(CHANNELS)]
        ),
        "gated_head_norm": Case(_norm, x[:2], [normal(CHANNELS), normal(CHANNELS) + 1]),
        "gated_linear_attention": Case(
            _linear_attention,
            [normal(BATCH, TIME, 3 * CHANNELS), x[1]],
            [normal(3 * CHANNELS), normal(2, CHANNELS // 2)],
        ),
        "delta_rule": Case(_delta_rule, [normal(BATCH, TIME, 5 * CHANNELS), x[1]], [normal(5 * CHANNELS)]),
        "linear_recurrence": Case(lambda x, g, w: linear_recurrence(x * w, -g.exp()), x[:2], [normal(CHANNELS)]),
        "long_convolution": Case(long_convolution, x[:1], [normal(TIME, CHANNELS)]),
        "mlstm_inputs": Case(_inputs, x[:2], [normal(3, 4, 4, 4), normal(4, 3 * CHANNELS) / 4, normal(4)]),
        "rms_norm": Case(rms_norm, x[:1], [normal(CHANNELS)]),
        "rotary": Case(_rotary, [normal(BATCH, TIME, 2 * CHANNELS)], [normal(2 * CHANNELS)]),
        "squared_relu": Case(lambda x, scale: squared_relu(scale * x), x[:1], [normal(CHANNELS)]),
        "swiglu": Case(lambda gate, up, scale: swiglu(scale * gate, up), x[:2], [normal(CHANNELS)]),
        "linear_cross_entropy": Case(_loss, x[:1], [normal(32, CHANNELS) / 4]),
        "selective_scan": Case(_scan, [*x[:2], *(one[..., :4] for one in x[2:])], [normal(CHANNELS, 4) / 4]),
        "token_shift": Case(lambda x, shares: torch.cat(token_shift(x, shares), -1), x[:1], [normal(3, CHANNELS)]),
        "wkv": Case(lambda k, v, w, u: wkv(k, v, -w.exp(), u)[0], x[:2], [normal(CHANNELS), normal(CHANNELS)]),
        "lstm": Case(
            lambda x, wi, wh, bi, bh: lstm(x, wi, wh, bi, bh)[0],
            x[:1],
            [normal(rows, CHANNELS) / 4, normal(rows, CHANNELS) / 4, normal(rows), normal(rows)],
        ),
    }  # fmt: skip


every_operator = pytest.mark.parametrize("name", list(cases()))


def gradients(function: Callable[..., Tensor], case: Case) -> list[Tensor]:
    """The result, and the gradients of inputs and parameters for a fixed weighting of it."""
    leaves = [t.clone().requires_grad_() for t in (*case.inputs, *case.parameters)]
    y = function(*leaves)
    weights = torch.linspace(-1, 1, y.numel()).view(y.shape)
    return [y.detach(), *torch.autograd.grad((y * weights.to(y.dtype)).sum(), leaves)]


def test_every_folder_is_tested_here() -> None:
    folders = {module.name for module in pkgutil.iter_modules(kernels.__path__) if module.ispkg} - {"cpu"}
    assert folders == {name.removesuffix("_silu") for name in cases()}
    for folder in folders:
        importlib.import_module(f"kernels.{folder}")
    ours = {name for name in dir(torch.ops.scaling) if not name.startswith("_") and name not in ("name", "loader")}
    assert len(ours) == 2 * (len(folders) - 1)  # forward and backward; the LSTM is PyTorch's


@pytest.mark.parametrize("name", [name for name in cases() if name != "lstm"])
def test_flops_are_counted_forward_and_backward(name: str) -> None:
    case = cases()[name]
    with FlopCounterMode(display=False) as counter:
        gradients(case.function, case)
    counted = {str(operator) for operator in counter.get_flop_counts()["Global"]}
    assert {f"scaling.{name}", f"scaling.{name}_backward"} <= counted


@every_operator
def test_a_compiled_operator_is_the_operator(name: str) -> None:
    if name == "lstm":
        pytest.skip("torch.compile does not trace into nn.LSTM")
    case = cases()[name]
    torch.compiler.reset()
    compiled = torch.compile(case.function, fullgraph=True, backend="aot_eager")
    for a, b in zip(gradients(compiled, case), gradients(case.function, case), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_an_operator_compiles_without_what_may_be_absent() -> None:
    case = cases()["gated_head_norm"]
    plain = Case(lambda h, gate, weight: _norm(h, gate, weight, None), case.inputs, case.parameters[:1])
    torch.compiler.reset()
    compiled = torch.compile(plain.function, fullgraph=True, backend="aot_eager")
    for a, b in zip(gradients(compiled, plain), gradients(plain.function, plain), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


class Promised(TorchDispatchMode):
    """Runs every operator of ours a second time as the compiler does, and compares what it says of the results."""

    def __init__(self) -> None:
        super().__init__()
        self.compared: set[str] = set()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = operator(*args, **(kwargs or {}))
        if operator.namespace == "scaling":
            self.compared.add(operator.name())
            with FakeTensorMode() as mode:
                promised = operator(*tree_map_only(Tensor, mode.from_tensor, args))
            for a, b in zip(tree_leaves(results), tree_leaves(promised), strict=True):
                assert (a.shape, a.dtype, a.numel() and a.stride()) == (b.shape, b.dtype, a.numel() and b.stride())
        return results


def turned(t: Tensor) -> Tensor:
    """The same numbers, the first two axes the other way round in memory."""
    return t.transpose(0, 1).contiguous().transpose(0, 1) if t.ndim > 1 else t


@pytest.mark.parametrize("layout", [Tensor.clone, turned])
@pytest.mark.parametrize("implementation", ["torch", "numba"])
@pytest.mark.parametrize("name", [name for name in cases() if name != "lstm"])
def test_what_the_compiler_is_told_of_results_is_so(name: str, implementation: Any, layout: Any) -> None:
    case = cases()[name]
    leaves = [layout(t).requires_grad_() for t in (*case.inputs, *case.parameters)]
    prefer(implementation)
    try:
        with Promised() as promised:
            y = case.function(*leaves)
            torch.autograd.grad(y, leaves, layout(torch.ones_like(y)))
    finally:
        prefer("auto")
    assert promised.compared or implementation == "torch"  # which may be PyTorch's own operators


@every_operator
def test_a_recomputed_operator_is_the_operator_bit_for_bit(name: str) -> None:
    case = cases()[name]
    recomputed = gradients(partial(checkpoint, case.function, use_reentrant=False), case)
    assert all(torch.equal(a, b) for a, b in zip(recomputed, gradients(case.function, case), strict=True))


@every_operator
def test_autocast_computes_in_bfloat16_and_leaves_the_gradients_in_the_dtype_of_the_inputs(name: str) -> None:
    case = cases()[name]

    def under_autocast(*leaves: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return case.function(*leaves)

    exact = gradients(case.function, case)
    for a, b in zip(gradients(under_autocast, case), exact, strict=True):
        assert float((a.double() - b).norm() / b.norm()) < 3e-2
    assert all(a.dtype == torch.float32 for a in gradients(under_autocast, case)[1:])


class Holder(nn.Module):
    """A case as a module that holds its parameters."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.function = case.function
        self.held = nn.ParameterList(nn.Parameter(parameter.clone()) for parameter in case.parameters)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs, *self.held)


def _shard(rank: int, meeting: str) -> None:
    """Of each operator: sequence `rank` of the batch on each rank; the gradients are those of the whole batch."""
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=BATCH)
    for name, case in cases().items():
        weights = torch.linspace(-1, 1, BATCH * TIME * 4 * CHANNELS)

        def weighed(module: nn.Module, rows: slice, case: Case = case, weights: Tensor = weights) -> Tensor:
            y = module(*(x[rows] for x in case.inputs))
            return (y * weights[: BATCH * y[0].numel()].view(BATCH, *y.shape[1:])[rows]).sum()

        whole, sharded = Holder(case), Holder(case)
        weighed(whole, slice(None)).backward()
        fully_shard(sharded)
        weighed(sharded, slice(rank, rank + 1)).backward()
        for expected, parameter in zip(whole.held, sharded.held, strict=True):
            mean: Any = parameter.grad
            torch.testing.assert_close(
                BATCH * mean.full_tensor(), expected.grad, rtol=1e-4, atol=1e-5, msg=f"{name}: {expected.shape}"
            )
    dist.destroy_process_group()
    # Threads of gloo outlive their group, and one that asks for Python's lock while Python goes ends in an abort.
    os._exit(0)


@pytest.mark.serial
@pytest.mark.slow
def test_sharded_parameters_get_the_gradients_of_whole_ones(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_shard, args=(str(tmp_path / "meeting"),), nprocs=BATCH)
