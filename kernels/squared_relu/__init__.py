"""Squared ReLU (So et al. 2021, arXiv 2109.08668): what RWKV-4's channel mixing has between its matrices."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from kernels import cpu
from kernels.dispatch import Implementation, choose
from kernels.operator import modules, operator
from kernels.squared_relu.reference import squared_relu_reference

__all__ = ["squared_relu"]


def squared_relu(x: Tensor, *, implementation: Implementation = "auto") -> Tensor:
    """max(x, 0)², number by number; only `x` is kept for the gradient. Computed in float32 at least.

    Raises ImplementationError for an implementation that cannot run.
    """
    chosen = choose("squared_relu", implementation, x, cpu_obstacle=lambda: cpu.obstacle(x))
    return squared_relu_reference(x) if chosen == "reference" else _squared_relu(x, chosen)


_module = modules(__name__, torch="torch_fused", numba="numba_relu", triton="triton_relu")


@operator("squared_relu")
def _squared_relu(x: Tensor, implementation: str) -> Tensor:
    y: Tensor = _module(implementation).forward(x)
    return y


@_squared_relu.register_fake
def _(x: Tensor, implementation: str) -> Tensor:
    return x.new_empty(x.shape)


@operator("squared_relu_backward")
def _squared_relu_backward(grad_y: Tensor, x: Tensor, implementation: str) -> Tensor:
    grad_x: Tensor = _module(implementation).backward(grad_y, x)
    return grad_x


@_squared_relu_backward.register_fake
def _(grad_y: Tensor, x: Tensor, implementation: str) -> Tensor:
    return x.new_empty(x.shape)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.implementation = inputs
    ctx.save_for_backward(x)


def _differentiate(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None]:
    return _squared_relu_backward(grad_y, *ctx.saved_tensors, ctx.implementation), None


_squared_relu.register_autograd(_differentiate, keep=_keep_for_backward)


@register_flop_formula([torch.ops.scaling.squared_relu, torch.ops.scaling.squared_relu_backward])
def squared_relu_flops(*args: Any, **kwargs: Any) -> int:
    """Activations count as nothing, as everywhere."""
    return 0
