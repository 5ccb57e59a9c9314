"""Linear maps with block-diagonal matrices: the mLSTM block's projections (arXiv 2405.04517, figure 11)."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from kernels import cpu
from kernels.block_diagonal.reference import block_diagonal_reference
from kernels.dispatch import Implementation, cast_for_autocast, choose, expect_shape
from kernels.operator import modules, operator

__all__ = ["block_diagonal"]

CPU_WIDTH = 4
"""Width of the blocks that the kernels for CPUs are written for."""


def block_diagonal(x: Tensor, weight: Tensor, *, implementation: Implementation = "auto") -> Tensor:
    """`x` (…, channels) to the same shape; `weight` (blocks, width, width), out by in, with blocks * width channels.

    Under autocast both are cast. Raises ValueError for shapes that do not fit, ImplementationError for an
    implementation that cannot run.
    """
    name = "block_diagonal"
    if weight.ndim != 3 or weight.shape[1] != weight.shape[2]:
        raise ValueError(f"{name}: weight has shape {tuple(weight.shape)}, expected (blocks, width, width)")
    blocks, width, _ = weight.shape
    expect_shape(name, "x", x, (*x.shape[:-1], blocks * width), "(…, blocks * width)")
    x, weight = cast_for_autocast(x, weight)
    weight = weight.to(x.dtype)
    chosen = choose(name, implementation, x, lambda: _triton_obstacle(width), lambda: _cpu_obstacle(x, weight))
    if chosen == "reference":
        return block_diagonal_reference(x, weight)
    return _block_diagonal(x, weight, chosen)


def _triton_obstacle(width: int) -> str | None:
    from kernels.block_diagonal import triton_blocks

    return triton_blocks.shape_obstacle(width)


def _cpu_obstacle(x: Tensor, weight: Tensor) -> str | None:
    if weight.shape[-1] != CPU_WIDTH:
        return f"blocks of width {weight.shape[-1]} are not supported; those of width {CPU_WIDTH} are"
    return cpu.obstacle(x, weight)


_module = modules(__name__, torch="torch_grouped", numba="numba_blocks", triton="triton_blocks")


@operator("block_diagonal")
def _block_diagonal(x: Tensor, weight: Tensor, implementation: str) -> Tensor:
    y: Tensor = _module(implementation).forward(x, weight)
    return y


@_block_diagonal.register_fake
def _(x: Tensor, weight: Tensor, implementation: str) -> Tensor:
    return x.new_empty(x.shape)


@operator("block_diagonal_backward")
def _block_diagonal_backward(grad_y: Tensor, x: Tensor, weight: Tensor, implementation: str) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the weight."""
    grad_x, grad_weight = _module(implementation).backward(grad_y, x, weight)
    return grad_x, grad_weight


@_block_diagonal_backward.register_fake
def _(grad_y: Tensor, x: Tensor, weight: Tensor, implementation: str) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ctx.implementation = inputs
    ctx.save_for_backward(x, weight)


def _differentiate(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    return *_block_diagonal_backward(grad_y, *ctx.saved_tensors, ctx.implementation), None


_block_diagonal.register_autograd(_differentiate, keep=_keep_for_backward)


@register_flop_formula(torch.ops.scaling.block_diagonal)
def block_diagonal_flops(x_shape: Any, weight_shape: Any, *args: Any, **kwargs: Any) -> int:
    """Forward: the blocks alone, whatever zeros an implementation multiplies."""
    rows = 1
    for size in x_shape[:-1]:
        rows *= size
    return 2 * rows * int(x_shape[-1]) * int(weight_shape[-1])


@register_flop_formula(torch.ops.scaling.block_diagonal_backward)
def block_diagonal_backward_flops(grad_shape: Any, x_shape: Any, weight_shape: Any, *args: Any, **kwargs: Any) -> int:
    """Backward: one product for x, one for the weight."""
    return 2 * block_diagonal_flops(x_shape, weight_shape)
