"""The causal convolution with SiLU as Triton kernels: memory-bound, everything read once.

Forward and backward take a tile of tokens and channels; neighbouring tokens come from the cache. The backward forms the
gradient before the SiLU anew from x instead of keeping it, once for the tile and once per later tap.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.strides import dense_rows

RUN_TIME = ["time"]
"""Arguments whose divisibility must not compile a kernel anew."""
TILE = {"BT": 32, "BC": 32}
"""Tokens and channels of a program: what the backward holds in registers."""


@triton.jit
def _token(x, past, documents, t, shift, x_t, time, channels, c, DOCUMENTS: tl.constexpr, TAPS: tl.constexpr):
    """Tokens t - shift, (len t, len c): of `past` before the pass, 0 in another document than t's."""
    source = t - shift
    here = ((t < time) & (source >= 0))[:, None] & (c < channels)[None, :]
    value = tl.load(x + source[:, None] * x_t + c[None, :], mask=here, other=0.0).to(tl.float32)
    earlier = ((t < time) & (t >= 0) & (source < 0) & (source >= 1 - TAPS))[:, None] & (c < channels)[None, :]
    place = (source + TAPS - 1)[:, None] * channels + c[None, :]
    value += tl.load(past + place, mask=earlier, other=0.0).to(tl.float32)
    if DOCUMENTS:
        own = tl.load(documents + t, mask=(t < time) & (t >= 0), other=0)
        of_source = tl.load(documents + source, mask=(source >= 0) & (source < time), other=0)
        value = tl.where((own == of_source)[:, None], value, 0.0)
    return value


@triton.jit
def _before_silu(x, past, weight, bias, documents, t, x_t, time, channels, c, TAPS: tl.constexpr, D: tl.constexpr):
    total = tl.load(bias + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    for lag in tl.static_range(TAPS):
        w = tl.load(weight + c * TAPS + (TAPS - 1 - lag), mask=c < channels, other=0.0).to(tl.float32)
        total += w[None, :] * _token(x, past, documents, t, lag, x_t, time, channels, c, D, TAPS)
    return total


@triton.jit(do_not_specialize=RUN_TIME)
def forward_kernel(
    x, past, weight, bias, documents, y, x_b, x_t, time, channels,
    TAPS: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, DOCUMENTS: tl.constexpr,
):  # fmt: skip
    """One tile of y (batch, time, channels)."""
    b = tl.program_id(2).to(tl.int64)
    t = tl.program_id(0) * BT + tl.arange(0, BT)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    x += b * x_b
    past += b * (TAPS - 1) * channels
    documents += b * time
    pre = _before_silu(x, past, weight, bias, documents, t, x_t, time, channels, c, TAPS, DOCUMENTS)
    value = pre / (1.0 + tl.exp(-pre))
    inside = (t < time)[:, None] & (c < channels)[None, :]
    tl.store(y + (b * time + t)[:, None] * channels + c[None, :], value.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _grad_before_silu(
    grad_y, x, past, weight, bias, documents, t, g_t, x_t, time, channels, c, TAPS: tl.constexpr, D: tl.constexpr
):  # fmt: skip
    pre = _before_silu(x, past, weight, bias, documents, t, x_t, time, channels, c, TAPS, D)
    inside = ((t >= 0) & (t < time))[:, None] & (c < channels)[None, :]
    g = tl.load(grad_y + t[:, None] * g_t + c[None, :], mask=inside, other=0.0).to(tl.float32)
    s = 1.0 / (1.0 + tl.exp(-pre))
    return tl.where(inside, g * s * (1.0 + pre * (1.0 - s)), 0.0)


@triton.jit(do_not_specialize=RUN_TIME)
def backward_kernel(
    grad_y, x, past, weight, bias, documents, grad_x, grad_past, parts, g_b, g_t, x_b, x_t, time, channels,
    TAPS: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, DOCUMENTS: tl.constexpr,
):  # fmt: skip
    """One tile of grad_past and grad_x, one after the other; parts (tiles, TAPS + 1, channels): weight and bias.

    A tile sums the weight's products for its outputs, and passes gradients to its inputs from the outputs after them.
    """
    b = tl.program_id(2).to(tl.int64)
    t = tl.program_id(0) * BT + tl.arange(0, BT) - (TAPS - 1)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    x += b * x_b
    past += b * (TAPS - 1) * channels
    documents += b * time
    grad_y += b * g_b
    at_part = parts + (b * tl.num_programs(0) + tl.program_id(0)) * (TAPS + 1) * channels + c
    total = tl.zeros((BT, BC), tl.float32)
    for lag in tl.static_range(TAPS):
        w = tl.load(weight + c * TAPS + (TAPS - 1 - lag), mask=c < channels, other=0.0).to(tl.float32)
        later = t + lag
        g = _grad_before_silu(
            grad_y, x, past, weight, bias, documents, later, g_t, x_t, time, channels, c, TAPS, DOCUMENTS
        )
        if DOCUMENTS:
            own = tl.load(documents + t, mask=(t >= 0) & (t < time), other=0)
            after = tl.load(documents + later, mask=later < time, other=0)
            total += tl.where((own == after)[:, None], w[None, :] * g, 0.0)
        else:
            total += w[None, :] * g
        if lag == 0:
            tl.store(at_part + TAPS * channels, tl.sum(g, 0), mask=c < channels)
            for seen in tl.static_range(TAPS):
                value = _token(x, past, documents, t, seen, x_t, time, channels, c, DOCUMENTS, TAPS)
                tl.store(at_part + (TAPS - 1 - seen) * channels, tl.sum(g * value, 0), mask=c < channels)
    inside = ((t >= 0) & (t < time))[:, None] & (c < channels)[None, :]
    tl.store(grad_x + (b * time + t)[:, None] * channels + c[None, :], total.to(grad_x.dtype.element_ty), mask=inside)
    before = (t < 0)[:, None] & (c < channels)[None, :]
    at_past = grad_past + (b * (TAPS - 1) + t + TAPS - 1)[:, None] * channels + c[None, :]
    tl.store(at_past, total.to(grad_past.dtype.element_ty), mask=before)


def _grid(x: Tensor, more: int = 0) -> tuple[int, int, int]:
    """Tiles of tokens, `more` than x has, tiles of channels, sequences."""
    batch, time, channels = x.shape
    time += more
    return triton.cdiv(time, TILE["BT"]), triton.cdiv(channels, TILE["BC"]), batch


def forward(x: Tensor, weight: Tensor, bias: Tensor, past: Tensor, documents: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `torch_shifted.forward`; nothing is kept for the backward."""
    x = dense_rows(x)
    y = x.new_empty(x.shape)
    forward_kernel[_grid(x)](
        x, past.contiguous(), weight.contiguous(), bias.contiguous(),
        x if documents is None else documents.contiguous(), y,
        x.stride(0), x.stride(1), *x.shape[1:], TAPS=weight.shape[1], DOCUMENTS=documents is not None, **TILE,
    )  # fmt: skip
    return y, x.new_empty(0)


def backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, past: Tensor, documents: Tensor | None, pre: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `torch_shifted.backward`."""
    x, grad_y = dense_rows(x), dense_rows(grad_y)
    grad_x, grad_past = x.new_empty(x.shape), past.new_empty(past.shape)
    taps = weight.shape[1]
    grid = _grid(x, more=taps - 1)
    parts = x.new_empty(x.shape[0], grid[0], taps + 1, x.shape[2], dtype=torch.float32)
    backward_kernel[grid](
        grad_y, x, past.contiguous(), weight.contiguous(), bias.contiguous(),
        x if documents is None else documents.contiguous(), grad_x, grad_past, parts,
        grad_y.stride(0), grad_y.stride(1), x.stride(0), x.stride(1), *x.shape[1:],
        TAPS=taps, DOCUMENTS=documents is not None, **TILE,
    )  # fmt: skip
    sums = parts.sum((0, 1))
    return grad_x, sums[:-1].t().to(weight.dtype).contiguous(), sums[-1].to(bias.dtype), grad_past
