"""The mLSTM's gates as Triton kernels, one each way: weights from pre-activations, and the gates' gradients.

The equations are those of `torch_chunkwise.chunk_gates` and `gate_gradients`, in float64. Forward, a program takes a
head of a sequence through its chunks: m is a scan over (sum, max), which carries from chunk to chunk. Backward, chunks
do not depend on one another.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.mlstm.reference import Inputs, Options
from kernels.mlstm.torch_chunkwise import COARSE
from kernels.mlstm.triton_tiles import RUN_TIME

SIXTEENTH = tl.constexpr(1.0 / COARSE)


class Gates(NamedTuple):
    """As `torch_chunkwise.ChunkGates`, (batch * heads, chunks, L) where not said otherwise; `read` is a_t itself."""

    row: Tensor
    row_fine: Tensor
    column: Tensor
    column_fine: Tensor
    read: Tensor
    write: Tensor
    floor: Tensor
    carry: Tensor  # (batch * heads, chunks)
    segment: Tensor  # int32 (batch, chunks, L), or without numbers where there are no resets
    m: Tensor  # the last, (batch * heads,)


@triton.jit
def _log_sigmoid(x):
    return tl.minimum(x, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def _then(decay_before, best_before, decay, best):
    """Two stretches of m_t = max(log f_t + m_{t-1}, log i_t), the second after the first."""
    return decay_before + decay, tl.maximum(best_before + decay, best)


@triton.jit
def _store_split(coarse_part, fine_part, at, exponent, factor, mask):
    """An exponent as a multiple of 1/16, and factor times the exponential of the rest (1 where it is infinite)."""
    coarse = tl.floor(exponent / SIXTEENTH + 0.5) * SIXTEENTH
    rest = exponent - coarse
    fine = tl.where(rest == rest, tl.exp(rest), 1.0)
    tl.store(coarse_part + at, coarse.to(tl.float32), mask=mask)
    tl.store(fine_part + at, fine.to(tl.float32) * factor, mask=mask)


@triton.jit(do_not_specialize=[*RUN_TIME, "root"])
def gates_kernel(
    i, f, initial_m, resets, row, row_fine, column, column_fine, read, write, floor, carry, segment, final_m,
    i_b, i_h, i_t, f_b, f_h, f_t, root, time, chunks, heads,
    L: tl.constexpr, B: tl.constexpr, EXPONENTIAL: tl.constexpr, STABILIZED: tl.constexpr, HAS_INITIAL: tl.constexpr,
    RESETS: tl.constexpr,
):  # fmt: skip
    """All weights of one head of a sequence; B holds a chunk."""
    bh = tl.program_id(0).to(tl.int64)
    i += (bh // heads) * i_b + (bh % heads) * i_h
    f += (bh // heads) * f_b + (bh % heads) * f_h
    position = tl.arange(0, B)
    in_chunk = position < L
    before = tl.full((), 0.0, tl.float64)
    if HAS_INITIAL:
        before += tl.load(initial_m + bh).to(tl.float64)
    for c in range(chunks):
        t = c * L + position
        inside = in_chunk & (t < time)
        log_f = _log_sigmoid(tl.load(f + t * f_t, mask=inside, other=0.0).to(tl.float64))
        log_i = tl.load(i + t * i_t, mask=inside, other=0.0).to(tl.float64)
        if not EXPONENTIAL:
            log_i = _log_sigmoid(log_i)
        # After the end nothing is forgotten and nothing written, so that the last position holds what the chunk leaves.
        log_f = tl.where(inside, log_f, 0.0)
        log_i = tl.where(inside, log_i, float("-inf"))
        decay, best = log_f, log_i
        if RESETS:
            begins = inside & (tl.load(resets + (bh // heads) * time + t, mask=inside, other=0) != 0)
            decay = tl.where(begins, float("-inf"), log_f)
            best = tl.where(begins, tl.maximum(log_i, log_f), log_i)
            log_f = tl.where(begins, 0.0, log_f)
        m = tl.zeros((B,), tl.float64)
        if STABILIZED:
            decay, best = tl.associative_scan((decay, best), 0, _then)
            m = tl.maximum(best, decay + before)
        end = tl.sum(tl.where(position == B - 1, m, 0.0), 0)
        b = tl.cumsum(log_f, 0)
        whole = tl.sum(tl.where(position == B - 1, b, 0.0), 0)
        reads = tl.exp(b + before - m)
        writes = tl.exp(whole - b + log_i - end)
        carries = tl.exp(whole + before - end)
        if RESETS:
            documents = tl.cumsum(begins.to(tl.int32), 0)
            last = tl.sum(begins.to(tl.int32), 0)
            reads = tl.where(documents > 0, 0.0, reads)
            writes = tl.where(documents < last, 0.0, writes)
            carries = tl.where(last > 0, 0.0, carries)
            if bh % heads == 0:
                tl.store(segment + ((bh // heads) * chunks + c) * L + position, documents, mask=in_chunk)
        at = (bh * chunks + c) * L + position
        _store_split(row, row_fine, at, b - m, 1.0, in_chunk)
        _store_split(column, column_fine, at, log_i - b, root, in_chunk)
        tl.store(read + at, reads.to(tl.float32), mask=in_chunk)
        tl.store(write + at, (writes * root).to(tl.float32), mask=in_chunk)
        tl.store(floor + at, tl.exp(-m).to(tl.float32), mask=in_chunk)
        tl.store(carry + bh * chunks + c, carries.to(tl.float32))
        before = end
    tl.store(final_m + bh, before.to(tl.float32))


@triton.jit
def _total(partial_sums, at, NUMBER: tl.constexpr, B: tl.constexpr):
    """The sum of NUMBER partial sums, which B holds."""
    place = tl.arange(0, B)
    return tl.sum(tl.load(partial_sums + at * NUMBER + place, mask=place < NUMBER, other=0.0), 0)


@triton.jit(do_not_specialize=RUN_TIME)
def gates_backward_kernel(
    i, f, resets, row_sums, column_sums, diagonal, dots_q, dots_k, carried_C, carried_n, grad_i, grad_f,
    i_b, i_h, i_t, f_b, f_h, f_t, time, chunks, heads,
    L: tl.constexpr, B: tl.constexpr, ST: tl.constexpr, KEY_TILES: tl.constexpr, IN_C: tl.constexpr,
    B_C: tl.constexpr, IN_N: tl.constexpr, B_N: tl.constexpr, EXPONENTIAL: tl.constexpr, RESETS: tl.constexpr,
):  # fmt: skip
    """Gradients of the pre-activations in one chunk, from sums over its positions.

    The gradient of log f at token u gathers every pair (t, j) with j < u <= t: pairs within the chunk, plus at their
    row and minus at their column, reads of the state from u on, writes before u, and the state that is carried on.
    """
    c = tl.program_id(0)
    bh = tl.program_id(1).to(tl.int64)
    position = tl.arange(0, B)
    in_chunk = position < L
    base = (bh * chunks + c) * L
    columns = tl.zeros((B,), tl.float32)
    for tile in range(L // ST):
        seen = in_chunk & (position < (tile + 1) * ST)
        columns += tl.load(column_sums + base * (L // ST) + tile * L + position, mask=seen, other=0.0)
    reads = tl.zeros((B,), tl.float32)
    writes = tl.zeros((B,), tl.float32)
    earlier = tl.zeros((B,), tl.float32)  # a token's own write may dwarf all before it, so it is left out
    for tile in range(KEY_TILES):
        at = (base + position) * KEY_TILES + tile
        reads += tl.load(dots_q + at, mask=in_chunk, other=0.0)
        writes += tl.load(dots_k + at, mask=in_chunk, other=0.0)
        earlier += tl.load(dots_k + at - KEY_TILES, mask=in_chunk & (position > 0), other=0.0)
    later = tl.load(row_sums + base + position, mask=in_chunk, other=0.0) - columns + reads
    carried = _total(carried_C, bh * chunks + c, IN_C, B_C) + _total(carried_n, bh * chunks + c, IN_N, B_N)
    grad_log_f = tl.cumsum(later.to(tl.float64), 0, reverse=True) + tl.cumsum(earlier.to(tl.float64), 0) + carried
    t = c * L + position
    inside = in_chunk & (t < time)
    if RESETS:
        begins = tl.load(resets + (bh // heads) * time + t, mask=inside, other=0) != 0
        grad_log_f = tl.where(begins, 0.0, grad_log_f)
    x_f = tl.load(f + (bh // heads) * f_b + (bh % heads) * f_h + t * f_t, mask=inside, other=0.0).to(tl.float64)
    result = grad_log_f / (1.0 + tl.exp(x_f))
    tl.store(grad_f + bh * time + t, result.to(grad_f.dtype.element_ty), mask=inside)
    grad_log_i = columns + tl.load(diagonal + base + position, mask=in_chunk, other=0.0) + writes
    if not EXPONENTIAL:
        x_i = tl.load(i + (bh // heads) * i_b + (bh % heads) * i_h + t * i_t, mask=inside, other=0.0)
        grad_log_i = grad_log_i / (1.0 + tl.exp(x_i.to(tl.float32)))
    tl.store(grad_i + bh * time + t, grad_log_i.to(grad_i.dtype.element_ty), mask=inside)


def _strides(inputs: Inputs) -> tuple[int, ...]:
    return *inputs.i.stride(), *inputs.f.stride()


def chunk_gates(inputs: Inputs, m: Tensor | None, resets: Tensor | None, options: Options) -> Gates:
    """All gate weights of a sequence, in one launch."""
    batch, heads, time = inputs.i.shape
    rows, chunks = batch * heads, -(-time // options.chunk)
    weights = inputs.v.new_empty(7, rows, chunks, options.chunk, dtype=torch.float32)
    carry, last = weights.new_empty(rows, chunks), weights.new_empty(rows)
    segment = carry.new_empty((0,) if resets is None else (batch, chunks, options.chunk), dtype=torch.int32)
    gates_kernel[(rows,)](
        inputs.i, inputs.f, last if m is None else m.contiguous(), segment if resets is None else resets.contiguous(),
        *weights, carry, segment, last, *_strides(inputs), inputs.q.shape[-1] ** -0.5, time, chunks, heads,
        L=options.chunk, B=triton.next_power_of_2(options.chunk), EXPONENTIAL=options.input_gate == "exponential",
        STABILIZED=options.stabilized, HAS_INITIAL=m is not None, RESETS=resets is not None,
    )  # fmt: skip
    row, row_fine, column, column_fine, read, write, floor = weights
    return Gates(row, row_fine, column, column_fine, read, write, floor, carry, segment, last)


def gate_gradients(
    inputs: Inputs,
    resets: Tensor | None,
    options: Options,
    sums: tuple[Tensor, Tensor, Tensor],
    dots: tuple[Tensor, Tensor],
    carried: tuple[Tensor, Tensor],
    step: int,
) -> tuple[Tensor, Tensor]:
    """Gradients of the gates' pre-activations, (batch, heads, time), in one launch.

    `sums` are row_sums, column_sums and diagonal of `scores_backward_kernel`, whose tiles are `step` tokens wide;
    `dots` (batch * heads, chunks, L, tiles) and `carried` (batch * heads, chunks, tiles) what tiles of keys, and of
    states, have of reads and writes, and of what passes through C and through n.
    """
    batch, heads, time = inputs.i.shape
    chunks, in_C, in_n = carried[0].shape[1], carried[0].shape[2], carried[1].shape[2]
    grad_i, grad_f = inputs.i.new_empty(inputs.i.shape), inputs.f.new_empty(inputs.f.shape)
    gates_backward_kernel[(chunks, batch * heads)](
        inputs.i, inputs.f, grad_i if resets is None else resets.contiguous(), *sums, *dots, *carried, grad_i, grad_f,
        *_strides(inputs), time, chunks, heads,
        L=options.chunk, B=triton.next_power_of_2(options.chunk), ST=step, KEY_TILES=dots[0].shape[-1],
        IN_C=in_C, B_C=triton.next_power_of_2(in_C), IN_N=in_n, B_N=triton.next_power_of_2(in_n),
        EXPONENTIAL=options.input_gate == "exponential", RESETS=resets is not None,
    )  # fmt: skip
    return grad_i, grad_f
