"""The linear recurrence as Triton kernels: one program per batch row and block of channels walks over chunks of time.

Inside a chunk the states come from one associative scan over (keep, x); the backward walks the chunks in reverse.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.strides import as_bytes

BLOCK_TIME = 32
BLOCK_CHANNELS = 64


@triton.jit
def combine(keep, x, next_keep, next_x):
    """Two successive stretches of h_t = keep_t h_{t-1} + x_t as one."""
    return keep * next_keep, x * next_keep + next_x


@triton.jit
def load(ptr, base, t, c, time, num_channels):
    """Tokens t and channels c of a sequence that begins at row `base`, float32: 0 outside."""
    inside = ((t >= 0) & (t < time))[:, None] & (c < num_channels)[None, :]
    return tl.load(ptr + (base + t)[:, None] * num_channels + c[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _keep(g_ptr, resets_ptr, base, t, c, time, num_channels, HAS_RESETS: tl.constexpr):
    """exp(g_t): 1 outside the sequence, 0 where a document starts."""
    keep = tl.exp(load(g_ptr, base, t, c, time, num_channels))
    if HAS_RESETS:
        resets = tl.load(resets_ptr + base + t, mask=(t >= 0) & (t < time), other=0)
        keep = tl.where(resets[:, None] != 0, 0.0, keep)
    return keep


@triton.jit
def _forward_kernel(
    x_ptr, g_ptr, state_ptr, resets_ptr, h_ptr, time, num_channels, num_chunks,
    HAS_RESETS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = c < num_channels
    h = tl.load(state_ptr + row * num_channels + c, mask=mask, other=0.0)
    base = row * time
    local = tl.arange(0, BLOCK_T)
    for chunk in range(num_chunks):
        t = chunk * BLOCK_T + local
        keep = _keep(g_ptr, resets_ptr, base, t, c, time, num_channels, HAS_RESETS)
        kept, added = tl.associative_scan((keep, load(x_ptr, base, t, c, time, num_channels)), 0, combine)
        states = kept * h[None, :] + added
        tl.store(
            h_ptr + (base + t)[:, None] * num_channels + c[None, :], states, mask=(t < time)[:, None] & mask[None, :]
        )
        h = tl.sum(tl.where((local == BLOCK_T - 1)[:, None], states, 0.0), axis=0)


@triton.jit
def _backward_kernel(
    dh_ptr, g_ptr, state_ptr, resets_ptr, h_ptr, dx_ptr, dg_ptr, dstate_ptr, time, num_channels, num_chunks,
    HAS_RESETS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = c < num_channels
    initial = tl.load(state_ptr + row * num_channels + c, mask=mask, other=0.0)
    base = row * time
    local = tl.arange(0, BLOCK_T)
    grad = tl.zeros((BLOCK_C,), tl.float32)
    for step in range(num_chunks):
        t = (num_chunks - 1 - step) * BLOCK_T + local
        inside = (t < time)[:, None] & mask[None, :]
        last = (local == BLOCK_T - 1)[:, None]
        following = _keep(g_ptr, resets_ptr, base, t + 1, c, time, num_channels, HAS_RESETS)
        kept, gathered = tl.associative_scan(
            (tl.where(last, 1.0, following), load(dh_ptr, base, t, c, time, num_channels)), 0, combine, reverse=True
        )
        dx = kept * grad[None, :] + gathered
        keep = _keep(g_ptr, resets_ptr, base, t, c, time, num_channels, HAS_RESETS)
        before = load(h_ptr, base, t - 1, c, time, num_channels)
        before = tl.where((t == 0)[:, None], initial[None, :], before)
        position = (base + t)[:, None] * num_channels + c[None, :]
        tl.store(dx_ptr + position, dx.to(dx_ptr.dtype.element_ty), mask=inside)
        tl.store(dg_ptr + position, (keep * before * dx).to(dg_ptr.dtype.element_ty), mask=inside)
        grad = tl.sum(tl.where((local == 0)[:, None], keep * dx, 0.0), axis=0)
    tl.store(dstate_ptr + row * num_channels + c, grad, mask=mask)


def _grid(x: Tensor) -> tuple[int, int]:
    return x.shape[0], triton.cdiv(x.shape[2], BLOCK_CHANNELS)


def forward(x: Tensor, g: Tensor, state: Tensor, resets: Tensor | None) -> Tensor:
    """Every state, (batch, time, channels)."""
    _, time, channels = x.shape
    x, g, state = (tensor.contiguous() for tensor in (x, g, state))
    h = torch.empty_like(x, dtype=state.dtype)
    _forward_kernel[_grid(x)](
        x, g, state, as_bytes(resets), h, time, channels, triton.cdiv(time, BLOCK_TIME),
        HAS_RESETS=resets is not None, BLOCK_T=BLOCK_TIME, BLOCK_C=BLOCK_CHANNELS,
    )  # fmt: skip
    return h


def backward(
    grad_h: Tensor, x: Tensor, g: Tensor, state: Tensor, resets: Tensor | None, h: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, g and the initial state."""
    _, time, channels = x.shape
    grad_h, g, state = (tensor.contiguous() for tensor in (grad_h, g, state))
    grad_x, grad_g = (torch.empty_like(one, memory_format=torch.contiguous_format) for one in (x, g))
    grad_state = torch.empty_like(state)
    _backward_kernel[_grid(x)](
        grad_h, g, state, as_bytes(resets), h, grad_x, grad_g, grad_state, time, channels,
        triton.cdiv(time, BLOCK_TIME), HAS_RESETS=resets is not None, BLOCK_T=BLOCK_TIME, BLOCK_C=BLOCK_CHANNELS,
    )  # fmt: skip
    return grad_x, grad_g, grad_state
