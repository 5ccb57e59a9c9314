"""Block-diagonal maps as Triton kernels: memory-bound, each channel a short sum over its own block.

A tile (rows, channels) is mapped as (rows, blocks, 1, in) times (blocks, out, in), summed over the last axis: it is
read from memory once, and what a block's channels have of one another is exchanged between registers. The weight's
gradient is summed over stretches of rows, whose partial sums are then added in a fixed order: results do not depend
on which program ends first.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.strides import by_row

RUN_TIME = ["rows"]
"""Arguments whose divisibility must not compile a kernel anew."""
CHANNELS = 128
"""Channels of a program."""
PRODUCTS = 64
"""Rows of a program times the width of a block: what it holds in registers for each channel."""
ROWS_PER_SUM = 256
"""Rows whose products one program sums to a part of the weight's gradient."""
LARGEST_BLOCK = 32


def shape_obstacle(width: int) -> str | None:
    """Why the kernels refuse these shapes, or None."""
    if width > LARGEST_BLOCK:
        return f"blocks of {width} channels are wider than {LARGEST_BLOCK}: matrix products suit them"
    return f"blocks of {width} channels are no power of two" if width & (width - 1) else None


def tiling_of(width: int) -> dict[str, int]:
    """Width of the blocks, and rows and channels of a program."""
    return {"W": width, "BT": PRODUCTS // width, "BC": CHANNELS}


@triton.jit
def load_blocks(weight, start, channels, W: tl.constexpr, BC: tl.constexpr, TRANSPOSED: tl.constexpr):
    """Matrices of the blocks from channel `start` on, (BC / W, out, in), or (BC / W, in, out) where TRANSPOSED."""
    block = (start // W + tl.arange(0, BC // W))[:, None, None]
    first, second = tl.arange(0, W)[None, :, None], tl.arange(0, W)[None, None, :]
    place = second * W + first if TRANSPOSED else first * W + second
    return tl.load(weight + block * W * W + place, mask=block * W < channels, other=0.0).to(tl.float32)


@triton.jit
def store_blocks(weight, blocks, start, channels, W: tl.constexpr, BC: tl.constexpr):
    """Write matrices (BC / W, W, W) from channel `start` on."""
    block = (start // W + tl.arange(0, BC // W))[:, None, None]
    place = tl.arange(0, W)[None, :, None] * W + tl.arange(0, W)[None, None, :]
    tl.store(weight + block * W * W + place, blocks, mask=block * W < channels)


@triton.jit
def mapped(x, matrices, W: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr):
    """Rows x (BT, BC) of float32 through matrices (BC / W, W, W), whose last axis is x's."""
    products = tl.reshape(x, (BT, BC // W, 1, W)) * matrices[None, :, :, :]
    return tl.reshape(tl.sum(products, 3), (BT, BC))


@triton.jit
def outer_products(grad, x, W: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr):
    """Sums over rows of grad[out] x[in] of each block, (BC / W, W, W)."""
    return tl.sum(tl.reshape(grad, (BT, BC // W, W, 1)) * tl.reshape(x, (BT, BC // W, 1, W)), 0)


@triton.jit(do_not_specialize=RUN_TIME)
def times_kernel(
    x, weight, y, stride, rows, channels,
    W: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """y = x times the blocks of weight (blocks, W, W), each out by in; TRANSPOSED: in by out."""
    t = (tl.program_id(0) * BT + tl.arange(0, BT)).to(tl.int64)[:, None]
    start = tl.program_id(1) * BC
    c = (start + tl.arange(0, BC))[None, :]
    inside = (t < rows) & (c < channels)
    value = tl.load(x + t * stride + c, mask=inside, other=0.0).to(tl.float32)
    result = mapped(value, load_blocks(weight, start, channels, W, BC, TRANSPOSED), W, BT, BC)
    tl.store(y + t * channels + c, result.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=RUN_TIME)
def weight_backward_kernel(
    grad_y, x, parts, grad_stride, stride, rows, channels,
    W: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """parts (stretches, blocks, W, W): sums over a stretch of rows of grad_y[out] x[in]."""
    start = tl.program_id(1) * BC
    c = (start + tl.arange(0, BC))[None, :]
    total = tl.zeros((BC // W, W, W), tl.float32)
    for first in range(0, tl.minimum(ROWS, rows - tl.program_id(0) * ROWS), BT):
        t = (tl.program_id(0) * ROWS + first + tl.arange(0, BT)).to(tl.int64)[:, None]
        inside = (t < rows) & (c < channels)
        g = tl.load(grad_y + t * grad_stride + c, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(x + t * stride + c, mask=inside, other=0.0).to(tl.float32)
        total += outer_products(g, value, W, BT, BC)
    store_blocks(parts + tl.program_id(0).to(tl.int64) * channels * W, total, start, channels, W, BC)


def _times(x: Tensor, weight: Tensor, transposed: bool) -> Tensor:
    rows = by_row(x)
    y = x.new_empty(x.shape)
    tiling = tiling_of(weight.shape[1])
    grid = (triton.cdiv(rows.shape[0], tiling["BT"]), triton.cdiv(rows.shape[1], CHANNELS))
    times_kernel[grid](rows, weight.contiguous(), y, rows.stride(0), *rows.shape, TRANSPOSED=transposed, **tiling)
    return y


def forward(x: Tensor, weight: Tensor) -> Tensor:
    """As the reference."""
    return _times(x, weight, transposed=False)


def backward(grad_y: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the weight."""
    rows, grads = by_row(x), by_row(grad_y)
    stretches = triton.cdiv(rows.shape[0], ROWS_PER_SUM)
    parts = x.new_empty(stretches, *weight.shape, dtype=torch.float32)
    weight_backward_kernel[(stretches, triton.cdiv(rows.shape[1], CHANNELS))](
        grads, rows, parts, grads.stride(0), rows.stride(0), *rows.shape, ROWS=ROWS_PER_SUM,
        **tiling_of(weight.shape[1]),
    )  # fmt: skip
    return _times(grad_y, weight, transposed=True), parts.sum(0).to(weight.dtype)
