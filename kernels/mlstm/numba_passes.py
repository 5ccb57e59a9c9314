"""The passes of the mLSTM for CPUs: what is compiled, between the matrix products that `numba_chunkwise` calls.

The equations are `torch_chunkwise`'s. Every pass reads its operands where they lie; exponents are float64 and split
into a multiple of 1/16 and a remainder, as there.
"""

# mypy: disable-error-code="no-untyped-def"

from kernels.cpu import kernel
from kernels.cpu.functions import ZERO, exp, exp_of_double, f32, given, inlined, log1p, row, split
from kernels.cpu.table import Doubles, Flags, Integers, Rows

KEYS_AT_ONCE = 16
"""Rows of a state that are carried from chunk to chunk by one thread."""

ROW, ROW_FINE, COLUMN, COLUMN_FINE, READ, WRITE, FLOOR = range(7)
"""Planes of the gates' weights (7, batch * heads, time), named as in `torch_chunkwise.ChunkGates`."""


@kernel
def gates(
    first, last, heads: int, time: int, chunk: int, input_gates: Rows, forget_gates: Rows, initial_m: Rows | None,
    resets: Flags | None, gate_weights: Rows, carries: Rows, ms: Rows, document_begins: Integers, work: Doubles,
    exponential: bool, stabilized: bool, root: float,
):  # fmt: skip
    """The gates' weights, the final scale of each token, and what a chunk keeps of the state before it.

    `initial_m` (batch * heads,); `carries` (batch * heads, chunks); `ms` (batch * heads, time); `document_begins`
    (batch * heads, time): where in its chunk the token's document begins, -1 if before it; `work` (batch * heads, 3,
    chunk); `root` 1 / sqrt(key_dim).
    """
    for r in range(first, last):
        i, f = row(input_gates, r // heads, r % heads), row(forget_gates, r // heads, r % heads)
        log_i, b, scale = row(work, r, 0), row(work, r, 1), row(work, r, 2)
        rows_, fine_rows = row(gate_weights, ROW, r), row(gate_weights, ROW_FINE, r)
        columns, fine_columns = row(gate_weights, COLUMN, r), row(gate_weights, COLUMN_FINE, r)
        read, write, floor = row(gate_weights, READ, r), row(gate_weights, WRITE, r), row(gate_weights, FLOOR, r)
        begins, scales = row(document_begins, r), row(ms, r)
        m = 0.0
        if given(initial_m) and stabilized:
            m += row(initial_m)[r]
        for start in range(0, time, chunk):
            stop = min(start + chunk, time)
            before = m
            if not stabilized and given(initial_m):
                before = 0.0 + row(initial_m)[r] if start == 0 else 0.0
            for t in range(start, stop):  # log sigmoid x = min(x, 0) - log(1 + exp(-|x|))
                rows_[t] = log1p(exp(-abs(f[t])))
                columns[t] = log1p(exp(-abs(i[t])))
            total, begin = 0.0, -1
            for t in range(start, stop):
                log_f = 0.0 + min(f[t], ZERO)
                log_f -= rows_[t]
                li = 0.0 + i[t]
                if not exponential:
                    li = 0.0 + min(i[t], ZERO)
                    li -= columns[t]
                decayed = log_f + m
                if given(resets) and row(resets, r // heads)[t]:
                    decayed, begin = log_f, t - start
                else:
                    total += log_f
                if stabilized:
                    m = decayed if decayed > li else li
                log_i[t - start], b[t - start], scale[t - start], begins[t] = li, total, m, begin
            end, now = total, m
            for t in range(start, stop):
                at = t - start
                scales[t] = f32(scale[at])
                exponent = b[at] - scale[at]
                coarse, fine = split(exponent)
                rows_[t], fine_rows[t] = coarse, exp(fine)
                weight = exp_of_double(exponent + before) / fine_rows[t]
                read[t] = weight if begins[t] < 0 else ZERO
                coarse, fine = split(log_i[at] - b[at])
                columns[t], fine_columns[t] = coarse, exp(fine) * root
                weight = exp_of_double(end - b[at] + log_i[at] - now) * root
                write[t] = weight if begins[t] == begin else ZERO
                floor[t] = exp_of_double(-scale[at])
            row(carries, r)[start // chunk] = exp_of_double(end + before - now) if begin < 0 else ZERO


@inlined
def copy(out, x, width, known):
    """x, or zeros where it is not known."""
    if known:
        for d in range(width):
            out[d] = x[d]
    else:
        for d in range(width):
            out[d] = ZERO


@kernel
def operands(
    first, last, heads: int, time: int, chunk: int, num_rows: int, first_chunk: int, key_dim: int, value_dim: int,
    gate_weights: Rows, qs: Rows, ks: Rows, vs: Rows, q_copies: Rows | None, v_copies: Rows | None, q_reads: Rows,
    k_fines: Rows, k_writes: Rows, n_written: Rows,
):  # fmt: skip
    """The operands of products, (chunks, batch * heads, chunk, dim), from queries, keys and values as they are given.

    `n_written` (chunks, batch * heads, dim): the sum of `k_writes` over a chunk's tokens. What lies beyond the last
    token is zero.
    """
    for piece in range(first, last):
        c, r = piece // num_rows, piece % num_rows
        start = (first_chunk + c) * chunk
        read, write = row(gate_weights, READ, r), row(gate_weights, WRITE, r)
        fine = row(gate_weights, COLUMN_FINE, r)
        written = row(n_written, c, r)
        for d in range(key_dim):
            written[d] = ZERO
        for at in range(chunk):
            t = start + at
            q_read, k_fine, k_write = row(q_reads, c, r, at), row(k_fines, c, r, at), row(k_writes, c, r, at)
            if t < time:
                q, k = row(qs, r // heads, r % heads, t), row(ks, r // heads, r % heads, t)
                by_read, by_fine, by_write = read[t], fine[t], write[t]
                for d in range(key_dim):
                    q_read[d] = q[d] * by_read
                    k_fine[d], k_write[d] = k[d] * by_fine, k[d] * by_write
                    written[d] += k[d] * by_write
            else:
                for d in range(key_dim):
                    q_read[d], k_fine[d], k_write[d] = ZERO, ZERO, ZERO
            if given(q_copies):
                copy(row(q_copies, c, r, at), row(qs, r // heads, r % heads, t), key_dim, t < time)
            if given(v_copies):
                copy(row(v_copies, c, r, at), row(vs, r // heads, r % heads, t), value_dim, t < time)


@kernel
def states(
    first, last, chunks: int, first_chunk: int, key_dim: int, value_dim: int, carries: Rows, C_states: Rows,
    n_states: Rows, final_C: Rows, final_n: Rows,
):  # fmt: skip
    """What each chunk of the span writes, (chunks, batch * heads, key_dim, …), becomes the state before it.

    `final_C` and `final_n`: the state before the span, which becomes the one after it.
    """
    slices = (key_dim + KEYS_AT_ONCE - 1) // KEYS_AT_ONCE
    for piece in range(first, last):
        r, begin = piece // slices, piece % slices * KEYS_AT_ONCE
        end = min(begin + KEYS_AT_ONCE, key_dim)
        n = row(final_n, r)
        for c in range(chunks):
            carry = row(carries, r)[first_chunk + c]
            n_state = row(n_states, c, r)
            for k in range(begin, end):
                n[k], n_state[k] = carry * n[k] + n_state[k], n[k]
                state, into = row(C_states, c, r, k), row(final_C, r, k)
                for d in range(value_dim):
                    written, before = state[d], into[d]
                    state[d] = before
                    into[d] = carry * before + written


@kernel
def weigh(
    first, last, heads: int, time: int, chunk: int, num_rows: int, first_chunk: int, key_dim: int, value_dim: int,
    gate_weights: Rows, products: Rows,
    document_begins: Integers, sums: Rows | None,
):  # fmt: skip
    """Products of queries and keys (chunks, batch * heads, chunk, chunk) become scores.

    `sums` (batch * heads, time): of the scores over a row.
    """
    for piece in range(first, last):
        c, r = piece // num_rows, piece % num_rows
        start = (first_chunk + c) * chunk
        by_row, by_column = row(gate_weights, ROW, r), row(gate_weights, COLUMN, r, 0)
        for at in range(chunk):
            scores, t, begin = row(products, c, r, at), start + at, at + 1
            if t < time:
                begin = max(row(document_begins, r)[t], 0)
                of_row, total = by_row[t], ZERO
                for j in range(begin, at + 1):
                    scores[j] *= exp(of_row + by_column[start + j])
                    total += scores[j]
                if given(sums):
                    row(sums, r)[t] = total
            for j in range(min(begin, at + 1)):
                scores[j] = ZERO
            for j in range(at + 1, chunk):
                scores[j] = ZERO


@kernel
def outputs(
    first, last, heads: int, time: int, chunk: int, num_rows: int, first_chunk: int, key_dim: int, value_dim: int,
    gate_weights: Rows, ys: Rows, q_reads: Rows, n_states: Rows, denominators: Rows | None, hs: Rows, eps: float,
):  # fmt: skip
    """h from the numerators `ys` (chunks, batch * heads, chunk, value_dim) and the states' normalisers.

    `denominators` (batch * heads, time): the scores' sums, which become s.
    """
    for piece in range(first, last):
        c, r = piece // num_rows, piece % num_rows
        start = (first_chunk + c) * chunk
        n, floor = row(n_states, c, r), row(gate_weights, FLOOR, r)
        for t in range(start, min(start + chunk, time)):
            scale = row(gate_weights, ROW_FINE, r)[t]
            if given(denominators):
                q_read, total = row(q_reads, c, r, t - start), ZERO
                for d in range(key_dim):
                    total += q_read[d] * n[d]
                s = row(denominators, r)
                s[t] = (s[t] + total) * scale
                scale /= (floor[t] if abs(s[t]) <= floor[t] else abs(s[t])) + eps
            y, h = row(ys, c, r, t - start), row(hs, r // heads, r % heads, t)
            for d in range(value_dim):
                h[d] = y[d] * scale
