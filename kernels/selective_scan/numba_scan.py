"""The selective scan for CPUs: the recurrence itself, token by token, many channels of a sequence in vector registers.

The backward walks segments of the sequence from the last to the first, each forward once more from the state before it,
which is all that the forward keeps; states and factors of a segment stay in the cache.
"""

# mypy: disable-error-code="no-untyped-def"

import torch
from torch import Tensor

from kernels.cpu import kernel, most_threads, rows, run
from kernels.cpu_functions import ZERO, count, exp, flags, given, row, share, thread

CHANNELS_AT_ONCE = 64
SEGMENT_STEPS = 32

TIME, CHANNELS, STATE_DIM, U, DELTA, A, B, C, RESETS, STARTS = range(10)
"""Arguments of both kernels: `A` (state_dim, channels); `STARTS` (segments, batch, state_dim, channels)."""
STATE, Y = range(10, 12)
"""Of the forward. `STATE` (batch, state_dim, channels): before the first token, and then after the last."""
GRAD_Y, GRAD_STATE, GRAD_U, GRAD_DELTA, GRAD_A, GRAD_B, GRAD_C, STATES, KEEPS = range(10, 19)
"""Of the backward. `GRAD_A` (batch, state_dim, channels); `GRAD_B`, `GRAD_C` (blocks, batch, time, state_dim);
`STATES` after each step of a segment, and `KEEPS`, the factors (thread, segment steps, state_dim, channels at once)."""


def shape_of_starts(u: Tensor, A: Tensor) -> tuple[int, ...]:
    """Of the states before each segment: (segments, batch, state_dim, channels)."""
    return -(-u.shape[1] // SEGMENT_STEPS), u.shape[0], A.shape[1], A.shape[0]


@kernel
def _forward(table):
    first, last = share(table)
    time, channels, state_dim = count(table, TIME), count(table, CHANNELS), count(table, STATE_DIM)
    blocks = (channels + CHANNELS_AT_ONCE - 1) // CHANNELS_AT_ONCE
    for piece in range(first, last):
        sequence, begin = piece // blocks, piece % blocks * CHANNELS_AT_ONCE
        end = min(begin + CHANNELS_AT_ONCE, channels)
        for t in range(time):
            if t % SEGMENT_STEPS == 0:
                for n in range(state_dim):
                    h, start = row(table, STATE, sequence, n), row(table, STARTS, t // SEGMENT_STEPS, sequence, n)
                    for d in range(begin, end):
                        start[d] = h[d]
            if given(table, RESETS) and flags(table, RESETS, sequence)[t]:
                for n in range(state_dim):
                    h = row(table, STATE, sequence, n)
                    for d in range(begin, end):
                        h[d] = ZERO
            u, delta, y = row(table, U, sequence, t), row(table, DELTA, sequence, t), row(table, Y, sequence, t)
            for d in range(begin, end):
                y[d] = ZERO
            for n in range(state_dim):
                a, h = row(table, A, n), row(table, STATE, sequence, n)
                b, c = row(table, B, sequence, t)[n], row(table, C, sequence, t)[n]
                for d in range(begin, end):
                    h[d] = exp(delta[d] * a[d]) * h[d] + delta[d] * u[d] * b
                    y[d] += c * h[d]


@kernel
def _backward(table):
    first, last = share(table)
    time, channels, state_dim = count(table, TIME), count(table, CHANNELS), count(table, STATE_DIM)
    blocks = (channels + CHANNELS_AT_ONCE - 1) // CHANNELS_AT_ONCE
    segments, mine = (time + SEGMENT_STEPS - 1) // SEGMENT_STEPS, thread()
    for piece in range(first, last):
        sequence, block = piece // blocks, piece % blocks
        begin = block * CHANNELS_AT_ONCE
        width = min(CHANNELS_AT_ONCE, channels - begin)
        for segment in range(segments - 1, -1, -1):
            start, stop = segment * SEGMENT_STEPS, min(time, (segment + 1) * SEGMENT_STEPS)
            for t in range(start, stop):
                known = not (given(table, RESETS) and flags(table, RESETS, sequence)[t])
                u, delta = row(table, U, sequence, t), row(table, DELTA, sequence, t)
                for n in range(state_dim):
                    a, b = row(table, A, n), row(table, B, sequence, t)[n]
                    before = row(table, STATES, mine, t - 1 - start, n)
                    offset = 0
                    if t == start:
                        before, offset = row(table, STARTS, segment, sequence, n), begin
                    state, keep = row(table, STATES, mine, t - start, n), row(table, KEEPS, mine, t - start, n)
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
                u, delta = row(table, U, sequence, t), row(table, DELTA, sequence, t)
                grad_y = row(table, GRAD_Y, sequence, t)
                grad_u, grad_delta = row(table, GRAD_U, sequence, t), row(table, GRAD_DELTA, sequence, t)
                for d in range(begin, begin + width):  # first those of delta u and of delta A
                    grad_u[d], grad_delta[d] = ZERO, ZERO
                for n in range(state_dim):
                    a, b, c = row(table, A, n), row(table, B, sequence, t)[n], row(table, C, sequence, t)[n]
                    before = row(table, STATES, mine, t - 1 - start, n)
                    offset = 0
                    if t == start:
                        before, offset = row(table, STARTS, segment, sequence, n), begin
                    state, keep = row(table, STATES, mine, t - start, n), row(table, KEEPS, mine, t - start, n)
                    g, grad_a = row(table, GRAD_STATE, sequence, n), row(table, GRAD_A, sequence, n)
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
                    row(table, GRAD_C, block, sequence, t)[n] = read
                    row(table, GRAD_B, block, sequence, t)[n] = written
                for d in range(begin, begin + width):
                    grad_delta[d] += grad_u[d] * u[d]
                    grad_u[d] *= delta[d]


def _shared(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, resets: Tensor | None, starts: Tensor
) -> tuple[int | Tensor | None, ...]:
    seen = None if resets is None else rows(resets)
    return (*u.shape[1:], A.shape[1], rows(u), rows(delta), A.t().contiguous(), rows(B), rows(C), seen, starts)


def _blocks(u: Tensor) -> int:
    return -(-u.shape[2] // CHANNELS_AT_ONCE)


def forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, resets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Output (batch, time, channels), final state, and the states before each segment."""
    y = torch.empty_like(u, memory_format=torch.contiguous_format)
    h = state.transpose(1, 2).clone(memory_format=torch.contiguous_format)
    starts = state.new_empty(shape_of_starts(u, A))
    run(_forward, u.shape[0] * _blocks(u), *_shared(u, delta, A, B, C, resets, starts), h, y)
    return y, h.transpose(1, 2).contiguous(), starts


def backward(
    grad_y: Tensor,
    grad_state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    resets: Tensor | None,
    starts: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u, delta, A, B, C and the initial state."""
    blocks, pieces = _blocks(u), u.shape[0] * _blocks(u)
    grad_u, grad_delta = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (u, delta))
    g = grad_state.transpose(1, 2).clone(memory_format=torch.contiguous_format)
    grad_A, grad_B, grad_C = torch.zeros_like(g), *B.new_empty(2, blocks, *B.shape)
    states, keeps = u.new_empty(2, most_threads(), SEGMENT_STEPS, A.shape[1], CHANNELS_AT_ONCE)
    run(
        _backward, pieces, *_shared(u, delta, A, B, C, resets, starts),
        rows(grad_y), g, grad_u, grad_delta, grad_A, grad_B, grad_C, states, keeps,
    )  # fmt: skip
    return (
        grad_u,
        grad_delta,
        grad_A.sum(0).t().contiguous(),
        grad_B.sum(0),
        grad_C.sum(0),
        g.transpose(1, 2).contiguous(),
    )
