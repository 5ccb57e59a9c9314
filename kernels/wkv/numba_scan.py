"""WKV for CPUs: the recurrence itself, token by token, many channels of a sequence in vector registers.

Of two weights that share a scale, one is 1: a step has two exponentials. The backward walks segments of the sequence
from the last to the first, each forward once more from the state before it, which is all that the forward keeps.
"""

# mypy: disable-error-code="no-untyped-def"

import numpy as np
import torch
from torch import Tensor

from kernels.cpu import kernel, most_threads, pieces_of, rows, run
from kernels.cpu.functions import ONE, ZERO, exp, f32, given, inlined, own_channels, row, thread
from kernels.cpu.table import Flags, Rows
from kernels.wkv.reference import NOTHING, Inputs

CHANNELS_AT_ONCE = 64
SEGMENT_STEPS = 64


EMPTY, INFINITE, NAN = f32(NOTHING), f32(np.inf), f32(np.nan)


def num_segments(k: Tensor) -> int:
    """How many segments a sequence has."""
    return -(-k.shape[1] // SEGMENT_STEPS)


@inlined
def weights(left, right):
    """e^left and e^right relative to the larger of both, and the larger exponent; NaN where that is infinite."""
    ahead = left - right
    less = exp(-abs(ahead))
    largest = left if ahead >= ZERO else right
    one = ONE if largest < INFINITE else NAN
    return (one, less, largest) if ahead >= ZERO else (less, one, largest)


@kernel
def _forward(
    first, last, time: int, channels: int, ks: Rows, vs: Rows, decays: Rows, bonuses: Rows, resets: Flags | None,
    starts: Rows, state: Rows, ys: Rows,
):  # fmt: skip
    """`ks`, `vs` and `ys` (batch, time, channels); `starts` (segments, 3, batch, channels).

    `state` (3, batch, channels): before the first token, and then after the last.
    """
    decay, bonus = row(decays), row(bonuses)
    for piece in range(first, last):
        sequence, begin, end = own_channels(piece, channels, CHANNELS_AT_ONCE)
        a, b, m = row(state, 0, sequence), row(state, 1, sequence), row(state, 2, sequence)
        for t in range(time):
            if t % SEGMENT_STEPS == 0:
                segment = t // SEGMENT_STEPS
                a_start, b_start = row(starts, segment, 0, sequence), row(starts, segment, 1, sequence)
                m_start = row(starts, segment, 2, sequence)
                for d in range(begin, end):
                    a_start[d], b_start[d], m_start[d] = a[d], b[d], m[d]
            if given(resets) and row(resets, sequence)[t]:
                for d in range(begin, end):
                    a[d], b[d], m[d] = ZERO, ZERO, EMPTY
            k, v, y = row(ks, sequence, t), row(vs, sequence, t), row(ys, sequence, t)
            for d in range(begin, end):
                past, present, _ = weights(m[d], bonus[d] + k[d])
                y[d] = (past * a[d] + present * v[d]) / (past * b[d] + present)
                keep, write, m[d] = weights(m[d] + decay[d], k[d])
                a[d] = keep * a[d] + write * v[d]
                b[d] = keep * b[d] + write


@kernel
def _backward(
    first, last, time: int, channels: int, ks: Rows, vs: Rows, decays: Rows, bonuses: Rows, resets: Flags | None,
    starts: Rows, grad_ys: Rows, grad_state: Rows, grad_ks: Rows, grad_vs: Rows, grad_decays: Rows, grad_bonuses: Rows,
    before: Rows,
):  # fmt: skip
    """As `_forward`; `grad_decays` and `grad_bonuses` (batch, channels).

    `before` (thread, segment steps, 3, channels at once): the state before each step of a segment.
    """
    segments, mine = (time + SEGMENT_STEPS - 1) // SEGMENT_STEPS, thread()
    decay, bonus = row(decays), row(bonuses)
    for piece in range(first, last):
        sequence, begin, end = own_channels(piece, channels, CHANNELS_AT_ONCE)
        grad_a, grad_b = row(grad_state, 0, sequence), row(grad_state, 1, sequence)
        grad_decay, grad_bonus = row(grad_decays, sequence), row(grad_bonuses, sequence)
        for segment in range(segments - 1, -1, -1):
            start, stop = segment * SEGMENT_STEPS, min(time, (segment + 1) * SEGMENT_STEPS)
            a_start, b_start = row(starts, segment, 0, sequence), row(starts, segment, 1, sequence)
            m_start = row(starts, segment, 2, sequence)
            a, b, m = row(before, mine, 0, 0), row(before, mine, 0, 1), row(before, mine, 0, 2)
            for d in range(begin, end):
                a[d - begin], b[d - begin], m[d - begin] = a_start[d], b_start[d], m_start[d]
            for t in range(start, stop):
                step = t - start
                a, b = row(before, mine, step, 0), row(before, mine, step, 1)
                m = row(before, mine, step, 2)
                if given(resets) and row(resets, sequence)[t]:
                    for d in range(end - begin):
                        a[d], b[d], m[d] = ZERO, ZERO, EMPTY
                if t + 1 == stop:
                    break
                a_next, b_next = row(before, mine, step + 1, 0), row(before, mine, step + 1, 1)
                m_next = row(before, mine, step + 1, 2)
                k, v = row(ks, sequence, t), row(vs, sequence, t)
                for d in range(end - begin):
                    c = begin + d
                    keep, write, m_next[d] = weights(m[d] + decay[c], k[c])
                    a_next[d] = keep * a[d] + write * v[c]
                    b_next[d] = keep * b[d] + write
            for t in range(stop - 1, start - 1, -1):
                a, b = row(before, mine, t - start, 0), row(before, mine, t - start, 1)
                m = row(before, mine, t - start, 2)
                k, v = row(ks, sequence, t), row(vs, sequence, t)
                grad_y = row(grad_ys, sequence, t)
                grad_k, grad_v = row(grad_ks, sequence, t), row(grad_vs, sequence, t)
                known = ONE  # whether anything before the token reaches it
                if given(resets) and row(resets, sequence)[t]:
                    known = ZERO
                for d in range(end - begin):
                    c = begin + d
                    past, present, _ = weights(m[d], bonus[c] + k[c])
                    keep, write, _ = weights(m[d] + decay[c], k[c])
                    denominator = past * b[d] + present
                    y = (past * a[d] + present * v[c]) / denominator
                    p = grad_y[c] / denominator
                    own = p * present
                    surplus = own * (v[c] - y)
                    grad_v[c] = own + write * grad_a[c]
                    grad_k[c] = surplus + write * (grad_b[c] + grad_a[c] * v[c])
                    grad_bonus[c] += surplus
                    grad_decay[c] += keep * (grad_a[c] * a[d] + grad_b[c] * b[d])
                    grad_a[c] = known * (past * p + keep * grad_a[c])
                    grad_b[c] = known * (keep * grad_b[c] - past * p * y)


def forward(inputs: Inputs, state: Tensor, resets: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Output (batch, time, channels), final state (3, batch, channels), and the states before each segment."""
    k, v, decay, bonus = inputs
    y, final = torch.empty_like(v, memory_format=torch.contiguous_format), state.clone()
    starts = state.new_empty(num_segments(k), *state.shape)
    run(
        _forward, pieces_of(k, CHANNELS_AT_ONCE), time=k.shape[1], channels=k.shape[2], ks=rows(k), vs=rows(v),
        decays=rows(decay), bonuses=rows(bonus), resets=None if resets is None else rows(resets), starts=starts,
        state=final, ys=y,
    )  # fmt: skip
    return y, final, starts


def backward(
    grad_y: Tensor, grad_state: Tensor, inputs: Inputs, resets: Tensor | None, starts: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of k, v, decay, bonus and the initial state (3, batch, channels; 0 for the scale)."""
    k, v, decay, bonus = inputs
    batch, time, channels = k.shape
    grad_k, grad_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (k, v))
    grad_initial = grad_state.clone(memory_format=torch.contiguous_format)
    grad_decay, grad_bonus = k.new_zeros(2, batch, channels)
    before = k.new_empty(most_threads(), SEGMENT_STEPS, 3, CHANNELS_AT_ONCE)
    run(
        _backward, pieces_of(k, CHANNELS_AT_ONCE), time=time, channels=channels, ks=rows(k), vs=rows(v),
        decays=rows(decay), bonuses=rows(bonus), resets=None if resets is None else rows(resets), starts=starts,
        grad_ys=rows(grad_y), grad_state=grad_initial, grad_ks=grad_k, grad_vs=grad_v, grad_decays=grad_decay,
        grad_bonuses=grad_bonus, before=before,
    )  # fmt: skip
    grad_initial[2].zero_()
    return grad_k, grad_v, grad_decay.sum(0), grad_bonus.sum(0), grad_initial
