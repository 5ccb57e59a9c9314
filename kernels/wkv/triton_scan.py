"""WKV as Triton kernels: one program per batch row and block of channels walks over chunks of time.

Inside a chunk the sums at every step come from one associative scan over (decay, m, a, b), which adds two stretches of
time at the larger of their scales. The state enters each chunk from registers and is stored for the backward, which
walks the chunks in reverse with a second scan for the gradients of the sums. The gradients of decay and bonus are left
as one partial per batch row and added afterwards, so that results do not depend on the order in which programs end.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.linear_recurrence.triton_scan import load
from kernels.strides import as_bytes
from kernels.wkv.reference import NOTHING as _NOTHING
from kernels.wkv.reference import Inputs

BLOCK_TIME = 32
BLOCK_CHANNELS = 32
NOTHING = tl.constexpr(_NOTHING)


@triton.jit
def _add(decay, m, a, b, next_decay, next_m, next_a, next_b):
    """The sums of two successive stretches of time."""
    carried = m + next_decay
    scale = tl.maximum(carried, next_m)
    old, new = tl.exp(carried - scale), tl.exp(next_m - scale)
    return decay + next_decay, scale, a * old + next_a * new, b * old + next_b * new


@triton.jit
def _accumulate(keep, a, b, next_keep, next_a, next_b):
    return keep * next_keep, a * next_keep + next_a, b * next_keep + next_b


@triton.jit
def _load_resets(resets_ptr, base, t, time, HAS_RESETS: tl.constexpr):
    inside = (t >= 0) & (t < time)
    if HAS_RESETS:
        return tl.load(resets_ptr + base + t, mask=inside, other=0)[:, None] != 0
    else:
        return (t != t)[:, None]


@triton.jit
def _before(k_ptr, v_ptr, resets_ptr, w, m, a, b, base, t, local, c, time, num_channels, HAS_RESETS: tl.constexpr):
    """The sums before each step of a chunk (time, channels), from those before the chunk (channels)."""
    first = (local == 0)[:, None]
    k, v = load(k_ptr, base, t - 1, c, time, num_channels), load(v_ptr, base, t - 1, c, time, num_channels)
    forget = _load_resets(resets_ptr, base, t - 1, time, HAS_RESETS)
    # The step before each step; the chunk's first has none in the chunk.
    decay = tl.where(first, 0.0, tl.where(forget, NOTHING, w[None, :] + tl.zeros_like(k)))
    decay, scale, sum_a, sum_b = tl.associative_scan(
        (decay, tl.where(first, NOTHING, k), tl.where(first, 0.0, v), tl.where(first, 0.0, 1.0 + tl.zeros_like(k))),
        0,
        _add,
    )
    zeros = tl.zeros_like(k)
    _, scale, sum_a, sum_b = _add(
        zeros, m[None, :] + zeros, a[None, :] + zeros, b[None, :] + zeros, decay, scale, sum_a, sum_b
    )
    return scale, sum_a, sum_b


@triton.jit
def _read(m, a, b, k, v, u, forget):
    """Output and its parts: y, denominator, and the weights of the sums before and of the step itself."""
    now = u[None, :] + k
    reach = tl.where(forget, NOTHING, m)
    scale = tl.maximum(reach, now)
    past, present = tl.where(forget, 0.0, tl.exp(reach - scale)), tl.exp(now - scale)
    denominator = past * b + present
    return (past * a + present * v) / denominator, denominator, past, present


@triton.jit
def _step(m, a, b, k, v, w, forget):
    """The sums after each step, and the weights with which it kept the earlier ones and added its own."""
    carried = tl.where(forget, NOTHING, m + w[None, :])
    scale = tl.maximum(carried, k)
    keep, write = tl.where(forget, 0.0, tl.exp(carried - scale)), tl.exp(k - scale)
    return scale, keep * a + write * v, keep * b + write, keep, write


@triton.jit
def _forward_kernel(
    k_ptr, v_ptr, w_ptr, u_ptr, state_ptr, resets_ptr, y_ptr, final_ptr, starts_ptr,
    batch, time, num_channels, num_chunks,
    HAS_RESETS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = c < num_channels
    plane = batch.to(tl.int64) * num_channels
    w = tl.load(w_ptr + c, mask=mask, other=0.0).to(tl.float32)
    u = tl.load(u_ptr + c, mask=mask, other=0.0).to(tl.float32)
    cell = row * num_channels + c
    a = tl.load(state_ptr + cell, mask=mask, other=0.0)
    b = tl.load(state_ptr + plane + cell, mask=mask, other=0.0)
    m = tl.load(state_ptr + 2 * plane + cell, mask=mask, other=0.0)
    base = row * time
    local = tl.arange(0, BLOCK_T)
    for chunk in range(num_chunks):
        start = starts_ptr + chunk * (3 * plane) + cell
        tl.store(start, a, mask=mask)
        tl.store(start + plane, b, mask=mask)
        tl.store(start + 2 * plane, m, mask=mask)
        t = chunk * BLOCK_T + local
        m_t, a_t, b_t = _before(k_ptr, v_ptr, resets_ptr, w, m, a, b, base, t, local, c, time, num_channels, HAS_RESETS)
        k, v = load(k_ptr, base, t, c, time, num_channels), load(v_ptr, base, t, c, time, num_channels)
        forget = _load_resets(resets_ptr, base, t, time, HAS_RESETS)
        y, _, _, _ = _read(m_t, a_t, b_t, k, v, u, forget)
        tl.store(
            y_ptr + (base + t)[:, None] * num_channels + c[None, :],
            y.to(y_ptr.dtype.element_ty),
            mask=(t < time)[:, None] & mask[None, :],
        )
        m_t, a_t, b_t, _, _ = _step(m_t, a_t, b_t, k, v, w, forget)
        last = (t == tl.minimum(chunk * BLOCK_T + BLOCK_T, time) - 1)[:, None]
        a = tl.sum(tl.where(last, a_t, 0.0), axis=0)
        b = tl.sum(tl.where(last, b_t, 0.0), axis=0)
        m = tl.sum(tl.where(last, m_t, 0.0), axis=0)
    tl.store(final_ptr + cell, a, mask=mask)
    tl.store(final_ptr + plane + cell, b, mask=mask)
    tl.store(final_ptr + 2 * plane + cell, m, mask=mask)


@triton.jit
def _backward_kernel(
    dy_ptr, dfinal_ptr, k_ptr, v_ptr, w_ptr, u_ptr, resets_ptr, starts_ptr,
    dk_ptr, dv_ptr, dw_ptr, du_ptr, dstate_ptr,
    batch, time, num_channels, num_chunks,
    HAS_RESETS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = c < num_channels
    plane = batch.to(tl.int64) * num_channels
    w = tl.load(w_ptr + c, mask=mask, other=0.0).to(tl.float32)
    u = tl.load(u_ptr + c, mask=mask, other=0.0).to(tl.float32)
    cell = row * num_channels + c
    ga = tl.load(dfinal_ptr + cell, mask=mask, other=0.0)  # gradients of the sums after the chunk
    gb = tl.load(dfinal_ptr + plane + cell, mask=mask, other=0.0)
    dw = tl.zeros((BLOCK_C,), dtype=tl.float32)
    du = tl.zeros((BLOCK_C,), dtype=tl.float32)
    base = row * time
    local = tl.arange(0, BLOCK_T)
    for backwards in range(num_chunks):
        chunk = num_chunks - 1 - backwards
        start = starts_ptr + chunk * (3 * plane) + cell
        a = tl.load(start, mask=mask, other=0.0)
        b = tl.load(start + plane, mask=mask, other=0.0)
        m = tl.load(start + 2 * plane, mask=mask, other=0.0)
        t = chunk * BLOCK_T + local
        inside = (t < time)[:, None] & mask[None, :]
        final = (t == tl.minimum(chunk * BLOCK_T + BLOCK_T, time) - 1)[:, None]
        m_t, a_t, b_t = _before(k_ptr, v_ptr, resets_ptr, w, m, a, b, base, t, local, c, time, num_channels, HAS_RESETS)
        k, v = load(k_ptr, base, t, c, time, num_channels), load(v_ptr, base, t, c, time, num_channels)
        dy = load(dy_ptr, base, t, c, time, num_channels)
        forget = _load_resets(resets_ptr, base, t, time, HAS_RESETS)
        y, denominator, past, present = _read(m_t, a_t, b_t, k, v, u, forget)
        m_after, a_after, b_after, keep, write = _step(m_t, a_t, b_t, k, v, w, forget)

        # What the next step adds to the gradient of the sums after this one, and how it carries the later gradients.
        k_next, v_next = (
            load(k_ptr, base, t + 1, c, time, num_channels),
            load(v_ptr, base, t + 1, c, time, num_channels),
        )
        dy_next = load(dy_ptr, base, t + 1, c, time, num_channels)
        forget_next = _load_resets(resets_ptr, base, t + 1, time, HAS_RESETS)
        y_next, denominator_next, past_next, _ = _read(m_after, a_after, b_after, k_next, v_next, u, forget_next)
        _, _, _, keep_next, _ = _step(m_after, a_after, b_after, k_next, v_next, w, forget_next)
        beyond = final | (t >= time)[:, None]
        flow = tl.where(beyond, 0.0, past_next * dy_next / denominator_next)
        carried, sum_a, sum_b = tl.associative_scan(
            (tl.where(beyond, 1.0, keep_next), flow, -flow * y_next), 0, _accumulate, reverse=True
        )
        grad_a, grad_b = carried * ga[None, :] + sum_a, carried * gb[None, :] + sum_b

        p = dy / denominator
        surplus = present * p * (v - y)
        position = (base + t)[:, None] * num_channels + c[None, :]
        tl.store(dv_ptr + position, (present * p + write * grad_a).to(dv_ptr.dtype.element_ty), mask=inside)
        dk = surplus + write * (grad_a * v + grad_b)
        tl.store(dk_ptr + position, dk.to(dk_ptr.dtype.element_ty), mask=inside)
        du += tl.sum(tl.where(inside, surplus, 0.0), axis=0)
        dw += tl.sum(tl.where(inside, keep * (grad_a * a_t + grad_b * b_t), 0.0), axis=0)
        first = (local == 0)[:, None]
        ga = tl.sum(tl.where(first, past * p + keep * grad_a, 0.0), axis=0)
        gb = tl.sum(tl.where(first, -past * p * y + keep * grad_b, 0.0), axis=0)
    tl.store(dw_ptr + cell, dw, mask=mask)
    tl.store(du_ptr + cell, du, mask=mask)
    tl.store(dstate_ptr + cell, ga, mask=mask)
    tl.store(dstate_ptr + plane + cell, gb, mask=mask)
    tl.store(dstate_ptr + 2 * plane + cell, tl.zeros_like(ga), mask=mask)


def num_segments(k: Tensor) -> int:
    """How many chunks a sequence has."""
    return triton.cdiv(k.shape[1], BLOCK_TIME)


def forward(inputs: Inputs, state: Tensor, resets: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Output, final state (3, batch, channels), and the states before each chunk (chunks, 3, batch, channels)."""
    k, v, decay, bonus, state = (tensor.contiguous() for tensor in (*inputs, state))
    batch, time, channels = k.shape
    chunks = num_segments(k)
    output, final = torch.empty_like(v), torch.empty_like(state)
    starts = state.new_empty(chunks, *state.shape)
    _forward_kernel[(batch, triton.cdiv(channels, BLOCK_CHANNELS))](
        k, v, decay, bonus, state, as_bytes(resets), output, final, starts, batch, time, channels, chunks,
        HAS_RESETS=resets is not None, BLOCK_T=BLOCK_TIME, BLOCK_C=BLOCK_CHANNELS,
    )  # fmt: skip
    return output, final, starts


def backward(
    grad_output: Tensor, grad_state: Tensor, inputs: Inputs, resets: Tensor | None, starts: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of k, v, decay, bonus and the initial state (3, batch, channels; 0 for the scale)."""
    grad_output, grad_state = grad_output.contiguous(), grad_state.contiguous()
    k, v, decay, bonus = (tensor.contiguous() for tensor in inputs)
    batch, time, channels = k.shape
    grad_k, grad_v = torch.empty_like(k), torch.empty_like(v)
    grad_decay, grad_bonus = starts.new_empty(2, batch, channels)
    grad_initial = torch.empty_like(grad_state)
    _backward_kernel[(batch, triton.cdiv(channels, BLOCK_CHANNELS))](
        grad_output, grad_state, k, v, decay, bonus, as_bytes(resets), starts,
        grad_k, grad_v, grad_decay, grad_bonus, grad_initial, batch, time, channels, starts.shape[0],
        HAS_RESETS=resets is not None, BLOCK_T=BLOCK_TIME, BLOCK_C=BLOCK_CHANNELS,
    )  # fmt: skip
    return grad_k, grad_v, grad_decay.sum(0).to(decay.dtype), grad_bonus.sum(0).to(bonus.dtype), grad_initial
