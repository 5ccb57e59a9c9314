"""The mLSTM's outputs as Triton kernels: the quadratic form of each chunk, then its product with the values."""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl

from kernels.mlstm.triton_tiles import (
    DIMENSIONS,
    OPTIONS,
    RUN_TIME,
    WIDE_OPTIONS,
    _denominator,
    _place,
    _tile,
    _weights,
)
from kernels.tuning import tuned


@tuned(*OPTIONS, by=["L", "DK", "RESETS"])
@triton.jit(do_not_specialize=RUN_TIME)
def scores_kernel(
    q, k, row, row_fine, column, column_fine, segment, read, states_n, scores, s,
    q_b, q_h, q_t, k_b, k_h, k_t, time, chunks, heads,
    L: tl.constexpr, ST: tl.constexpr, BT: tl.constexpr, DK: tl.constexpr, SK: tl.constexpr,
    RESETS: tl.constexpr, NORMALIZE: tl.constexpr,
):  # fmt: skip
    """S of one row of tiles of a chunk, and s = a q . n + sum_j S_tj.

    Above the diagonal, S is written as far as the tiles of BT tokens reach that are read of it.
    """
    tiles: tl.constexpr = L // ST
    c = tl.program_id(0) // tiles
    first = (tl.program_id(0) % tiles) * ST
    bh = tl.program_id(1).to(tl.int64)
    q += (bh // heads) * q_b + (bh % heads) * q_h
    k += (bh // heads) * k_b + (bh % heads) * k_h
    gate_base = (bh * chunks + c) * L
    segment_base = ((bh // heads) * chunks + c) * L
    rows = first + tl.arange(0, ST)
    t = c * L + rows
    total = tl.zeros((ST,), tl.float32)
    if NORMALIZE:
        n = states_n + _place(c, bh, tl.num_programs(1), DK)
        for d in range(0, DK, SK):
            dk = d + tl.arange(0, SK)
            total += tl.sum(_tile(q, t, q_t, time, dk).to(tl.float32) * tl.load(n + dk)[None, :], 1)
        total *= tl.load(read + gate_base + rows)
    for start in range(0, first + ST, ST):
        columns = start + tl.arange(0, ST)
        products = tl.zeros((ST, ST), tl.float32)
        for d in range(0, DK, SK):
            dk = d + tl.arange(0, SK)
            k_tile = _tile(k, c * L + columns, k_t, time, dk)
            products += tl.dot(_tile(q, t, q_t, time, dk), tl.trans(k_tile), input_precision="ieee")
        products *= _weights(
            row, row_fine, column, column_fine, segment, gate_base, segment_base, rows, columns, RESETS
        )
        at = gate_base * L + rows[:, None] * L + columns[None, :]
        tl.store(scores + at, products.to(scores.dtype.element_ty))
        total += tl.sum(products, 1)
    for start in range(first + ST, (first // BT + 1) * BT, ST):
        at = gate_base * L + rows[:, None] * L + start + tl.arange(0, ST)[None, :]
        tl.store(scores + at, tl.zeros((ST, ST), scores.dtype.element_ty))
    if NORMALIZE:
        tl.store(s + bh * time + t, total, mask=t < time)


@tuned(*WIDE_OPTIONS, by=DIMENSIONS)
@triton.jit(do_not_specialize=RUN_TIME)
def outputs_kernel(
    q, v, scores, read, s, floor, states_C, h,
    q_b, q_h, q_t, v_b, v_h, v_t, eps, time, chunks, heads,
    L: tl.constexpr, BT: tl.constexpr, ST: tl.constexpr, DK: tl.constexpr, SK: tl.constexpr, DV: tl.constexpr,
    BV: tl.constexpr, NORMALIZE: tl.constexpr,
):  # fmt: skip
    """h of one tile of tokens and one of channels: (a q C + S V) / den."""
    tiles: tl.constexpr = L // BT
    dv = tl.program_id(0) * BV + tl.arange(0, BV)
    c = tl.program_id(1) // tiles
    first = (tl.program_id(1) % tiles) * BT
    bh = tl.program_id(2).to(tl.int64)
    q += (bh // heads) * q_b + (bh % heads) * q_h
    v += (bh // heads) * v_b + (bh % heads) * v_h
    gate_base = (bh * chunks + c) * L
    rows = first + tl.arange(0, BT)
    t = c * L + rows
    C = states_C + _place(c, bh, tl.num_programs(2), DK * DV)
    y = tl.zeros((BT, BV), tl.float32)
    for d in range(0, DK, SK):
        dk = d + tl.arange(0, SK)
        q_tile = _tile(q, t, q_t, time, dk)
        C_tile = tl.load(C + dk[:, None] * DV + dv[None, :])
        y += tl.dot(q_tile, C_tile.to(q_tile.dtype), input_precision="ieee")
    y *= tl.load(read + gate_base + rows)[:, None]
    of_chunk = scores + gate_base * L
    for start in range(0, first + BT, ST):
        columns = start + tl.arange(0, ST)
        s_tile = tl.load(of_chunk + rows[:, None] * L + columns[None, :])
        y += tl.dot(s_tile, _tile(v, c * L + columns, v_t, time, dv), input_precision="ieee")
    if NORMALIZE:
        s_t = tl.load(s + bh * time + t, mask=t < time, other=0.0)
        y *= (1.0 / _denominator(s_t, tl.load(floor + gate_base + rows), eps))[:, None]
    of_head = h + bh * time * DV
    tl.store(of_head + t[:, None] * DV + dv[None, :], y.to(h.dtype.element_ty), mask=(t < time)[:, None])
