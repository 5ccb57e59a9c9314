"""SwiGLU (Shazeer 2020, arXiv 2002.05202): the gated half of a Llama feed-forward layer."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from kernels import cpu
from kernels.dispatch import Implementation, cast_for_autocast, choose, expect_shape
from kernels.operator import modules, operator
from kernels.swiglu.reference import swiglu_reference

__all__ = ["swiglu"]


def swiglu(gate: Tensor, up: Tensor, *, implementation: Implementation = "auto") -> Tensor:
    """silu(gate) * up, number by number; both of one shape (…, channels), which the result has too.

    Under autocast both are cast; computed in float32 at least. Raises ValueError for shapes or dtypes that do not fit,
    ImplementationError for an implementation that cannot run.
    """
    name = "swiglu"
    expect_shape(name, "up", up, tuple(gate.shape), "that of gate")
    gate, up = cast_for_autocast(gate, up)
    if gate.dtype != up.dtype:
        raise ValueError(f"{name}: gate and up are {gate.dtype} and {up.dtype}, expected one dtype")
    chosen = choose(name, implementation, gate, cpu_obstacle=lambda: cpu.obstacle(gate, up))
    return swiglu_reference(gate, up) if chosen == "reference" else _swiglu(gate, up, chosen)


_module = modules(__name__, torch="torch_fused", numba="numba_swiglu", triton="triton_swiglu")


@operator("swiglu")
def _swiglu(gate: Tensor, up: Tensor, implementation: str) -> Tensor:
    y: Tensor = _module(implementation).forward(gate, up)
    return y


@_swiglu.register_fake
def _(gate: Tensor, up: Tensor, implementation: str) -> Tensor:
    return gate.new_empty(gate.shape)


@operator("swiglu_backward")
def _swiglu_backward(grad_y: Tensor, gate: Tensor, up: Tensor, implementation: str) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up."""
    grad_gate, grad_up = _module(implementation).backward(grad_y, gate, up)
    return grad_gate, grad_up


@_swiglu_backward.register_fake
def _(grad_y: Tensor, gate: Tensor, up: Tensor, implementation: str) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), up.new_empty(up.shape)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    gate, up, ctx.implementation = inputs
    ctx.save_for_backward(gate, up)


def _differentiate(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    return *_swiglu_backward(grad_y, *ctx.saved_tensors, ctx.implementation), None


_swiglu.register_autograd(_differentiate, keep=_keep_for_backward)


@register_flop_formula([torch.ops.scaling.swiglu, torch.ops.scaling.swiglu_backward])
def swiglu_flops(*args: Any, **kwargs: Any) -> int:
    """Activations count as nothing, as everywhere."""
    return 0
