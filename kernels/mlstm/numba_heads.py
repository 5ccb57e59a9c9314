"""The mLSTM for CPUs where heads are many and small: a thread takes one through all its chunks, in its own caches.

The passes are those of `numba_passes`, one chunk of one head at a time. Between them stand products of our own
(`kernels.cpu.products`), which read queries and values where they lie and leave out most pairs above the diagonal.
"""

# mypy: disable-error-code="no-untyped-def"

import numpy as np
import torch
from torch import Tensor

from kernels.cpu import empty_rows_like, kernel, most_threads, rows, run
from kernels.cpu.functions import called, f32, given, inlined, row, stride, thread
from kernels.cpu.products import COLUMNS, add_product, after, clear, turn
from kernels.cpu.table import Argument, Doubles, Flags, Integers, Rows
from kernels.mlstm import numba_passes as passes
from kernels.mlstm import numba_passes_back as passes_back
from kernels.mlstm.numba_passes import KEYS_AT_ONCE
from kernels.mlstm.reference import Inputs, MLSTMState, Options, Saved, Upstream

TILES = 14
"""Matrices of a chunk that a thread keeps, at most."""
BEGINS, SCALES, CARRIES, LOGS, GRAD_S, PASSING, READING, WRITING, LOG_I, CARRYING = 7, 8, 9, 10, 16, 17, 18, 19, 20, 21
"""What a thread keeps of a head by token, after the gates' seven weights: (29, tokens)."""
WIDEST = 128
"""Keys and values of so many numbers at most; wider ones, and fewer heads, are for the library's products."""
FEWEST = 16
"""Heads of all sequences, at least."""
NONE = Rows(0, 0, 0, 0, 0)
"""In place of a tensor that is not there."""

_gates, _operands, _states = called(passes.gates), called(passes.operands), called(passes.states)
_weigh, _outputs = called(passes.weigh), called(passes.outputs)
_outputs_back, _pairs_back = called(passes_back.outputs_back), called(passes_back.pairs_back)
_states_back, _operands_back = called(passes_back.states_back), called(passes_back.operands_back)
_gates_back = called(passes_back.gates_back)


@inlined
def address(view, place):
    """Of what the thread has of its own at a place."""
    return view.address + 4 * (thread() * view.first + place * view.second)


@inlined
def own(work, place, width):
    """The thread's matrix at a place, in rows of `width` numbers; the same for every chunk and head."""
    return Rows(address(work, place), 0, 0, width, 0)


@inlined
def planes(by_token, place):
    """The thread's planes from a place on, the same for every head."""
    return Rows(address(by_token, place), by_token.second, 0, 0, 0)


@inlined
def moved(view, i):
    """A tensor from element `i` of its first axis on."""
    return Rows(view.address + 4 * i * view.first, view.first, view.second, view.third, view.fourth)


@inlined
def part(view, i):
    """Element `i` of a tensor along its first axis."""
    return Rows(view.address + 4 * i * view.first, view.second, view.third, view.fourth, 0)


@inlined
def set_product(out, stride_, rows_, columns, x, x_row, x_step, steps, matrix, next_):
    """As `add_product`, to zeros."""
    clear(out, stride_, rows_, columns)
    add_product(out, stride_, rows_, columns, x, x_row, x_step, steps, matrix, next_)


@inlined
def set_pairs(pairs, chunk, count, x, next_, width, columns):
    """Products of rows of x with `columns` (width, chunk), up to the end of a band of rows beyond the diagonal."""
    for b in range(0, count, COLUMNS):
        end = min(b + COLUMNS, count)
        set_product(after(pairs, b * chunk), chunk, end - b, end, after(x, b * next_), next_, 1, width, columns, chunk)


@inlined
def set_from_earlier(out, pairs, chunk, count, matrix, next_, width):
    """out[i] = sum over j <= i of pairs[i, j] matrix[j]; the pairs above the diagonal are zeros."""
    for b in range(0, count, COLUMNS):
        end = min(b + COLUMNS, count)
        set_product(after(out, b * width), width, end - b, width, after(pairs, b * chunk), chunk, 1, end, matrix, next_)


@inlined
def set_from_later(out, pairs, chunk, count, matrix, next_, width):
    """out[j] = sum over i >= j of pairs[i, j] matrix[i]."""
    for b in range(0, count, COLUMNS):
        end, x = min(b + COLUMNS, count), after(pairs, b * chunk + b)
        set_product(
            after(out, b * width), width, end - b, width, x, 1, chunk, count - b, after(matrix, b * next_), next_
        )


@kernel
def _forward(
    first, last, heads: int, time: int, chunk: int, key_dim: int, value_dim: int, input_gates: Rows,
    forget_gates: Rows, initial_m: Rows | None, resets: Flags | None, exponential: bool, qs: Rows, ks: Rows, vs: Rows,
    C_states: Rows, n_states: Rows, final_C: Rows, final_n: Rows, final_m: Rows, sums: Rows | None, hs: Rows,
    eps: float, work: Rows, by_token: Rows,
):  # fmt: skip
    """Pieces are heads of sequences; tensors as in `numba_passes`, of all chunks.

    `work` (threads, TILES, numbers) and `by_token` (threads, planes, tokens) are the threads' own.
    """
    slices = (key_dim + KEYS_AT_ONCE - 1) // KEYS_AT_ONCE
    q_reads, k_fines, k_writes = own(work, 0, key_dim), own(work, 1, key_dim), own(work, 2, key_dim)
    products, ys = own(work, 3, chunk), own(work, 4, value_dim)
    k_turned, pairs, y = row(own(work, 5, chunk)), row(products), row(ys)
    exponents = Doubles(address(by_token, LOGS), 0, chunk, 0, 0)
    gate_weights, carries = planes(by_token, 0), own(by_token, CARRIES, 0)
    document_begins, ms = Integers(address(by_token, BEGINS), 0, 0, 0, 0), own(by_token, SCALES, 0)
    root, stabilized = f32(1.0 / np.sqrt(float(key_dim))), exponential and given(sums)
    for r in range(first, last):
        _gates(
            r, r + 1, heads, time, chunk, input_gates, forget_gates, initial_m, resets, gate_weights, carries, ms,
            document_begins, exponents, exponential, stabilized, root,
        )  # fmt: skip
        for c in range((time + chunk - 1) // chunk):
            at, start = c * last + r, c * chunk
            count = min(chunk, time - start)
            q, v, v_next = row(qs, r // heads, r % heads, start), row(vs, r // heads, r % heads, start), stride(vs, 2)
            _operands(
                at, at + 1, heads, time, chunk, last, 0, key_dim, value_dim, gate_weights, qs, ks, vs, NONE,
                NONE, q_reads, k_fines, k_writes, n_states,
            )  # fmt: skip
            state = row(C_states, c, r)
            set_product(state, value_dim, key_dim, value_dim, row(k_writes), 1, key_dim, count, v, v_next)
            _states(
                r * slices, (r + 1) * slices, 1, c, key_dim, value_dim, carries, moved(C_states, c), moved(n_states, c),
                final_C, final_n,
            )  # fmt: skip
            turn(k_turned, chunk, row(k_fines), key_dim, count, key_dim)
            set_pairs(pairs, chunk, count, q, stride(qs, 2), key_dim, k_turned)
            _weigh(
                at, at + 1, heads, time, chunk, last, 0, key_dim, value_dim, gate_weights, products,
                document_begins, sums,
            )  # fmt: skip
            set_from_earlier(y, pairs, chunk, count, v, v_next, value_dim)
            if c > 0 or given(initial_m):
                add_product(y, value_dim, count, value_dim, row(q_reads), key_dim, 1, key_dim, state, value_dim)
            _outputs(
                at, at + 1, heads, time, chunk, last, 0, key_dim, value_dim, gate_weights, ys, q_reads, n_states,
                sums, hs, eps,
            )  # fmt: skip
        row(final_m)[r] = row(ms)[time - 1]


@kernel
def _backward(
    first, last, heads: int, time: int, chunk: int, key_dim: int, value_dim: int, input_gates: Rows,
    forget_gates: Rows, initial_m: Rows | None, resets: Flags | None, exponential: bool, qs: Rows, ks: Rows, vs: Rows,
    C_states: Rows, n_states: Rows, grad_C: Rows, grad_n: Rows, has_grad: bool, denominators: Rows | None, hs: Rows,
    eps: float, grad_hs: Rows, grad_qs: Rows, grad_ks: Rows, grad_vs: Rows, grad_gates: Rows, work: Rows,
    by_token: Rows,
):  # fmt: skip
    """As `_forward`; `grad_gates` (2, batch, heads, time): of input and forget gates."""
    slices, chunks = (key_dim + KEYS_AT_ONCE - 1) // KEYS_AT_ONCE, (time + chunk - 1) // chunk
    q_reads, k_fines, k_writes = own(work, 0, key_dim), own(work, 1, key_dim), own(work, 2, key_dim)
    d_qs, d_ks = own(work, 3, key_dim), own(work, 4, key_dim)
    d_reads, d_writes = own(work, 5, key_dim), own(work, 6, key_dim)
    grad_ys, d_vs, n_grads = own(work, 7, value_dim), own(work, 8, value_dim), own(work, 9, key_dim)
    products, grad_scores, C_grads = own(work, 10, chunk), own(work, 11, chunk), own(work, 12, value_dim)
    turned, pairs, grads = row(own(work, 13, chunk)), row(products), row(grad_scores)
    grad_y, d_v, d_C = row(grad_ys), row(d_vs), row(C_grads)
    grad_s, passing, reading = own(by_token, GRAD_S, 0), own(by_token, PASSING, 0), own(by_token, READING, 0)
    writing, log_i, carrying = own(by_token, WRITING, 0), own(by_token, LOG_I, 0), planes(by_token, CARRYING)
    exponents = Doubles(address(by_token, LOGS), 0, chunk, 0, 0)
    gate_weights, carries = planes(by_token, 0), own(by_token, CARRIES, 0)
    document_begins, ms = Integers(address(by_token, BEGINS), 0, 0, 0, 0), own(by_token, SCALES, 0)
    root, stabilized = f32(1.0 / np.sqrt(float(key_dim))), exponential and given(denominators)
    for r in range(first, last):
        _gates(
            r, r + 1, heads, time, chunk, input_gates, forget_gates, initial_m, resets, gate_weights, carries, ms,
            document_begins, exponents, exponential, stabilized, root,
        )  # fmt: skip
        for c in range(chunks - 1, -1, -1):
            at, start = c * last + r, c * chunk
            count = min(chunk, time - start)
            q, q_next = row(qs, r // heads, r % heads, start), stride(qs, 2)
            v, v_next = row(vs, r // heads, r % heads, start), stride(vs, 2)
            _operands(
                at, at + 1, heads, time, chunk, last, 0, key_dim, value_dim, gate_weights, qs, ks, vs, NONE,
                NONE, q_reads, k_fines, k_writes, n_grads,
            )  # fmt: skip
            _outputs_back(
                at, at + 1, heads, time, chunk, last, 0, key_dim, value_dim, gate_weights, grad_hs, hs,
                denominators, grad_ys, grad_s, q_reads, n_grads, eps,
            )  # fmt: skip
            turn(turned, chunk, row(k_fines), key_dim, count, key_dim)
            set_pairs(pairs, chunk, count, q, q_next, key_dim, turned)
            turn(turned, chunk, v, v_next, count, value_dim)
            set_pairs(grads, chunk, count, grad_y, value_dim, value_dim, turned)
            _pairs_back(
                at, at + 1, heads, time, chunk, last, 0, key_dim, value_dim, gate_weights, products, grad_scores,
                document_begins, grad_s, passing, log_i,
            )  # fmt: skip
            set_from_earlier(row(d_qs), grads, chunk, count, row(k_fines), key_dim, key_dim)
            set_from_later(row(d_ks), grads, chunk, count, q, q_next, key_dim)
            set_from_later(d_v, pairs, chunk, count, grad_y, value_dim, value_dim)
            clear(d_C, value_dim, key_dim, value_dim)
            clear(row(d_reads), key_dim, count, key_dim)
            clear(row(d_writes), key_dim, count, key_dim)
            if c > 0 or given(initial_m):
                add_product(d_C, value_dim, key_dim, value_dim, row(q_reads), 1, key_dim, count, grad_y, value_dim)
                turn(turned, key_dim, row(C_states, c, r), value_dim, key_dim, value_dim)
                add_product(row(d_reads), key_dim, count, key_dim, grad_y, value_dim, 1, value_dim, turned, key_dim)
            _states_back(
                r * slices, (r + 1) * slices, 1, c, key_dim, value_dim, carries, C_grads, n_grads, C_states, n_states,
                grad_C, grad_n, carrying,
            )  # fmt: skip
            if c < chunks - 1 or has_grad:
                add_product(d_v, value_dim, count, value_dim, row(k_writes), key_dim, 1, key_dim, d_C, value_dim)
                turn(turned, key_dim, d_C, value_dim, key_dim, value_dim)
                add_product(row(d_writes), key_dim, count, key_dim, v, v_next, 1, value_dim, turned, key_dim)
            _operands_back(
                at, at + 1, heads, time, chunk, last, 0, key_dim, value_dim, gate_weights, d_qs, d_ks, d_vs,
                d_reads, d_writes, q_reads, k_writes, n_grads, n_states, grad_s, grad_qs, grad_ks,
                grad_vs, reading, writing, log_i,
            )  # fmt: skip
            for s in range(1, slices):
                row(carrying)[c] += row(carrying, s)[c]
        _gates_back(
            r, r + 1, heads, time, chunk, input_gates, forget_gates, resets, passing, reading, writing,
            own(by_token, CARRYING, 0), log_i, part(grad_gates, 0), part(grad_gates, 1), exponential,
        )  # fmt: skip


def fits(q: Tensor, v: Tensor) -> bool:
    """Whether heads are many and small enough; it does not depend on threads, so that no number does."""
    return q.shape[0] * q.shape[1] >= FEWEST and max(q.shape[-1], v.shape[-1]) <= WIDEST


def copied(part: Tensor | None, like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """What a kernel may change of a state, or of its gradient, in float32 and of this shape; zeros where it is None."""
    if part is None:
        return like.new_zeros(shape)
    return part.reshape(shape).float().clone(memory_format=torch.contiguous_format)


def _shared(inputs: Inputs, m: Tensor | None, resets: Tensor | None, options: Options) -> dict[str, Argument]:
    q, k, v, i, f = inputs
    time, key_dim, value_dim, chunk, threads = q.shape[2], q.shape[3], v.shape[3], options.chunk, most_threads()
    return {
        "heads": q.shape[1], "time": time, "chunk": chunk, "key_dim": key_dim, "value_dim": value_dim,
        "input_gates": rows(i), "forget_gates": rows(f), "resets": None if resets is None else rows(resets),
        "initial_m": None if m is None else m.reshape(-1).to(torch.float32).contiguous(),
        "exponential": options.input_gate == "exponential", "qs": rows(q), "ks": rows(k), "vs": rows(v),
        "eps": float(options.eps), "work": q.new_empty(threads, TILES, max(chunk, key_dim, value_dim) ** 2),
        "by_token": q.new_empty(threads, CARRYING + WIDEST // KEYS_AT_ONCE, -(-time // chunk) * chunk),
    }  # fmt: skip


def forward(
    inputs: Inputs, state: MLSTMState | None, resets: Tensor | None, options: Options, save_states: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `torch_chunkwise.forward`."""
    q, v = inputs.q, inputs.v
    C, n, m = (None, None, None) if state is None else state
    batch, heads, time, key_dim = q.shape
    chunks, num_rows = -(-time // options.chunk), batch * heads
    shape = (num_rows, key_dim, v.shape[-1])
    states_C, states_n = (q.new_empty(chunks if save_states else 1, *part) for part in (shape, shape[:2]))
    final_C, final_n = copied(C, q, shape), copied(n, q, shape[:2])
    h = torch.empty_like(v, memory_format=torch.contiguous_format)
    s = q.new_empty(num_rows, time if options.normalize else 0)
    final_m = q.new_empty(num_rows)
    run(
        _forward, num_rows, **_shared(inputs, m, resets, options), C_states=states_C.expand(chunks, *shape),
        n_states=states_n.expand(chunks, *shape[:2]), final_C=final_C, final_n=final_n,
        final_m=final_m, sums=s if options.normalize else None, hs=h,
    )  # fmt: skip
    return h, final_C, final_n, final_m, states_C, states_n, s


def backward(
    upstream: Upstream, inputs: Inputs, m: Tensor | None, resets: Tensor | None, saved: Saved, options: Options
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `torch_chunkwise.backward`."""
    q, k, v, *_ = inputs
    grad_h, grad_C, grad_n = upstream
    h, states_C, states_n, s = saved
    batch, heads, time, _ = q.shape
    num_rows, shape = batch * heads, states_C.shape[1:]
    dC, dn = copied(grad_C, q, shape), copied(grad_n, q, shape[:2])
    # As the inputs lie, so that none is copied on its way through the block.
    grad_q, grad_k, grad_v = (empty_rows_like(x) for x in (q, k, v))
    grad_gates = q.new_empty(2, batch, heads, time)
    run(
        _backward, num_rows, **_shared(inputs, m, resets, options), C_states=states_C, n_states=states_n, grad_C=dC,
        grad_n=dn, has_grad=grad_C is not None or grad_n is not None, denominators=s if options.normalize else None,
        hs=rows(h), grad_hs=rows(grad_h), grad_qs=grad_q, grad_ks=grad_k, grad_vs=grad_v, grad_gates=grad_gates,
    )  # fmt: skip
    grad_i, grad_f = (grad.clone() for grad in grad_gates)  # none may share another's memory
    return grad_q, grad_k, grad_v, grad_i, grad_f, dC, dn
