"""The selective scan for CPUs: the recurrence itself, token by token, many channels of a sequence in vector registers.

The backward walks segments of the sequence from the last to the first, each forward once more from the state before it,
which is all that the forward keeps; states and factors of a segment stay in the cache.
"""

# mypy: disable-error-code="no-untyped-def"

import torch
from torch import Tensor

from kernels.cpu import kernel, most_threads, pieces_of, rows, run
from kernels.cpu.functions import ZERO, clear_row, copy_row, exp, given, own_channels, row, thread
from kernels.cpu.table import Argument, Flags, Rows
from kernels.selective_scan.reference import Inputs

CHANNELS_AT_ONCE = 64
SEGMENT_STEPS = 32


def shape_of_starts(u: Tensor, A: Tensor) -> tuple[int, ...]:
    """Of the states before each segment: (segments, batch, state_dim, channels)."""
    return -(-u.shape[1] // SEGMENT_STEPS), u.shape[0], A.shape[1], A.shape[0]


@kernel
def _forward(
    first, last, time: int, channels: int, state_dim: int, us: Rows, deltas: Rows, A: Rows, B: Rows, C: Rows,
    resets: Flags | None, starts: Rows, state: Rows, ys: Rows,
):  # fmt: skip
    """`us`, `deltas` and `ys` (batch, time, channels); `A` (state_dim, channels); `B` and `C` (batch, time, state_dim).

    `starts` (segments, batch, state_dim, channels); `state` (batch, state_dim, channels): before the first token, and
    then after the last.
    """
    for piece in range(first, last):
        sequence, begin, end = own_channels(piece, channels, CHANNELS_AT_ONCE)
        for t in range(time):
            if t % SEGMENT_STEPS == 0:
                for n in range(state_dim):
                    copy_row(row(starts, t // SEGMENT_STEPS, sequence, n), row(state, sequence, n), begin, end)
            if given(resets) and row(resets, sequence)[t]:
                for n in range(state_dim):
                    clear_row(row(state, sequence, n), begin, end)
            u, delta, y = row(us, sequence, t), row(deltas, sequence, t), row(ys, sequence, t)
            clear_row(y, begin, end)
            for n in range(state_dim):
                a, h = row(A, n), row(state, sequence, n)
                b, c = row(B, sequence, t)[n], row(C, sequence, t)[n]
                for d in range(begin, end):
                    h[d] = exp(delta[d] * a[d]) * h[d] + delta[d] * u[d] * b
                    y[d] += c * h[d]


@kernel
def _backward(
    first, last, time: int, channels: int, state_dim: int, us: Rows, deltas: Rows, A: Rows, B: Rows, C: Rows,
    resets: Flags | None, starts: Rows, grad_ys: Rows, grad_state: Rows, grad_us: Rows, grad_deltas: Rows, grad_A: Rows,
    grad_B: Rows, grad_C: Rows, states: Rows, keeps: Rows,
):  # fmt: skip
    """As `_forward`; `grad_A` (batch, state_dim, channels), `grad_B` and `grad_C` (blocks, batch, time, state_dim).

    `states` after each step of a segment and `keeps`, the factors: (threads, segment steps, state_dim, channels at
    once).
    """
    blocks = (channels + CHANNELS_AT_ONCE - 1) // CHANNELS_AT_ONCE
    segments, mine = (time + SEGMENT_STEPS - 1) // SEGMENT_STEPS, thread()
    for piece in range(first, last):
        sequence, block = piece // blocks, piece % blocks
        begin = block * CHANNELS_AT_ONCE
        width = min(CHANNELS_AT_ONCE, channels - begin)
        for segment in range(segments - 1, -1, -1):
            start, stop = segment * SEGMENT_STEPS, min(time, (segment + 1) * SEGMENT_STEPS)
            for t in range(start, stop):
                known = not (given(resets) and row(resets, sequence)[t])
                u, delta = row(us, sequence, t), row(deltas, sequence, t)
                for n in range(state_dim):
                    a, b = row(A, n), row(B, sequence, t)[n]
                    before = row(states, mine, t - 1 - start, n)
                    offset = 0
                    if t == start:
                        before, offset = row(starts, segment, sequence, n), begin
                    state, keep = row(states, mine, t - start, n), row(keeps, mine, t - start, n)
                    if known:
                        for d in range(width):
                            factor = exp(delta[begin + d] * a[begin + d])
                            keep[d] = factor
                            state[d] = factor * before[offset + d] + delta[begin + d] * u[begin + d] * b
                    else:
                        for d in range(width):
                            keep[d] = ZERO
                            state[d] = delta[begin + d] * u[begin + d] * b
            for t in range(stop - 1, start - 1, -1):
                u, delta = row(us, sequence, t), row(deltas, sequence, t)
                grad_y = row(grad_ys, sequence, t)
                grad_u, grad_delta = row(grad_us, sequence, t), row(grad_deltas, sequence, t)
                for d in range(begin, begin + width):  # first those of delta u and of delta A
                    grad_u[d], grad_delta[d] = ZERO, ZERO
                for n in range(state_dim):
                    a, b, c = row(A, n), row(B, sequence, t)[n], row(C, sequence, t)[n]
                    before = row(states, mine, t - 1 - start, n)
                    offset = 0
                    if t == start:
                        before, offset = row(starts, segment, sequence, n), begin
                    state, keep = row(states, mine, t - start, n), row(keeps, mine, t - start, n)
                    g, grad_a = row(grad_state, sequence, n), row(grad_A, sequence, n)
                    read, written = ZERO, ZERO
                    for d in range(width):
                        e = begin + d
                        grad = g[e] + c * grad_y[e]
                        read += state[d] * grad_y[e]
                        written += grad * delta[e] * u[e]
                        kept = grad * keep[d]
                        log = kept * before[offset + d]
                        g[e] = kept
                        grad_u[e] += grad * b
                        grad_delta[e] += log * a[e]
                        grad_a[e] += log * delta[e]
                    row(grad_C, block, sequence, t)[n] = read
                    row(grad_B, block, sequence, t)[n] = written
                for d in range(begin, begin + width):
                    grad_delta[d] += grad_u[d] * u[d]
                    grad_u[d] *= delta[d]


def _shared(inputs: Inputs, resets: Tensor | None, starts: Tensor) -> dict[str, Argument]:
    u, delta, A, B, C = inputs
    seen = None if resets is None else rows(resets)
    sizes = {"time": u.shape[1], "channels": u.shape[2], "state_dim": A.shape[1]}
    operands = {"us": rows(u), "deltas": rows(delta), "A": A.t().contiguous(), "B": rows(B), "C": rows(C)}
    return {**sizes, **operands, "resets": seen, "starts": starts}


def forward(inputs: Inputs, state: Tensor, resets: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Output (batch, time, channels), final state, and the states before each segment."""
    u = inputs.u
    y = torch.empty_like(u, memory_format=torch.contiguous_format)
    h = state.transpose(1, 2).clone(memory_format=torch.contiguous_format)
    starts = state.new_empty(shape_of_starts(u, inputs.A))
    run(_forward, pieces_of(u, CHANNELS_AT_ONCE), **_shared(inputs, resets, starts), state=h, ys=y)
    return y, h.transpose(1, 2).contiguous(), starts


def backward(
    grad_y: Tensor, grad_state: Tensor, inputs: Inputs, resets: Tensor | None, starts: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u, delta, A, B, C and the initial state."""
    u, delta, A, B, _ = inputs
    blocks = -(-u.shape[2] // CHANNELS_AT_ONCE)
    grad_u, grad_delta = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (u, delta))
    g = grad_state.transpose(1, 2).clone(memory_format=torch.contiguous_format)
    grad_A, grad_B, grad_C = torch.zeros_like(g), *B.new_empty(2, blocks, *B.shape)
    states, keeps = u.new_empty(2, most_threads(), SEGMENT_STEPS, A.shape[1], CHANNELS_AT_ONCE)
    run(
        _backward, u.shape[0] * blocks, **_shared(inputs, resets, starts), grad_ys=rows(grad_y), grad_state=g,
        grad_us=grad_u, grad_deltas=grad_delta, grad_A=grad_A, grad_B=grad_B, grad_C=grad_C, states=states, keeps=keeps,
    )  # fmt: skip
    return (
        grad_u,
        grad_delta,
        grad_A.sum(0).t().contiguous(),
        grad_B.sum(0),
        grad_C.sum(0),
        g.transpose(1, 2).contiguous(),
    )
