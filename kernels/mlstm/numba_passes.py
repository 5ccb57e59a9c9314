"""The passes of the mLSTM for CPUs: what is compiled, between the matrix products that `numba_chunkwise` calls.

The equations are `torch_chunkwise`'s. Every pass reads its operands where they lie; exponents are float64 and split
into a multiple of 1/16 and a remainder, as there.
"""

# mypy: disable-error-code="no-untyped-def"

from kernels.cpu import kernel
from kernels.cpu_functions import (
    ZERO,
    count,
    double_row,
    exp,
    exp_of_double,
    f32,
    flags,
    given,
    integers,
    log1p,
    number,
    row,
    share,
    sigmoid,
    split,
)

KEYS_AT_ONCE = 16
"""Rows of a state that are carried from chunk to chunk by one thread."""

ROW, ROW_FINE, COLUMN, COLUMN_FINE, READ, WRITE, FLOOR = range(7)
"""Planes of the gates' weights (7, batch * heads, time), named as in `torch_chunkwise.ChunkGates`."""

# The first arguments of all kernels.
HEADS, TIME, CHUNK = range(3)

I, F, M, RESETS, WEIGHTS, CARRY, SCALES, BEGINS, WORK, EXPONENTIAL, STABILIZED, ROOT = range(3, 15)
"""Of the gates. `M` the initial scales (batch * heads,); `CARRY` (batch * heads, chunks); `SCALES` (batch * heads,
time); `BEGINS` (batch * heads, time): where in its chunk the token's document begins, -1 if before it; `WORK`
float64 (batch * heads, 3, chunk); `ROOT` 1 / sqrt(key_dim)."""


@kernel
def gates(table):
    first, last = share(table)
    heads, time, chunk = count(table, HEADS), count(table, TIME), count(table, CHUNK)
    root, exponential, stabilized = number(table, ROOT), count(table, EXPONENTIAL) != 0, count(table, STABILIZED) != 0
    for r in range(first, last):
        i, f = row(table, I, r // heads, r % heads), row(table, F, r // heads, r % heads)
        log_i, b, scale = double_row(table, WORK, r, 0), double_row(table, WORK, r, 1), double_row(table, WORK, r, 2)
        rows_, fine_rows = row(table, WEIGHTS, ROW, r), row(table, WEIGHTS, ROW_FINE, r)
        columns, fine_columns = row(table, WEIGHTS, COLUMN, r), row(table, WEIGHTS, COLUMN_FINE, r)
        read, write, floor = row(table, WEIGHTS, READ, r), row(table, WEIGHTS, WRITE, r), row(table, WEIGHTS, FLOOR, r)
        begins, scales = integers(table, BEGINS, r), row(table, SCALES, r)
        m = 0.0
        if given(table, M) and stabilized:
            m += row(table, M)[r]
        for start in range(0, time, chunk):
            stop = min(start + chunk, time)
            before = m
            if not stabilized and given(table, M):
                before = 0.0 + row(table, M)[r] if start == 0 else 0.0
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
                if given(table, RESETS) and flags(table, RESETS, r // heads)[t]:
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
            row(table, CARRY, r)[start // chunk] = exp_of_double(end + before - now) if begin < 0 else ZERO


ROWS, CHUNK_OF_SPAN, KEY_DIM, VALUE_DIM, BY_TIME = range(3, 8)
"""Of the passes over spans: batch * heads, the number of the span's first chunk, widths, and the gates' weights."""
Q, K, V, Q_COPY, V_COPY, Q_READ, K_FINE, K_WRITE, N_WRITTEN = range(8, 17)
"""Of the operands of products: (batch, heads, time, dim), the rest (chunks, batch * heads, chunk, dim), but the sum of
`K_WRITE` over a chunk's tokens, (chunks, batch * heads, dim). What lies beyond the last token is zero."""


@kernel
def operands(table):
    first, last = share(table)
    heads, time, chunk, rows_ = count(table, HEADS), count(table, TIME), count(table, CHUNK), count(table, ROWS)
    key_dim, value_dim = count(table, KEY_DIM), count(table, VALUE_DIM)
    for piece in range(first, last):
        c, r = piece // rows_, piece % rows_
        start = (count(table, CHUNK_OF_SPAN) + c) * chunk
        read, write = row(table, BY_TIME, READ, r), row(table, BY_TIME, WRITE, r)
        fine = row(table, BY_TIME, COLUMN_FINE, r)
        written = row(table, N_WRITTEN, c, r)
        for d in range(key_dim):
            written[d] = ZERO
        for at in range(chunk):
            t = start + at
            q_copy, q_read = row(table, Q_COPY, c, r, at), row(table, Q_READ, c, r, at)
            k_fine, k_write = row(table, K_FINE, c, r, at), row(table, K_WRITE, c, r, at)
            v_copy = row(table, V_COPY, c, r, at)
            if t < time:
                q, k = row(table, Q, r // heads, r % heads, t), row(table, K, r // heads, r % heads, t)
                v = row(table, V, r // heads, r % heads, t)
                by_read, by_fine, by_write = read[t], fine[t], write[t]
                for d in range(key_dim):
                    q_copy[d], q_read[d] = q[d], q[d] * by_read
                    k_fine[d], k_write[d] = k[d] * by_fine, k[d] * by_write
                    written[d] += k[d] * by_write
                for d in range(value_dim):
                    v_copy[d] = v[d]
            else:
                for d in range(key_dim):
                    q_copy[d], q_read[d], k_fine[d], k_write[d] = ZERO, ZERO, ZERO, ZERO
                for d in range(value_dim):
                    v_copy[d] = ZERO


CARRIED, C_STATES, N_STATES, C, N = range(8, 13)
"""Of the states: `CARRIED` (batch * heads, chunks); what each chunk of the span writes, (chunks, batch * heads,
key_dim, …), which becomes the state before it; the state before the span, which becomes the state after it."""


@kernel
def states(table):
    first, last = share(table)
    chunks, key_dim, value_dim = count(table, CHUNK), count(table, KEY_DIM), count(table, VALUE_DIM)
    slices = (key_dim + KEYS_AT_ONCE - 1) // KEYS_AT_ONCE
    for piece in range(first, last):
        r, begin = piece // slices, piece % slices * KEYS_AT_ONCE
        end = min(begin + KEYS_AT_ONCE, key_dim)
        n = row(table, N, r)
        for c in range(chunks):
            carry = row(table, CARRIED, r)[count(table, CHUNK_OF_SPAN) + c]
            n_state = row(table, N_STATES, c, r)
            for k in range(begin, end):
                n[k], n_state[k] = carry * n[k] + n_state[k], n[k]
                state, into = row(table, C_STATES, c, r, k), row(table, C, r, k)
                for d in range(value_dim):
                    written, before = state[d], into[d]
                    state[d] = before
                    into[d] = carry * before + written


PRODUCTS, STARTS, SUMS = range(8, 11)
"""Of the weighing: products of queries and keys (chunks, batch * heads, chunk, chunk), which become scores; `STARTS` as
`BEGINS`; the scores' sums over a row (batch * heads, time)."""


@kernel
def weigh(table):
    first, last = share(table)
    time, chunk, rows_ = count(table, TIME), count(table, CHUNK), count(table, ROWS)
    for piece in range(first, last):
        c, r = piece // rows_, piece % rows_
        start = (count(table, CHUNK_OF_SPAN) + c) * chunk
        by_row, by_column = row(table, BY_TIME, ROW, r), row(table, BY_TIME, COLUMN, r, 0)
        for at in range(chunk):
            scores, t, begin = row(table, PRODUCTS, c, r, at), start + at, at + 1
            if t < time:
                begin = max(integers(table, STARTS, r)[t], 0)
                of_row, total = by_row[t], ZERO
                for j in range(begin, at + 1):
                    scores[j] *= exp(of_row + by_column[start + j])
                    total += scores[j]
                if given(table, SUMS):
                    row(table, SUMS, r)[t] = total
            for j in range(min(begin, at + 1)):
                scores[j] = ZERO
            for j in range(at + 1, chunk):
                scores[j] = ZERO


Y, QUERIES_READ, N_BEFORE, DENOMINATORS, H, EPS = range(8, 14)
"""Of the outputs: numerators (chunks, batch * heads, chunk, value_dim), `Q_READ`, and the normalisers of the states;
`DENOMINATORS`: the scores' sums, which become s; `H` (batch, heads, time, value_dim)."""


@kernel
def outputs(table):
    first, last = share(table)
    heads, time, chunk, rows_ = count(table, HEADS), count(table, TIME), count(table, CHUNK), count(table, ROWS)
    key_dim, value_dim, eps = count(table, KEY_DIM), count(table, VALUE_DIM), number(table, EPS)
    for piece in range(first, last):
        c, r = piece // rows_, piece % rows_
        start = (count(table, CHUNK_OF_SPAN) + c) * chunk
        n, floor = row(table, N_BEFORE, c, r), row(table, BY_TIME, FLOOR, r)
        for t in range(start, min(start + chunk, time)):
            scale = row(table, BY_TIME, ROW_FINE, r)[t]
            if given(table, DENOMINATORS):
                q_read, total = row(table, QUERIES_READ, c, r, t - start), ZERO
                for d in range(key_dim):
                    total += q_read[d] * n[d]
                s = row(table, DENOMINATORS, r)
                s[t] = (s[t] + total) * scale
                scale /= (floor[t] if abs(s[t]) <= floor[t] else abs(s[t])) + eps
            y, h = row(table, Y, c, r, t - start), row(table, H, r // heads, r % heads, t)
            for d in range(value_dim):
                h[d] = y[d] * scale


GRAD_H, H_GIVEN, S, GRAD_Y, GRAD_S, READ_BACK, N_GRAD, EPSILON = range(8, 16)
"""Of the outputs' gradients: that of the numerators (chunks, batch * heads, chunk, value_dim) and of s (batch * heads,
time); `READ_BACK` is `Q_READ`; `N_GRAD` (chunks, batch * heads, key_dim): what a chunk's reads give n's gradient."""


@kernel
def outputs_back(table):
    first, last = share(table)
    heads, time, chunk, rows_ = count(table, HEADS), count(table, TIME), count(table, CHUNK), count(table, ROWS)
    key_dim, value_dim, eps = count(table, KEY_DIM), count(table, VALUE_DIM), number(table, EPSILON)
    for piece in range(first, last):
        c, r = piece // rows_, piece % rows_
        start = (count(table, CHUNK_OF_SPAN) + c) * chunk
        floor, n_grad, grad_s = row(table, BY_TIME, FLOOR, r), row(table, N_GRAD, c, r), row(table, GRAD_S, r)
        for d in range(key_dim):
            n_grad[d] = ZERO
        for at in range(chunk):
            t, grad_y = start + at, row(table, GRAD_Y, c, r, at)
            if t >= time:
                for d in range(value_dim):
                    grad_y[d] = ZERO
                continue
            scale = row(table, BY_TIME, ROW_FINE, r)[t]
            grad_h = row(table, GRAD_H, r // heads, r % heads, t)
            grad_s[t] = ZERO
            if given(table, S):
                s = row(table, S, r)[t]
                scale /= (floor[t] if abs(s) <= floor[t] else abs(s)) + eps
                if not abs(s) <= floor[t]:
                    h, total = row(table, H_GIVEN, r // heads, r % heads, t), ZERO
                    for d in range(value_dim):
                        total += grad_h[d] * h[d]
                    grad_s[t] = -total * scale * (s / abs(s))
                    q_read, weight = row(table, READ_BACK, c, r, at), grad_s[t]
                    for d in range(key_dim):
                        n_grad[d] += weight * q_read[d]
            for d in range(value_dim):
                grad_y[d] = grad_h[d] * scale


RAW, GRAD_SCORES, PAIRS_BEGIN, OF_S, PASSING, LOG_I = range(8, 14)
"""Of the pairs: products, which become scores, and gradients of scores, which become those of products (chunks, batch
* heads, chunk, chunk); `PASSING` and `LOG_I` (batch * heads, time) as in `torch_chunkwise.gate_gradients`."""


@kernel
def pairs_back(table):
    first, last = share(table)
    time, chunk, rows_ = count(table, TIME), count(table, CHUNK), count(table, ROWS)
    for piece in range(first, last):
        c, r = piece // rows_, piece % rows_
        start = (count(table, CHUNK_OF_SPAN) + c) * chunk
        by_row, by_column = row(table, BY_TIME, ROW, r), row(table, BY_TIME, COLUMN, r)
        passing, log_i = row(table, PASSING, r), row(table, LOG_I, r)
        for at in range(chunk):
            scores, grads, t, begin = row(table, RAW, c, r, at), row(table, GRAD_SCORES, c, r, at), start + at, at + 1
            if t < time:
                begin = max(integers(table, PAIRS_BEGIN, r)[t], 0)
                of_row, of_s, total = by_row[t], row(table, OF_S, r)[t], ZERO
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


CARRIED_BACK, C_GRADS, N_GRADS, C_BEFORE, N_STATE, GRAD_C, GRAD_N, CARRYING = range(8, 16)
"""Of the states' gradients: what each chunk's reads give, which becomes the gradient of the state after the chunk; the
saved states before each; the gradient of the state after the span, which becomes that of the one before it; `CARRYING`
(slices, batch * heads, chunks): the product of state and gradient that the carry scales."""


@kernel
def states_back(table):
    first, last = share(table)
    chunks, key_dim, value_dim = count(table, CHUNK), count(table, KEY_DIM), count(table, VALUE_DIM)
    slices = (key_dim + KEYS_AT_ONCE - 1) // KEYS_AT_ONCE
    for piece in range(first, last):
        r, begin = piece // slices, piece % slices * KEYS_AT_ONCE
        end = min(begin + KEYS_AT_ONCE, key_dim)
        dn = row(table, GRAD_N, r)
        for c in range(chunks - 1, -1, -1):
            place = count(table, CHUNK_OF_SPAN) + c
            carry, total = row(table, CARRIED_BACK, r)[place], ZERO
            n, n_grad = row(table, N_STATE, place, r), row(table, N_GRADS, c, r)
            for k in range(begin, end):
                total += dn[k] * n[k]
                dn[k], n_grad[k] = carry * dn[k] + n_grad[k], dn[k]
                state, grad, into = (
                    row(table, C_BEFORE, place, r, k),
                    row(table, C_GRADS, c, r, k),
                    row(table, GRAD_C, r, k),
                )
                for d in range(value_dim):
                    from_reads, after = grad[d], into[d]
                    total += after * state[d]
                    grad[d] = after
                    into[d] = carry * after + from_reads
            row(table, CARRYING, piece % slices, r)[place] = total * carry


(
    D_Q, D_K, D_V, D_READ, D_WRITE, READS, WRITES, N_AFTER_GRAD, N_SEEN, D_S,
    TO_Q, TO_K, TO_V, READING, WRITING, TO_LOG_I,
) = range(8, 24)  # fmt: skip
"""Of the operands' gradients: those of queries, fine keys and values from the pairs, (chunks, batch * heads, chunk,
dim), those of `Q_READ` and `K_WRITE`, and these; `TO_…` (batch, heads, time, dim); the last three (batch * heads,
time)."""


@kernel
def operands_back(table):
    first, last = share(table)
    heads, time, chunk, rows_ = count(table, HEADS), count(table, TIME), count(table, CHUNK), count(table, ROWS)
    key_dim, value_dim = count(table, KEY_DIM), count(table, VALUE_DIM)
    for piece in range(first, last):
        c, r = piece // rows_, piece % rows_
        place = count(table, CHUNK_OF_SPAN) + c
        start = place * chunk
        n, dn = row(table, N_SEEN, place, r), row(table, N_AFTER_GRAD, c, r)
        for t in range(start, min(start + chunk, time)):
            at = t - start
            by_read, by_write = row(table, BY_TIME, READ, r)[t], row(table, BY_TIME, WRITE, r)[t]
            by_fine, of_s = row(table, BY_TIME, COLUMN_FINE, r)[t], row(table, D_S, r)[t]
            d_read, d_q = row(table, D_READ, c, r, at), row(table, D_Q, c, r, at)
            q_read, to_q = row(table, READS, c, r, at), row(table, TO_Q, r // heads, r % heads, t)
            reading, writing = ZERO, ZERO
            for d in range(key_dim):
                grad = d_read[d] + of_s * n[d]
                reading += grad * q_read[d]
                to_q[d] = d_q[d] + grad * by_read
            d_write, d_k = row(table, D_WRITE, c, r, at), row(table, D_K, c, r, at)
            k_write, to_k = row(table, WRITES, c, r, at), row(table, TO_K, r // heads, r % heads, t)
            for d in range(key_dim):
                grad = d_write[d] + dn[d]
                writing += grad * k_write[d]
                to_k[d] = d_k[d] * by_fine + grad * by_write
            d_v, to_v = row(table, D_V, c, r, at), row(table, TO_V, r // heads, r % heads, t)
            for d in range(value_dim):
                to_v[d] = d_v[d]
            row(table, READING, r)[t] = reading
            row(table, WRITING, r)[t] = writing
            row(table, TO_LOG_I, r)[t] += writing


GATE_I, GATE_F, AT, PASSED, READ_SUMS, WRITE_SUMS, CARRY_SUMS, OF_LOG_I, GRAD_I, GRAD_F, IS_EXPONENTIAL = range(3, 14)
"""Of the gates' gradients: `AT` the resets; `PASSED` to `WRITE_SUMS` and `OF_LOG_I` (batch * heads, time)."""


@kernel
def gates_back(table):
    first, last = share(table)
    heads, time, chunk = count(table, HEADS), count(table, TIME), count(table, CHUNK)
    for r in range(first, last):
        i, f = row(table, GATE_I, r // heads, r % heads), row(table, GATE_F, r // heads, r % heads)
        grad_i, grad_f = row(table, GRAD_I, r // heads, r % heads), row(table, GRAD_F, r // heads, r % heads)
        passed, reads, writes = row(table, PASSED, r), row(table, READ_SUMS, r), row(table, WRITE_SUMS, r)
        log_i, exponential = row(table, OF_LOG_I, r), count(table, IS_EXPONENTIAL) != 0
        for start in range(0, time, chunk):
            stop = min(start + chunk, time)
            carried = row(table, CARRY_SUMS, r)[start // chunk]
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
        if given(table, AT):
            for t in range(time):
                if flags(table, AT, r // heads)[t]:
                    grad_f[t] = ZERO
