"""Block-diagonal maps as Triton kernels: memory-bound, each channel a short sum over its own block.

A program takes a tile of rows and channels; a row of x is read from memory once and from the first-level cache for the
other channels of its blocks. The weight's gradient is summed over stretches of rows, whose partial sums are then added
in a fixed order: results do not depend on which program ends first.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import torch
import triton
import triton.language as tl
from torch import Tensor

RUN_TIME = ["rows"]
"""Arguments whose divisibility must not compile a kernel anew."""
TILE = {"BT": 16, "BC": 128}
"""Rows and channels of a program."""
ROWS_PER_SUM = 1024
"""Rows whose products one program sums to a part of the weight's gradient."""
LARGEST_BLOCK = 32


def shape_obstacle(width: int) -> str | None:
    """Why the kernels refuse these shapes, or None."""
    if width > LARGEST_BLOCK:
        return f"blocks of {width} channels are wider than {LARGEST_BLOCK}: matrix products suit them"
    return None


@triton.jit(do_not_specialize=RUN_TIME)
def times_kernel(
    x, weight, y, stride, rows, channels,
    W: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """y = x times the blocks of weight (blocks, W, W), each out by in; TRANSPOSED: in by out."""
    t = (tl.program_id(0) * BT + tl.arange(0, BT)).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = (t < rows)[:, None] & (c < channels)[None, :]
    first = c // W * W
    total = tl.zeros((BT, BC), tl.float32)
    for i in tl.static_range(W):
        x_i = tl.load(x + t[:, None] * stride + (first + i)[None, :], mask=inside, other=0.0)
        if TRANSPOSED:
            at = (first + i) * W + (c - first)
        else:
            at = c * W + i
        total += x_i.to(tl.float32) * tl.load(weight + at, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    tl.store(y + t[:, None] * channels + c[None, :], total.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=RUN_TIME)
def weight_backward_kernel(
    grad_y, x, parts, grad_stride, stride, rows, channels,
    W: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """parts (stretches, channels, W): sums over a stretch of rows of grad_y[c] x[i], i in the block of c."""
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    i = tl.program_id(2)
    total = tl.zeros((BC,), tl.float32)
    for start in range(0, tl.minimum(ROWS, rows - tl.program_id(0) * ROWS), BT):
        t = (tl.program_id(0) * ROWS + start + tl.arange(0, BT)).to(tl.int64)
        inside = (t < rows)[:, None] & (c < channels)[None, :]
        g = tl.load(grad_y + t[:, None] * grad_stride + c[None, :], mask=inside, other=0.0).to(tl.float32)
        x_i = tl.load(x + t[:, None] * stride + (c // W * W + i)[None, :], mask=inside, other=0.0).to(tl.float32)
        total += tl.sum(g * x_i, 0)
    tl.store(parts + (tl.program_id(0) * channels + c) * W + i, total, mask=c < channels)


def _rows(x: Tensor) -> Tensor:
    """(rows, channels) with dense channels; a view where the strides allow it."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def _times(x: Tensor, weight: Tensor, transposed: bool) -> Tensor:
    rows = _rows(x)
    y = x.new_empty(x.shape)
    grid = (triton.cdiv(rows.shape[0], TILE["BT"]), triton.cdiv(rows.shape[1], TILE["BC"]))
    times_kernel[grid](
        rows, weight.contiguous(), y, rows.stride(0), *rows.shape, W=weight.shape[1], TRANSPOSED=transposed, **TILE
    )
    return y


def forward(x: Tensor, weight: Tensor) -> Tensor:
    """As the reference."""
    return _times(x, weight, transposed=False)


def backward(grad_y: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the weight."""
    rows, grads = _rows(x), _rows(grad_y)
    stretches = triton.cdiv(rows.shape[0], ROWS_PER_SUM)
    width = weight.shape[1]
    parts = x.new_empty(stretches, *weight.shape, dtype=torch.float32)
    weight_backward_kernel[(stretches, triton.cdiv(rows.shape[1], TILE["BC"]), width)](
        grads, rows, parts, grads.stride(0), rows.stride(0), *rows.shape, W=width, ROWS=ROWS_PER_SUM, **TILE
    )
    return _times(grad_y, weight, transposed=True), parts.sum(0).to(weight.dtype)
