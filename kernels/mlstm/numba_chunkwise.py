"""The mLSTM in chunks for CPUs: the matrix products are the library's, all between them is compiled.

The equations are `torch_chunkwise`'s. There, chunks come one after another; here a span of chunks, as many as fit into
the caches, is taken at once: every matrix product is one batched product over (chunks of the span, batch * heads), and
between two products stands one pass, which reads its operands where they lie. Pairs above the diagonal cost nothing but
their part of the products. Exponents are float64 and split into a multiple of 1/16 and a remainder, as there.
"""

# mypy: disable-error-code="no-untyped-def"

import torch
from torch import Tensor

from kernels.cpu import kernel, rows, run
from kernels.cpu_functions import (
    ONE,
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

SPAN_ELEMENTS = 2**20
"""Queries and values of a span of chunks: 4 MiB, and a few times that with what is made of them."""
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
def _gates(table):
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
                known = ONE if begins[t] < 0 else ZERO
                read[t] = known * exp_of_double(exponent + before) / fine_rows[t]
                coarse, fine = split(log_i[at] - b[at])
                columns[t], fine_columns[t] = coarse, exp(fine) * root
                lasting = ONE if begins[t] == begin else ZERO
                write[t] = lasting * exp_of_double(end - b[at] + log_i[at] - now) * root
                floor[t] = exp_of_double(-scale[at])
            row(table, CARRY, r)[start // chunk] = exp_of_double(end + before - now) if begin < 0 else ZERO


ROWS, CHUNK_OF_SPAN, KEY_DIM, VALUE_DIM, BY_TIME = range(3, 8)
"""Of the passes over spans: batch * heads, the number of the span's first chunk, widths, and the gates' weights."""
Q, K, V, Q_COPY, V_COPY, Q_READ, K_FINE, K_WRITE, N_WRITTEN = range(8, 17)
"""Of the operands of products: (batch, heads, time, dim), the rest (chunks, batch * heads, chunk, dim), but the sum of
`K_WRITE` over a chunk's tokens, (chunks, batch * heads, dim). What lies beyond the last token is zero."""


@kernel
def _operands(table):
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
def _states(table):
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
def _weigh(table):
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
def _outputs(table):
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
def _outputs_back(table):
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
def _pairs_back(table):
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
def _states_back(table):
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
def _operands_back(table):
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
def _gates_back(table):
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


class _Spans:
    """What forward and backward share: the gates' weights, and the operands of the products of a span of chunks."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, m: Tensor | None, resets: Tensor | None,
        input_gate: str, normalize: bool, chunk: int,
    ) -> None:  # fmt: skip
        self.batch, self.heads, self.time, self.key_dim = q.shape
        self.value_dim, self.chunk, self.rows = v.shape[-1], chunk, q.shape[0] * q.shape[1]
        self.chunks = -(-self.time // chunk)
        self.q, self.k, self.v, self.i, self.f = rows(q), rows(k), rows(v), rows(i), rows(f)
        self.resets = None if resets is None else rows(resets)
        self.exponential = input_gate == "exponential"
        self.shape = (self.heads, self.time, chunk)
        self.weights = q.new_empty(7, self.rows, self.time)
        self.carry = q.new_empty(self.rows, self.chunks)
        self.m = q.new_empty(self.rows, self.time)
        self.begins = torch.empty_like(self.m, dtype=torch.int32)
        work = q.new_empty(self.rows, 3, chunk, dtype=torch.float64)
        scales = None if m is None else m.reshape(-1).contiguous()
        stabilized = self.exponential and normalize
        run(
            _gates, self.rows, *self.shape, self.i, self.f, scales, self.resets, self.weights, self.carry, self.m,
            self.begins, work, int(self.exponential), int(stabilized), self.key_dim**-0.5,
        )  # fmt: skip
        at_once = max(1, SPAN_ELEMENTS // (self.rows * chunk * (self.key_dim + self.value_dim)))
        self.spans = [(begin, min(begin + at_once, self.chunks)) for begin in range(0, self.chunks, at_once)]

    def new(self, span: tuple[int, int], *shape: int) -> Tensor:
        """An empty tensor (chunks of the span, batch * heads, …)."""
        return self.q.new_empty(span[1] - span[0], self.rows, *shape)

    def run(self, kernel: object, span: tuple[int, int], *arguments: Tensor | int | float | None) -> None:
        """Run a pass over the chunks of a span."""
        pieces = (span[1] - span[0]) * self.rows
        shared = (*self.shape, self.rows, span[0], self.key_dim, self.value_dim, self.weights)
        run(kernel, pieces, *shared, *arguments)  # type: ignore[arg-type]

    def run_on_states(self, kernel: object, span: tuple[int, int], *arguments: Tensor) -> None:
        """Run a kernel that carries states from chunk to chunk of a span."""
        slices = -(-self.key_dim // KEYS_AT_ONCE)
        shared = (self.heads, self.time, span[1] - span[0], self.rows, span[0], self.key_dim, self.value_dim, None)
        run(kernel, self.rows * slices, *shared, self.carry, *arguments)  # type: ignore[arg-type]

    def operands(self, span: tuple[int, int], written: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Queries, values, queries as they read the state, fine keys, keys as they write it; a matrix per chunk."""
        keys = (self.chunk, self.key_dim)
        q, v = self.new(span, *keys), self.new(span, self.chunk, self.value_dim)
        q_read, k_fine, k_write = (self.new(span, *keys) for _ in range(3))
        self.run(_operands, span, self.q, self.k, self.v, q, v, q_read, k_fine, k_write, written)
        return q.flatten(0, 1), v.flatten(0, 1), q_read.flatten(0, 1), k_fine.flatten(0, 1), k_write.flatten(0, 1)

    def first(self, span: tuple[int, int], has_initial_state: bool) -> int:
        """The first matrix of a span whose chunk has a state before it."""
        return self.rows if span[0] == 0 and not has_initial_state else 0

    def last(self, span: tuple[int, int], has_gradient: bool) -> int:
        """The one after the last matrix of a span whose chunk leaves a state that has a gradient."""
        matrices = (span[1] - span[0]) * self.rows
        return matrices - self.rows if span[1] == self.chunks and not has_gradient else matrices

    def by_chunk(self, matrices: Tensor) -> Tensor:
        """(chunks * batch * heads, …) as (chunks, batch * heads, …)."""
        return matrices.unflatten(0, (-1, self.rows))


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    C: Tensor | None,
    n: Tensor | None,
    m: Tensor | None,
    resets: Tensor | None,
    input_gate: str,
    normalize: bool,
    eps: float,
    chunk: int,
    save_states: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `torch_chunkwise.forward`."""
    spans = _Spans(q, k, v, i, f, m, resets, input_gate, normalize, chunk)
    state = (spans.rows, spans.key_dim, spans.value_dim)
    slots = spans.chunks if save_states else spans.spans[0][1]
    states_C, states_n = q.new_empty(slots, *state), q.new_empty(slots, *state[:2])
    final_C = q.new_zeros(state) if C is None else C.reshape(state).float().clone(memory_format=torch.contiguous_format)
    final_n = (
        q.new_zeros(state[:2])
        if n is None
        else n.reshape(state[:2]).float().clone(memory_format=torch.contiguous_format)
    )
    h = torch.empty_like(v, memory_format=torch.contiguous_format)
    s = q.new_empty(spans.rows, spans.time if normalize else 0)
    for span in spans.spans:
        place = slice(*span) if save_states else slice(0, span[1] - span[0])
        before_C, before_n = states_C[place], states_n[place]
        queries, values, q_read, k_fine, k_write = spans.operands(span, before_n)
        scores = torch.bmm(queries, k_fine.mT)
        torch.bmm(k_write.mT, values, out=before_C.flatten(0, 1))
        spans.run_on_states(_states, span, before_C, before_n, final_C, final_n)
        sums = s if normalize else None
        spans.run(_weigh, span, spans.by_chunk(scores), spans.begins, sums)
        y, first = torch.bmm(scores, values), spans.first(span, C is not None)
        y[first:].baddbmm_(q_read[first:], before_C.flatten(0, 1)[first:])
        spans.run(_outputs, span, spans.by_chunk(y), spans.by_chunk(q_read), before_n, sums, h, float(eps))
    return (
        h,
        final_C.view(spans.batch, spans.heads, *state[1:]),
        final_n.view(spans.batch, spans.heads, spans.key_dim),
        spans.m[:, -1].clone().view(spans.batch, spans.heads),
        states_C if save_states else states_C[:0].clone(),
        states_n if save_states else states_n[:0].clone(),
        s,
    )


def backward(
    grad_h: Tensor,
    grad_C: Tensor | None,
    grad_n: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    m: Tensor | None,
    resets: Tensor | None,
    h: Tensor,
    states_C: Tensor,
    states_n: Tensor,
    s: Tensor,
    has_initial_state: bool,
    input_gate: str,
    normalize: bool,
    eps: float,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `torch_chunkwise.backward`."""
    spans = _Spans(q, k, v, i, f, m, resets, input_gate, normalize, chunk)
    state = (spans.rows, spans.key_dim, spans.value_dim)
    dC = q.new_zeros(state) if grad_C is None else grad_C.reshape(state).clone(memory_format=torch.contiguous_format)
    dn = (
        q.new_zeros(state[:2])
        if grad_n is None
        else grad_n.reshape(state[:2]).clone(memory_format=torch.contiguous_format)
    )
    grads = [torch.empty_like(x) for x in (q, k, v)]
    grad_i, grad_f = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (i, f))
    passing, log_i, reading, writing, grad_s = (q.new_empty(spans.rows, spans.time) for _ in range(5))
    carrying = q.new_empty(-(-spans.key_dim // KEYS_AT_ONCE), spans.rows, spans.chunks)
    above, h = rows(grad_h), rows(h)
    for span in reversed(spans.spans):
        n_grads = spans.new(span, spans.key_dim)
        queries, values, q_read, k_fine, k_write = spans.operands(span, n_grads)  # n_grads: not what it holds now
        grad_y = spans.new(span, chunk, spans.value_dim)
        by_chunk = spans.by_chunk(q_read)
        seen = s if normalize else None
        spans.run(_outputs_back, span, above, h, seen, grad_y, grad_s, by_chunk, n_grads, float(eps))
        grad_y = grad_y.flatten(0, 1)
        scores, grad_scores = torch.bmm(queries, k_fine.mT), torch.bmm(grad_y, values.mT)
        spans.run(
            _pairs_back, span, spans.by_chunk(scores), spans.by_chunk(grad_scores), spans.begins, grad_s, passing, log_i
        )  # fmt: skip
        d_q, d_k = torch.bmm(grad_scores, k_fine), torch.bmm(grad_scores.mT, queries)
        d_v = torch.bmm(scores.mT, grad_y)
        first, last = spans.first(span, has_initial_state), spans.last(span, grad_C is not None or grad_n is not None)
        c_grads, d_read = torch.empty_like(states_C[slice(*span)]).flatten(0, 1), torch.empty_like(q_read)
        c_grads[:first], d_read[:first] = 0.0, 0.0
        torch.bmm(q_read[first:].mT, grad_y[first:], out=c_grads[first:])
        spans.run_on_states(
            _states_back, span, spans.by_chunk(c_grads), n_grads, states_C, states_n, dC, dn, carrying
        )  # fmt: skip
        d_v[:last].baddbmm_(k_write[:last], c_grads[:last])
        d_write = torch.empty_like(k_write)
        d_write[last:] = 0.0
        torch.bmm(values[:last], c_grads[:last].mT, out=d_write[:last])
        torch.bmm(grad_y[first:], states_C[slice(*span)].flatten(0, 1)[first:].mT, out=d_read[first:])
        from_products = (spans.by_chunk(part) for part in (d_q, d_k, d_v, d_read, d_write, q_read, k_write))
        spans.run(
            _operands_back, span, *from_products, n_grads, states_n, grad_s, *grads, reading, writing, log_i
        )  # fmt: skip
    run(
        _gates_back, spans.rows, *spans.shape, spans.i, spans.f, spans.resets, passing, reading, writing,
        carrying.sum(0), log_i, grad_i, grad_f, int(spans.exponential),
    )  # fmt: skip
    return (
        *grads,
        grad_i,
        grad_f,
        dC.view(spans.batch, spans.heads, *state[1:]),
        dn.view(spans.batch, spans.heads, spans.key_dim),
    )  # type: ignore[return-value]
