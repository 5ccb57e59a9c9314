"""The generalised delta rule for CPUs: the recurrence itself, token by token, a head at a time.

As linear attention's kernels: a head's state stays in the caches, and the backward recomputes the states of a chunk,
COLUMNS of the values at a time. Nothing is solved: a token reads what the one before it left.
"""

# mypy: disable-error-code="no-untyped-def"

import torch
from torch import Tensor

from kernels.cpu import kernel, most_threads, rows, run
from kernels.cpu.functions import ZERO, clear_row, copy_row, exp, given, row, thread
from kernels.cpu.table import Flags, Rows
from kernels.delta_rule.reference import Inputs
from kernels.gated_linear_attention.numba_scan import COLUMNS
from kernels.gated_linear_attention.reference import CHUNK


@kernel
def _forward(
    first, last, heads: int, time: int, key_dim: int, value_dim: int, qs: Rows, ks: Rows, vs: Rows, as_: Rows,
    bs: Rows, gs: Rows, resets: Flags | None, starts: Rows, states: Rows, outputs: Rows, work: Rows,
):  # fmt: skip
    """`starts` (chunks, batch * heads, key_dim, value_dim); `states` (batch * heads, key_dim, value_dim): the initial
    ones, and then the final ones; `work` (thread, value_dim).
    """
    found = row(work, thread())
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
            a, b = row(as_, sequence, t, head), row(bs, sequence, t, head)
            g, v = row(gs, sequence, t, head), row(vs, sequence, t, head)
            o = row(outputs, sequence, t, head)
            for j in range(value_dim):
                found[j], o[j] = ZERO, ZERO
            for i in range(key_dim):
                state, a_i = row(states, piece, i), a[i]
                for j in range(value_dim):
                    found[j] += a_i * state[j]
            for i in range(key_dim):
                state, decay, q_i, k_i, b_i = row(states, piece, i), exp(g[i]), q[i], k[i], b[i]
                for j in range(value_dim):
                    state[j] = decay * state[j] + b_i * found[j] + k_i * v[j]
                    o[j] += q_i * state[j]


@kernel
def _backward(
    first, last, heads: int, time: int, key_dim: int, value_dim: int, qs: Rows, ks: Rows, vs: Rows, as_: Rows,
    bs: Rows, gs: Rows, resets: Flags | None, starts: Rows, grad_outputs: Rows, grad_states: Rows, grad_qs: Rows,
    grad_ks: Rows, grad_vs: Rows, grad_as: Rows, grad_bs: Rows, grad_gs: Rows, before: Rows, work: Rows,
):  # fmt: skip
    """The gradients of all but the values are zeros at first; `grad_states`: of the final states, and then of the
    initial ones; `before` (thread, CHUNK, key_dim, COLUMNS) and `work` (thread, CHUNK + 1, COLUMNS): the state before
    each token of a chunk, and what the token finds in it.
    """
    mine, chunks = thread(), (time + CHUNK - 1) // CHUNK
    grad_found = row(work, mine, CHUNK)
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
                    k, a = row(ks, sequence, t, head), row(as_, sequence, t, head)
                    b, g, v = row(bs, sequence, t, head), row(gs, sequence, t, head), row(vs, sequence, t, head)
                    found = row(work, mine, t - begin)
                    clear_row(found, 0, width)
                    for i in range(key_dim):
                        kept, a_i = row(before, mine, t - begin, i), a[i]
                        if given(resets) and row(resets, sequence)[t] != 0:
                            clear_row(kept, 0, width)
                        for j in range(width):
                            found[j] += a_i * kept[j]
                    if t + 1 < end:
                        for i in range(key_dim):
                            kept, following = row(before, mine, t - begin, i), row(before, mine, t - begin + 1, i)
                            decay, k_i, b_i = exp(g[i]), k[i], b[i]
                            for j in range(width):
                                following[j] = decay * kept[j] + b_i * found[j] + k_i * v[left + j]
                for t in range(end - 1, begin - 1, -1):
                    q, k, a = row(qs, sequence, t, head), row(ks, sequence, t, head), row(as_, sequence, t, head)
                    b, g, v = row(bs, sequence, t, head), row(gs, sequence, t, head), row(vs, sequence, t, head)
                    grad_q, grad_k = row(grad_qs, sequence, t, head), row(grad_ks, sequence, t, head)
                    grad_a, grad_b = row(grad_as, sequence, t, head), row(grad_bs, sequence, t, head)
                    grad_g, grad_v = row(grad_gs, sequence, t, head), row(grad_vs, sequence, t, head)
                    grad_o, found = row(grad_outputs, sequence, t, head), row(work, mine, t - begin)
                    for j in range(width):
                        grad_v[left + j], grad_found[j] = ZERO, ZERO
                    for i in range(key_dim):
                        kept, grad = row(before, mine, t - begin, i), row(grad_states, piece, i)
                        decay, q_i, k_i, b_i = exp(g[i]), q[i], k[i], b[i]
                        of_q, of_k, of_b, of_g = ZERO, ZERO, ZERO, ZERO
                        for j in range(width):
                            of_o = grad_o[left + j]
                            into = grad[left + j] + q_i * of_o
                            old = decay * kept[j]
                            of_q += (old + b_i * found[j] + k_i * v[left + j]) * of_o
                            of_k += into * v[left + j]
                            of_b += into * found[j]
                            of_g += into * old
                            grad_v[left + j] += k_i * into
                            grad_found[j] += b_i * into
                            grad[left + j] = decay * into
                        grad_q[i] += of_q
                        grad_k[i] += of_k
                        grad_b[i] += of_b
                        grad_g[i] += of_g
                    for i in range(key_dim):
                        kept, grad, a_i = row(before, mine, t - begin, i), row(grad_states, piece, i), a[i]
                        of_a = ZERO
                        for j in range(width):
                            of_a += kept[j] * grad_found[j]
                            grad[left + j] += a_i * grad_found[j]
                        grad_a[i] += of_a
                        if given(resets) and row(resets, sequence)[t] != 0:
                            clear_row(grad, left, left + width)


def forward(inputs: Inputs, state: Tensor, resets: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Output (batch, time, heads, value_dim), final state, and the states before each chunk."""
    q, k, v, a, b, g = inputs
    batch, time, heads, key_dim = q.shape
    o = torch.empty_like(v, memory_format=torch.contiguous_format)
    final = state.clone(memory_format=torch.contiguous_format)
    starts = state.new_empty(-(-time // CHUNK), *state.shape)
    run(
        _forward, batch * heads, heads=heads, time=time, key_dim=key_dim, value_dim=v.shape[-1], qs=rows(q),
        ks=rows(k), vs=rows(v), as_=rows(a), bs=rows(b), gs=rows(g), resets=None if resets is None else rows(resets),
        starts=starts.flatten(1, 2), states=final.flatten(0, 1), outputs=o,
        work=q.new_empty(most_threads(), v.shape[-1]),
    )  # fmt: skip
    return o, final, starts


def backward(
    grad_o: Tensor, grad_state: Tensor, inputs: Inputs, resets: Tensor | None, starts: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, a, b, g and the initial state."""
    q, k, v, a, b, g = inputs
    batch, time, heads, key_dim = q.shape
    grad_q, grad_k, grad_a, grad_b, grad_g = (
        torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (q, k, a, b, g)
    )
    grad_v = torch.empty_like(v, memory_format=torch.contiguous_format)
    grad_initial = grad_state.clone(memory_format=torch.contiguous_format)
    threads = most_threads()
    run(
        _backward, batch * heads, heads=heads, time=time, key_dim=key_dim, value_dim=v.shape[-1], qs=rows(q),
        ks=rows(k), vs=rows(v), as_=rows(a), bs=rows(b), gs=rows(g), resets=None if resets is None else rows(resets),
        starts=starts.flatten(1, 2), grad_outputs=rows(grad_o), grad_states=grad_initial.flatten(0, 1), grad_qs=grad_q,
        grad_ks=grad_k, grad_vs=grad_v, grad_as=grad_a, grad_bs=grad_b, grad_gs=grad_g,
        before=q.new_empty(threads, CHUNK, key_dim, COLUMNS), work=q.new_empty(threads, CHUNK + 1, COLUMNS),
    )  # fmt: skip
    return grad_q, grad_k, grad_v, grad_a, grad_b, grad_g, grad_initial
