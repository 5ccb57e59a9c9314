"""The selective scan as Triton kernels: one program per batch row and block of channels walks over chunks of time.

Inside a chunk the recurrence h_t = keep_t h_{t-1} + write_t is an associative scan over (keep, write). The state enters
each chunk from registers and is stored for the backward, which walks the chunks in reverse and scans twice: forward for
the states, backward for their gradients. Sums over channels (dB, dC) and over the batch (dA) are left as one partial
per program and added afterwards, so that results do not depend on the order in which programs end.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.linear_recurrence.triton_scan import combine, load
from kernels.selective_scan.reference import Inputs
from kernels.strides import as_bytes

BLOCK_TIME = 32
BLOCK_ELEMENTS = 128
"""Channels times padded state_dim of one program: a tile of BLOCK_TIME x BLOCK_ELEMENTS floats fits the registers."""
MAX_STATE_DIM = 64


def shape_obstacle(A: Tensor) -> str | None:
    """Why the kernels refuse these shapes, or None."""
    if A.shape[1] > MAX_STATE_DIM:
        return f"state_dim {A.shape[1]} exceeds {MAX_STATE_DIM}"
    return None


@triton.jit
def _keep(delta_ptr, resets_ptr, A, base, time, t, d, num_channels, HAS_RESETS: tl.constexpr):
    """exp(delta_t A), (time, channels, state): 1 outside the sequence, 0 where a document starts."""
    delta = load(delta_ptr, base, t, d, time, num_channels)
    keep = tl.exp(delta[:, :, None] * A[None, :, :])
    if HAS_RESETS:
        resets = tl.load(resets_ptr + base + t, mask=(t >= 0) & (t < time), other=0)
        keep = tl.where(resets[:, None, None] != 0, 0.0, keep)
    return delta, keep


@triton.jit
def _write(delta, u_ptr, B_ptr, base, time, t, d, n, num_channels, state_dim):
    """u_t (time, channels), B_t (time, state) and delta_t u_t B_t (time, channels, state): 0 outside the sequence."""
    u = load(u_ptr, base, t, d, time, num_channels)
    B = load(B_ptr, base, t, n, time, state_dim)
    return u, B, (delta * u)[:, :, None] * B[:, None, :]


@triton.jit
def _forward_kernel(
    u_ptr, delta_ptr, A_ptr, B_ptr, C_ptr, state_ptr, resets_ptr, y_ptr, final_ptr, starts_ptr,
    time, num_channels, state_dim, num_chunks,
    HAS_RESETS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    mask_d, mask_n = d < num_channels, n < state_dim
    cell = d[:, None] * state_dim + n[None, :]
    mask = mask_d[:, None] & mask_n[None, :]
    A = tl.load(A_ptr + cell, mask=mask, other=0.0).to(tl.float32)
    h = tl.load(state_ptr + row * num_channels * state_dim + cell, mask=mask, other=0.0)
    base = row * time
    local = tl.arange(0, BLOCK_T)
    for chunk in range(num_chunks):
        tl.store(starts_ptr + (row * num_chunks + chunk) * num_channels * state_dim + cell, h, mask=mask)
        t = chunk * BLOCK_T + local
        delta, keep = _keep(delta_ptr, resets_ptr, A, base, time, t, d, num_channels, HAS_RESETS)
        _, _, write = _write(delta, u_ptr, B_ptr, base, time, t, d, n, num_channels, state_dim)
        kept, written = tl.associative_scan((keep, write), 0, combine)
        states = kept * h[None, :, :] + written
        C = tl.load(
            C_ptr + (base + t)[:, None] * state_dim + n[None, :], mask=(t < time)[:, None] & mask_n[None, :], other=0.0
        ).to(tl.float32)
        y = tl.sum(states * C[:, None, :], axis=2)
        tl.store(
            y_ptr + (base + t)[:, None] * num_channels + d[None, :],
            y.to(y_ptr.dtype.element_ty),
            mask=(t < time)[:, None] & mask_d[None, :],
        )
        h = tl.sum(tl.where((local == BLOCK_T - 1)[:, None, None], states, 0.0), axis=0)
    tl.store(final_ptr + row * num_channels * state_dim + cell, h, mask=mask)


@triton.jit
def _backward_kernel(
    dy_ptr, dfinal_ptr, u_ptr, delta_ptr, A_ptr, B_ptr, C_ptr, resets_ptr, starts_ptr,
    du_ptr, ddelta_ptr, dA_ptr, dB_ptr, dC_ptr, dstate_ptr,
    time, num_channels, state_dim, num_chunks,
    HAS_RESETS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    mask_d, mask_n = d < num_channels, n < state_dim
    cell = d[:, None] * state_dim + n[None, :]
    mask = mask_d[:, None] & mask_n[None, :]
    A = tl.load(A_ptr + cell, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(dfinal_ptr + row * num_channels * state_dim + cell, mask=mask, other=0.0)
    dA = tl.zeros((BLOCK_D, BLOCK_N), dtype=tl.float32)
    base = row * time
    partial = (tl.program_id(1).to(tl.int64) * tl.num_programs(0) + row) * time
    local = tl.arange(0, BLOCK_T)
    for step in range(num_chunks):
        chunk = num_chunks - 1 - step
        start = tl.load(starts_ptr + (row * num_chunks + chunk) * num_channels * state_dim + cell, mask=mask, other=0.0)
        t = chunk * BLOCK_T + local
        inside = (t < time)[:, None] & mask_d[None, :]
        inside_n = (t < time)[:, None] & mask_n[None, :]

        first = (local == 0)[:, None, None]

        # The gradient of each state, in reverse: G_t = C_t dy_t + keep_{t+1} G_{t+1}; g comes from the chunk after.
        # What it alone is needed for is done before the states are found: both do not fit the registers.
        C = tl.load(C_ptr + (base + t)[:, None] * state_dim + n[None, :], mask=inside_n, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + (base + t)[:, None] * num_channels + d[None, :], mask=inside, other=0.0).to(tl.float32)
        _, keep_after = _keep(delta_ptr, resets_ptr, A, base, time, t + 1, d, num_channels, HAS_RESETS)
        last = (local == BLOCK_T - 1)[:, None, None]
        carried, gathered = tl.associative_scan(
            (tl.where(last, 1.0, keep_after), dy[:, :, None] * C[:, None, :]), 0, combine, reverse=True
        )
        G = carried * g[None, :, :] + gathered
        delta, keep = _keep(delta_ptr, resets_ptr, A, base, time, t, d, num_channels, HAS_RESETS)
        u, B, _ = _write(delta, u_ptr, B_ptr, base, time, t, d, n, num_channels, state_dim)
        g = tl.sum(tl.where(first, keep * G, 0.0), axis=0)
        dB = tl.sum(G * (delta * u)[:, :, None], axis=1)
        tl.store(dB_ptr + (partial + t)[:, None] * state_dim + n[None, :], dB, mask=inside_n)
        dwritten = tl.sum(G * B[:, None, :], axis=2)
        position = (base + t)[:, None] * num_channels + d[None, :]
        tl.store(du_ptr + position, (dwritten * delta).to(du_ptr.dtype.element_ty), mask=inside)

        # The state before each step: the scan over the steps one earlier, the chunk's first being the identity.
        delta_before, keep_before = _keep(delta_ptr, resets_ptr, A, base, time, t - 1, d, num_channels, HAS_RESETS)
        _, _, write_before = _write(delta_before, u_ptr, B_ptr, base, time, t - 1, d, n, num_channels, state_dim)
        kept, written = tl.associative_scan(
            (tl.where(first, 1.0, keep_before), tl.where(first, 0.0, write_before)), 0, combine
        )
        decayed = keep * (kept * start[None, :, :] + written)
        dC = tl.sum(decayed * dy[:, :, None], axis=1) + tl.sum(delta * u * dy, axis=1)[:, None] * B
        tl.store(dC_ptr + (partial + t)[:, None] * state_dim + n[None, :], dC, mask=inside_n)
        dlog = G * decayed
        ddelta = dwritten * u + tl.sum(dlog * A[None, :, :], axis=2)
        tl.store(ddelta_ptr + position, ddelta.to(ddelta_ptr.dtype.element_ty), mask=inside)
        dA += tl.sum(dlog * delta[:, :, None], axis=0)
    tl.store(dA_ptr + row * num_channels * state_dim + cell, dA, mask=mask)
    tl.store(dstate_ptr + row * num_channels * state_dim + cell, g, mask=mask)


def blocks(A: Tensor) -> tuple[int, int]:
    """Channels and padded state_dim of one program."""
    padded = triton.next_power_of_2(A.shape[1])
    return min(max(BLOCK_ELEMENTS // padded, 1), triton.next_power_of_2(A.shape[0])), padded


def shape_of_starts(u: Tensor, A: Tensor) -> tuple[int, ...]:
    """Of the states before each chunk: (batch, chunks, channels, state_dim)."""
    return u.shape[0], triton.cdiv(u.shape[1], BLOCK_TIME), *A.shape


def forward(inputs: Inputs, state: Tensor, resets: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Output, final state, and the states before each chunk (batch, chunks, channels, state_dim), all contiguous."""
    u, delta, A, B, C, state = (tensor.contiguous() for tensor in (*inputs, state))
    batch, time, channels = u.shape
    output, final = torch.empty_like(u), torch.empty_like(state)
    starts = state.new_empty(shape_of_starts(u, A))
    block_d, block_n = blocks(A)
    _forward_kernel[(batch, triton.cdiv(channels, block_d))](
        u, delta, A, B, C, state, as_bytes(resets), output, final, starts, time, channels, A.shape[1], starts.shape[1],
        HAS_RESETS=resets is not None, BLOCK_T=BLOCK_TIME, BLOCK_D=block_d, BLOCK_N=block_n,
    )  # fmt: skip
    return output, final, starts


def backward(
    grad_output: Tensor, grad_state: Tensor, inputs: Inputs, resets: Tensor | None, starts: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u, delta, A, B, C and the initial state, in the dtypes of their tensors."""
    grad_output, grad_state = grad_output.contiguous(), grad_state.contiguous()
    u, delta, A, B, C = (tensor.contiguous() for tensor in inputs)
    batch, time, channels = u.shape
    block_d, block_n = blocks(A)
    programs = triton.cdiv(channels, block_d)
    grad_u, grad_delta = torch.empty_like(u), torch.empty_like(delta)
    grad_A = starts.new_empty(batch, *A.shape)
    grad_B, grad_C = starts.new_empty(2, programs, *B.shape)
    grad_initial = torch.empty_like(grad_state)
    _backward_kernel[(batch, programs)](
        grad_output, grad_state, u, delta, A, B, C, as_bytes(resets), starts,
        grad_u, grad_delta, grad_A, grad_B, grad_C, grad_initial, time, channels, A.shape[1], starts.shape[1],
        HAS_RESETS=resets is not None, BLOCK_T=BLOCK_TIME, BLOCK_D=block_d, BLOCK_N=block_n,
    )  # fmt: skip
    return (
        grad_u,
        grad_delta,
        grad_A.sum(0).to(A.dtype),
        grad_B.sum(0).to(B.dtype),
        grad_C.sum(0).to(C.dtype),
        grad_initial,
    )
