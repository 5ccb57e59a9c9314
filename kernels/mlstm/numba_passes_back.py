"""The passes of the mLSTM's backward for CPUs, between the matrix products that `numba_chunkwise` calls.

The equations are `torch_chunkwise`'s; shapes and names are those of `numba_passes`.
"""

# mypy: disable-error-code="no-untyped-def"

from kernels.cpu import kernel
from kernels.cpu.functions import ZERO, exp, f32, given, row, sigmoid
from kernels.cpu.table import Flags, Integers, Rows
from kernels.mlstm.numba_passes import COLUMN, COLUMN_FINE, FLOOR, KEYS_AT_ONCE, READ, ROW, ROW_FINE, WRITE


@kernel
def outputs_back(
    first, last, heads: int, time: int, chunk: int, num_rows: int, first_chunk: int, key_dim: int, value_dim: int,
    gate_weights: Rows, grad_hs: Rows, hs: Rows, denominators: Rows | None, grad_ys: Rows, grad_denominators: Rows,
    q_reads: Rows, n_grads: Rows, eps: float,
):  # fmt: skip
    """Gradients of the numerators and of s.

    `n_grads` (chunks, batch * heads, key_dim): what a chunk's reads give n's gradient.
    """
    for piece in range(first, last):
        c, r = piece // num_rows, piece % num_rows
        start = (first_chunk + c) * chunk
        floor, n_grad, grad_s = row(gate_weights, FLOOR, r), row(n_grads, c, r), row(grad_denominators, r)
        for d in range(key_dim):
            n_grad[d] = ZERO
        for at in range(chunk):
            t, grad_y = start + at, row(grad_ys, c, r, at)
            if t >= time:
                for d in range(value_dim):
                    grad_y[d] = ZERO
                continue
            scale = row(gate_weights, ROW_FINE, r)[t]
            grad_h = row(grad_hs, r // heads, r % heads, t)
            grad_s[t] = ZERO
            if given(denominators):
                s = row(denominators, r)[t]
                scale /= (floor[t] if abs(s) <= floor[t] else abs(s)) + eps
                if not abs(s) <= floor[t]:
                    h, total = row(hs, r // heads, r % heads, t), ZERO
                    for d in range(value_dim):
                        total += grad_h[d] * h[d]
                    grad_s[t] = -total * scale * (s / abs(s))
                    q_read, weight = row(q_reads, c, r, at), grad_s[t]
                    for d in range(key_dim):
                        n_grad[d] += weight * q_read[d]
            for d in range(value_dim):
                grad_y[d] = grad_h[d] * scale


@kernel
def pairs_back(
    first, last, heads: int, time: int, chunk: int, num_rows: int, first_chunk: int, key_dim: int, value_dim: int,
    gate_weights: Rows, products: Rows,
    grad_scores: Rows, document_begins: Integers, grad_denominators: Rows, passing_pairs: Rows, grad_log_i: Rows,
):  # fmt: skip
    """Products become scores, and gradients of scores those of products (chunks, batch * heads, chunk, chunk).

    `passing_pairs` and `grad_log_i` (batch * heads, time) as in `torch_chunkwise.gate_gradients`.
    """
    for piece in range(first, last):
        c, r = piece // num_rows, piece % num_rows
        start = (first_chunk + c) * chunk
        by_row, by_column = row(gate_weights, ROW, r), row(gate_weights, COLUMN, r)
        passing, log_i = row(passing_pairs, r), row(grad_log_i, r)
        for at in range(chunk):
            scores, grads, t, begin = row(products, c, r, at), row(grad_scores, c, r, at), start + at, at + 1
            if t < time:
                begin = max(row(document_begins, r)[t], 0)
                of_row, of_s, total = by_row[t], row(grad_denominators, r)[t], ZERO
                for j in range(begin, at):
                    weight = exp(of_row + by_column[start + j])
                    score, grad = scores[j] * weight, grads[j] + of_s
                    scores[j], grads[j] = score, grad * weight
                    pair = score * grad
                    total += pair
                    passing[start + j] -= pair
                    log_i[start + j] += pair
                weight = exp(of_row + by_column[t])
                scores[at] *= weight
                grad = grads[at] + of_s
                grads[at] = grad * weight
                passing[t] = total
                log_i[t] = scores[at] * grad
            for j in range(min(begin, at + 1)):
                scores[j], grads[j] = ZERO, ZERO
            for j in range(at + 1, chunk):
                scores[j], grads[j] = ZERO, ZERO


@kernel
def states_back(
    first, last, chunks: int, first_chunk: int, key_dim: int, value_dim: int, carries: Rows, C_grads: Rows,
    n_grads: Rows, C_states: Rows, n_states: Rows, grad_C: Rows, grad_n: Rows, carrying: Rows,
):  # fmt: skip
    """What each chunk's reads give, `C_grads` and `n_grads`, becomes the gradient of the state after the chunk.

    `C_states` and `n_states`: those before each chunk; `grad_C` and `grad_n`: of the state after the span, which become
    those of the one before it; `carrying` (slices, batch * heads, chunks): the product of state and gradient that the
    carry scales.
    """
    slices = (key_dim + KEYS_AT_ONCE - 1) // KEYS_AT_ONCE
    for piece in range(first, last):
        r, begin = piece // slices, piece % slices * KEYS_AT_ONCE
        end = min(begin + KEYS_AT_ONCE, key_dim)
        dn = row(grad_n, r)
        for c in range(chunks - 1, -1, -1):
            place = first_chunk + c
            carry, total = row(carries, r)[place], ZERO
            n, n_grad = row(n_states, place, r), row(n_grads, c, r)
            for k in range(begin, end):
                total += dn[k] * n[k]
                dn[k], n_grad[k] = carry * dn[k] + n_grad[k], dn[k]
                state, grad, into = (
                    row(C_states, place, r, k),
                    row(C_grads, c, r, k),
                    row(grad_C, r, k),
                )
                for d in range(value_dim):
                    from_reads, after = grad[d], into[d]
                    total += after * state[d]
                    grad[d] = after
                    into[d] = carry * after + from_reads
            row(carrying, piece % slices, r)[place] = total * carry


@kernel
def operands_back(
    first, last, heads: int, time: int, chunk: int, num_rows: int, first_chunk: int, key_dim: int, value_dim: int,
    gate_weights: Rows, d_qs: Rows, d_ks: Rows, d_vs: Rows, d_reads: Rows, d_writes: Rows, q_reads: Rows,
    k_writes: Rows, n_grads: Rows, n_states: Rows, grad_denominators: Rows, grad_qs: Rows, grad_ks: Rows, grad_vs: Rows,
    readings: Rows, writings: Rows, grad_log_i: Rows,
):  # fmt: skip
    """Gradients of queries, keys and values from those of the products' operands, `d_…`.

    `readings`, `writings` and `grad_log_i` (batch * heads, time).
    """
    for piece in range(first, last):
        c, r = piece // num_rows, piece % num_rows
        place = first_chunk + c
        start = place * chunk
        n, dn = row(n_states, place, r), row(n_grads, c, r)
        for t in range(start, min(start + chunk, time)):
            at = t - start
            by_read, by_write = row(gate_weights, READ, r)[t], row(gate_weights, WRITE, r)[t]
            by_fine, of_s = row(gate_weights, COLUMN_FINE, r)[t], row(grad_denominators, r)[t]
            d_read, d_q = row(d_reads, c, r, at), row(d_qs, c, r, at)
            q_read, to_q = row(q_reads, c, r, at), row(grad_qs, r // heads, r % heads, t)
            reading, writing = ZERO, ZERO
            for d in range(key_dim):
                grad = d_read[d] + of_s * n[d]
                reading += grad * q_read[d]
                to_q[d] = d_q[d] + grad * by_read
            d_write, d_k = row(d_writes, c, r, at), row(d_ks, c, r, at)
            k_write, to_k = row(k_writes, c, r, at), row(grad_ks, r // heads, r % heads, t)
            for d in range(key_dim):
                grad = d_write[d] + dn[d]
                writing += grad * k_write[d]
                to_k[d] = d_k[d] * by_fine + grad * by_write
            d_v, to_v = row(d_vs, c, r, at), row(grad_vs, r // heads, r % heads, t)
            for d in range(value_dim):
                to_v[d] = d_v[d]
            row(readings, r)[t] = reading
            row(writings, r)[t] = writing
            row(grad_log_i, r)[t] += writing


@kernel
def gates_back(
    first, last, heads: int, time: int, chunk: int, input_gates: Rows, forget_gates: Rows, resets: Flags | None,
    passing_pairs: Rows, readings: Rows, writings: Rows, carrying: Rows, grad_log_i: Rows, grad_input_gates: Rows,
    grad_forget_gates: Rows, exponential: bool,
):  # fmt: skip
    """Gradients of the gates' pre-activations from the sums over pairs, reads, writes and the states carried."""
    for r in range(first, last):
        i, f = row(input_gates, r // heads, r % heads), row(forget_gates, r // heads, r % heads)
        grad_i, grad_f = row(grad_input_gates, r // heads, r % heads), row(grad_forget_gates, r // heads, r % heads)
        passed, reads, writes = row(passing_pairs, r), row(readings, r), row(writings, r)
        log_i = row(grad_log_i, r)
        for start in range(0, time, chunk):
            stop = min(start + chunk, time)
            carried = row(carrying, r)[start // chunk]
            earlier = 0.0  # in float64: a token's own write may dwarf all before it
            for t in range(start, stop):
                grad_i[t] = f32(earlier)
                earlier += writes[t]
            later = 0.0
            for t in range(stop - 1, start - 1, -1):
                later += passed[t]
                later += reads[t]
                grad_f[t] = f32(later + (grad_i[t] + carried))
        for t in range(time):
            grad_f[t] *= sigmoid(-f[t])
            grad_i[t] = log_i[t]
        if not exponential:
            for t in range(time):
                grad_i[t] *= sigmoid(-i[t])
        if given(resets):
            for t in range(time):
                if row(resets, r // heads)[t]:
                    grad_f[t] = ZERO
