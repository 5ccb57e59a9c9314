"""Linear attention with a decay per key channel for CPUs: the recurrence itself, token by token, a head at a time.

A head's state stays in the caches and is touched once a token: no more arithmetic than the products of chunks, and no
pairs of tokens. The backward walks chunks from the last to the first, each forward once more from the state before it,
COLUMNS of the values at a time, so that the states of a chunk stay in the cache too.
"""

# mypy: disable-error-code="no-untyped-def"

import torch
from torch import Tensor

from kernels.cpu import kernel, most_threads, rows, run
from kernels.cpu.functions import ZERO, clear_row, copy_row, exp, given, row, thread
from kernels.cpu.table import Flags, Rows
from kernels.gated_linear_attention.reference import CHUNK, Inputs

COLUMNS = 64
"""Columns of a head's state that the backward takes at a time."""


@kernel
def _forward(
    first, last, heads: int, time: int, key_dim: int, value_dim: int, qs: Rows, ks: Rows, vs: Rows, gs: Rows,
    bonuses: Rows | None, resets: Flags | None, starts: Rows, states: Rows, outputs: Rows,
):  # fmt: skip
    """`starts` (chunks, batch * heads, key_dim, value_dim); `states` (batch * heads, key_dim, value_dim): the initial
    ones, and then the final ones.
    """
    for piece in range(first, last):
        sequence, head = piece // heads, piece % heads
        for t in range(time):
            if t % CHUNK == 0:
                for i in range(key_dim):
                    copy_row(row(starts, t // CHUNK, piece, i), row(states, piece, i), 0, value_dim)
            if given(resets) and row(resets, sequence)[t]:
                for i in range(key_dim):
                    clear_row(row(states, piece, i), 0, value_dim)
            q, k = row(qs, sequence, t, head), row(ks, sequence, t, head)
            g, v = row(gs, sequence, t, head), row(vs, sequence, t, head)
            o = row(outputs, sequence, t, head)
            own = ZERO
            if given(bonuses):
                u = row(bonuses, head)
                for i in range(key_dim):
                    own += q[i] * u[i] * k[i]
            for j in range(value_dim):
                o[j] = own * v[j]
            for i in range(key_dim):
                state, decay, q_i, k_i = row(states, piece, i), exp(g[i]), q[i], k[i]
                if given(bonuses):
                    for j in range(value_dim):
                        o[j] += q_i * state[j]
                        state[j] = decay * state[j] + k_i * v[j]
                else:
                    for j in range(value_dim):
                        state[j] = decay * state[j] + k_i * v[j]
                        o[j] += q_i * state[j]


@kernel
def _backward(
    first, last, heads: int, time: int, key_dim: int, value_dim: int, qs: Rows, ks: Rows, vs: Rows, gs: Rows,
    bonuses: Rows | None, resets: Flags | None, starts: Rows, grad_outputs: Rows, grad_states: Rows, grad_qs: Rows,
    grad_ks: Rows, grad_vs: Rows, grad_gs: Rows, grad_bonuses: Rows | None, before: Rows,
):  # fmt: skip
    """`grad_qs`, `grad_ks` and `grad_gs` are zeros at first; `grad_bonuses` (batch * heads, key_dim) likewise.

    `grad_states`: of the final ones, and then of the initial ones; `before` (thread, CHUNK, key_dim, COLUMNS): the
    state before each token of a chunk.
    """
    mine, chunks = thread(), (time + CHUNK - 1) // CHUNK
    for piece in range(first, last):
        sequence, head = piece // heads, piece % heads
        for left in range(0, value_dim, COLUMNS):
            width = min(COLUMNS, value_dim - left)
            for c in range(chunks - 1, -1, -1):
                begin, end = c * CHUNK, min(time, (c + 1) * CHUNK)
                for i in range(key_dim):
                    start, kept = row(starts, c, piece, i), row(before, mine, 0, i)
                    for j in range(width):
                        kept[j] = start[left + j]
                for t in range(begin, end):
                    forget = given(resets) and row(resets, sequence)[t] != 0
                    k, g, v = row(ks, sequence, t, head), row(gs, sequence, t, head), row(vs, sequence, t, head)
                    for i in range(key_dim):
                        kept = row(before, mine, t - begin, i)
                        if forget:
                            clear_row(kept, 0, width)
                        if t + 1 < end:
                            following, decay, k_i = row(before, mine, t - begin + 1, i), exp(g[i]), k[i]
                            for j in range(width):
                                following[j] = decay * kept[j] + k_i * v[left + j]
                for t in range(end - 1, begin - 1, -1):
                    forget = given(resets) and row(resets, sequence)[t] != 0
                    q, k = row(qs, sequence, t, head), row(ks, sequence, t, head)
                    g, v = row(gs, sequence, t, head), row(vs, sequence, t, head)
                    grad_q, grad_k = row(grad_qs, sequence, t, head), row(grad_ks, sequence, t, head)
                    grad_g, grad_v = row(grad_gs, sequence, t, head), row(grad_vs, sequence, t, head)
                    grad_o = row(grad_outputs, sequence, t, head)
                    through, own = ZERO, ZERO
                    if given(bonuses):
                        u, grad_u = row(bonuses, head), row(grad_bonuses, piece)
                        for j in range(width):
                            through += v[left + j] * grad_o[left + j]
                        for i in range(key_dim):
                            own += q[i] * u[i] * k[i]
                            grad_u[i] += q[i] * k[i] * through
                            grad_q[i] += u[i] * k[i] * through
                            grad_k[i] += u[i] * q[i] * through
                    for j in range(width):
                        grad_v[left + j] = own * grad_o[left + j]
                    for i in range(key_dim):
                        kept, grad = row(before, mine, t - begin, i), row(grad_states, piece, i)
                        decay, q_i, k_i = exp(g[i]), q[i], k[i]
                        of_q, of_k, of_g = ZERO, ZERO, ZERO
                        if given(bonuses):
                            for j in range(width):
                                into, of_o = grad[left + j], grad_o[left + j]
                                of_q += kept[j] * of_o
                                of_k += into * v[left + j]
                                grad_v[left + j] += k_i * into
                                of_g += into * decay * kept[j]
                                grad[left + j] = decay * into + q_i * of_o
                        else:
                            for j in range(width):
                                of_o = grad_o[left + j]
                                into = grad[left + j] + q_i * of_o
                                old = decay * kept[j]
                                of_q += (old + k_i * v[left + j]) * of_o
                                of_k += into * v[left + j]
                                grad_v[left + j] += k_i * into
                                of_g += into * old
                                grad[left + j] = decay * into
                        grad_q[i] += of_q
                        grad_k[i] += of_k
                        grad_g[i] += of_g
                        if forget:
                            clear_row(grad, left, left + width)


def forward(inputs: Inputs, state: Tensor, resets: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Output (batch, time, heads, value_dim), final state, and the states before each chunk."""
    q, k, v, g, bonus = inputs
    batch, time, heads, key_dim = q.shape
    o = torch.empty_like(v, memory_format=torch.contiguous_format)
    final = state.clone(memory_format=torch.contiguous_format)
    starts = state.new_empty(-(-time // CHUNK), *state.shape)
    run(
        _forward, batch * heads, heads=heads, time=time, key_dim=key_dim, value_dim=v.shape[-1], qs=rows(q),
        ks=rows(k), vs=rows(v), gs=rows(g), bonuses=None if bonus is None else rows(bonus),
        resets=None if resets is None else rows(resets), starts=starts.flatten(1, 2), states=final.flatten(0, 1),
        outputs=o,
    )  # fmt: skip
    return o, final, starts


def backward(
    grad_o: Tensor, grad_state: Tensor, inputs: Inputs, resets: Tensor | None, starts: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, g, the bonus (empty without one) and the initial state."""
    q, k, v, g, bonus = inputs
    batch, time, heads, key_dim = q.shape
    grad_q, grad_k, grad_g = (torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (q, k, g))
    grad_v = torch.empty_like(v, memory_format=torch.contiguous_format)
    grad_initial = grad_state.clone(memory_format=torch.contiguous_format)
    by_sequence = None if bonus is None else bonus.new_zeros(batch * heads, key_dim)
    before = q.new_empty(most_threads(), CHUNK, key_dim, COLUMNS)
    run(
        _backward, batch * heads, heads=heads, time=time, key_dim=key_dim, value_dim=v.shape[-1], qs=rows(q),
        ks=rows(k), vs=rows(v), gs=rows(g), bonuses=None if bonus is None else rows(bonus),
        resets=None if resets is None else rows(resets), starts=starts.flatten(1, 2), grad_outputs=rows(grad_o),
        grad_states=grad_initial.flatten(0, 1), grad_qs=grad_q, grad_ks=grad_k, grad_vs=grad_v, grad_gs=grad_g,
        grad_bonuses=by_sequence, before=before,
    )  # fmt: skip
    grad_bonus = q.new_empty(0) if by_sequence is None else by_sequence.view(batch, heads, key_dim).sum(0)
    return grad_q, grad_k, grad_v, grad_g, grad_bonus, grad_initial
