"""RMSNorm as Triton kernels: one pass over each tensor, forward and backward.

In the backward a program walks over a stretch of rows, so that the weight's gradient is summed in registers and leaves
few partial sums, added in a fixed order.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.strides import by_row

RUN_TIME = ["rows", "eps"]
"""Arguments whose values must not compile a kernel anew."""
ROWS_PER_SUM = 64
"""Rows of one program in the backward."""
LARGEST_WIDTH = 8192


def shape_obstacle(width: int) -> str | None:
    """Why the kernels refuse these shapes, or None."""
    return f"rows of {width} channels are larger than {LARGEST_WIDTH}" if width > LARGEST_WIDTH else None


def tiling_of(width: int) -> dict[str, int]:
    """Channels of a row, the power of two that holds them, and how many rows make a tile of about 2048 numbers."""
    power = triton.next_power_of_2(width)
    return {"D": width, "BD": power, "BT": max(1, min(ROWS_PER_SUM, 2048 // power))}


@triton.jit(do_not_specialize=RUN_TIME)
def forward_kernel(x, weight, y, scale, stride, rows, eps, D: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr):
    """y (rows, D), and the factor of each row."""
    r = (tl.program_id(0) * BT + tl.arange(0, BT)).to(tl.int64)
    d = tl.arange(0, BD)
    inside = (r < rows)[:, None] & (d < D)[None, :]
    value = tl.load(x + r[:, None] * stride + d[None, :], mask=inside, other=0.0).to(tl.float32)
    factor = 1.0 / tl.sqrt(tl.sum(value * value, 1) / D + eps)
    w = tl.load(weight + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
    tl.store(y + r[:, None] * D + d[None, :], (value * factor[:, None] * w).to(y.dtype.element_ty), mask=inside)
    tl.store(scale + r, factor, mask=r < rows)


@triton.jit(do_not_specialize=RUN_TIME)
def backward_kernel(
    grad_y, x, weight, scale, grad_x, parts, grad_stride, stride, rows,
    D: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The gradient of x (rows, D), and parts (stretches, D) of the weight's."""
    d = tl.arange(0, BD)
    w = tl.load(weight + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
    total = tl.zeros((BD,), tl.float32)
    for start in range(0, tl.minimum(ROWS, rows - tl.program_id(0) * ROWS), BT):
        r = (tl.program_id(0) * ROWS + start + tl.arange(0, BT)).to(tl.int64)
        inside = (r < rows)[:, None] & (d < D)[None, :]
        g = tl.load(grad_y + r[:, None] * grad_stride + d[None, :], mask=inside, other=0.0).to(tl.float32)
        value = tl.load(x + r[:, None] * stride + d[None, :], mask=inside, other=0.0).to(tl.float32)
        factor = tl.load(scale + r, mask=r < rows, other=0.0)[:, None]
        normed = value * factor
        total += tl.sum(g * normed, 0)
        along = tl.sum(g * w * normed, 1)[:, None] / D
        result = (g * w - normed * along) * factor
        tl.store(grad_x + r[:, None] * D + d[None, :], result.to(grad_x.dtype.element_ty), mask=inside)
    tl.store(parts + tl.program_id(0) * D + d, total, mask=d < D)


def forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As `torch_fused.forward`."""
    y, scale, rows = x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=torch.float32), by_row(x)
    tiling = tiling_of(x.shape[-1])
    grid = (triton.cdiv(rows.shape[0], tiling["BT"]),)
    forward_kernel[grid](rows, weight.contiguous(), y, scale, rows.stride(0), rows.shape[0], eps, **tiling)
    return y, scale


def backward(grad_y: Tensor, x: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """As `torch_fused.backward`."""
    rows, grads, grad_x = by_row(x), by_row(grad_y), x.new_empty(x.shape)
    stretches = triton.cdiv(rows.shape[0], ROWS_PER_SUM)
    parts = x.new_empty(stretches, x.shape[-1], dtype=torch.float32)
    backward_kernel[(stretches,)](
        grads, rows, weight.contiguous(), scale.contiguous(), grad_x, parts, grads.stride(0), rows.stride(0),
        rows.shape[0], ROWS=ROWS_PER_SUM, **tiling_of(x.shape[-1]),
    )  # fmt: skip
    return grad_x, parts.sum(0).to(weight.dtype)
