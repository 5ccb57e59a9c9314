"""Token shift as Triton kernels: a tile of tokens and channels, for one mixture after the other."""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import torch
import triton
import triton.language as tl
from torch import Tensor

RUN_TIME = ["time"]
"""Arguments whose divisibility must not compile a kernel anew."""
TILE = {"BT": 32, "BC": 64}
"""Tokens and channels of a program."""


@triton.jit
def _before(x, last, resets, t, time, channels, c, RESETS: tl.constexpr):
    """The tokens before t, (len t, len c)."""
    inside = c[None, :] < channels
    value = tl.load(
        x + (t - 1)[:, None] * channels + c[None, :], mask=((t > 0) & (t < time))[:, None] & inside, other=0.0
    )
    value = value.to(tl.float32)
    value += tl.load(last + c[None, :] + 0 * t[:, None], mask=(t == 0)[:, None] & inside, other=0.0).to(tl.float32)
    if RESETS:
        begins = tl.load(resets + t, mask=t < time, other=0)
        value = tl.where((begins != 0)[:, None], 0.0, value)
    return value


@triton.jit(do_not_specialize=RUN_TIME)
def forward_kernel(
    x, share, last, resets, y, time, channels, BT: tl.constexpr, BC: tl.constexpr, RESETS: tl.constexpr
):  # fmt: skip
    """One tile of one mixture y (batch, time, channels)."""
    b = tl.program_id(2).to(tl.int64)
    t = tl.program_id(0) * BT + tl.arange(0, BT)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = (t < time)[:, None] & (c < channels)[None, :]
    at = t[:, None] * channels + c[None, :]
    x += b * time * channels
    before = _before(x, last + b * channels, resets + b * time, t, time, channels, c, RESETS)
    s = tl.load(share + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    value = before + s * (tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - before)
    tl.store(y + b * time * channels + at, value.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=RUN_TIME)
def backward_kernel(
    grad, x, share, last, resets, grad_x, grad_last, parts, time, channels,
    BT: tl.constexpr, BC: tl.constexpr, RESETS: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """What one mixture gives to a tile of grad_x and to grad_last, both float32; parts (tiles, channels): its share's.

    ADD: whether another mixture has written before.
    """
    b = tl.program_id(2).to(tl.int64)
    t = tl.program_id(0) * BT + tl.arange(0, BT)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = (t < time)[:, None] & (c < channels)[None, :]
    at = t[:, None] * channels + c[None, :]
    x += b * time * channels
    grad += b * time * channels
    resets += b * time
    s = tl.load(share + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    difference = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    difference -= _before(x, last + b * channels, resets, t, time, channels, c, RESETS)
    tl.store(
        parts + (b * tl.num_programs(0) + tl.program_id(0)) * channels + c, tl.sum(g * difference, 0), mask=c < channels
    )
    followed = t + 1 < time
    if RESETS:
        followed = followed & (tl.load(resets + t + 1, mask=t + 1 < time, other=1) == 0)
    later = tl.load(grad + at + channels, mask=followed[:, None] & (c < channels)[None, :], other=0.0).to(tl.float32)
    total = g * s + later * (1.0 - s)
    to_last = g * (1.0 - s)
    if RESETS:
        to_last = tl.where((tl.load(resets + t, mask=t < time, other=0) != 0)[:, None], 0.0, to_last)
    first = (t == 0)[:, None] & (c < channels)[None, :]
    at_last = grad_last + b * channels + c[None, :] + 0 * t[:, None]
    grad_x += b * time * channels
    if ADD:
        total += tl.load(grad_x + at, mask=inside, other=0.0)
        to_last += tl.load(at_last, mask=first, other=0.0)
    tl.store(grad_x + at, total, mask=inside)
    tl.store(at_last, to_last, mask=first)


def _grid(x: Tensor) -> tuple[int, int, int]:
    batch, time, channels = x.shape
    return triton.cdiv(time, TILE["BT"]), triton.cdiv(channels, TILE["BC"]), batch


def forward(x: Tensor, shares: Tensor, last: Tensor, resets: Tensor | None) -> list[Tensor]:
    """As the reference, rounded once."""
    x, last, seen = x.contiguous(), last.contiguous(), x if resets is None else resets.contiguous()
    mixtures = [x.new_empty(x.shape) for _ in shares]
    for share, y in zip(shares.contiguous(), mixtures, strict=True):
        forward_kernel[_grid(x)](x, share, last, seen, y, *x.shape[1:], RESETS=resets is not None, **TILE)
    return mixtures


def backward(
    grads: list[Tensor], x: Tensor, shares: Tensor, last: Tensor, resets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, shares and last."""
    x, last, seen = x.contiguous(), last.contiguous(), x if resets is None else resets.contiguous()
    grad_x, grad_last = (torch.empty_like(t, dtype=torch.float32) for t in (x, last))
    grid = _grid(x)
    parts = grad_x.new_empty(len(grads), x.shape[0], grid[0], x.shape[2])
    for n, (grad, share) in enumerate(zip(grads, shares.contiguous(), strict=True)):
        backward_kernel[grid](
            grad.contiguous(), x, share, last, seen, grad_x, grad_last, parts[n], *x.shape[1:],
            RESETS=resets is not None, ADD=n > 0, **TILE,
        )  # fmt: skip
    return grad_x.to(x.dtype), parts.sum((1, 2)).to(shares.dtype), grad_last.to(last.dtype)
