"""The mLSTM's outputs as Triton kernels: the quadratic form of each chunk, then its product with the values."""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl

from kernels.mlstm.triton_tiles import DIMENSIONS, OPTIONS, RUN_TIME, _tile, _weights
from kernels.tuning import tuned


@tuned(*OPTIONS, by=["L", "DK", "RESETS"])
@triton.jit(do_not_specialize=RUN_TIME)
def scores_kernel(
    q, k, row, row_fine, column, column_fine, segment, read, states_n, scores, s,
    q_b, q_h, q_t, k_b, k_h, k_t, time, chunks, heads,
    L: tl.constexpr, BT: tl.constexpr, DK: tl.constexpr, BK: tl.constexpr,
    RESETS: tl.constexpr, NORMALIZE: tl.constexpr,
):  # fmt: skip
    """S of one row of tiles of a chunk, and s = a q . n + sum_j S_tj."""
    tiles: tl.constexpr = L // BT
    c = tl.program_id(0) // tiles
    first = (tl.program_id(0) % tiles) * BT
    bh = tl.program_id(1).to(tl.int64)
    q += (bh // heads) * q_b + (bh % heads) * q_h
    k += (bh // heads) * k_b + (bh % heads) * k_h
    gate_base = (bh * chunks + c) * L
    segment_base = ((bh // heads) * chunks + c) * L
    rows = first + tl.arange(0, BT)
    t = c * L + rows
    total = tl.zeros((BT,), tl.float32)
    if NORMALIZE:
        n = states_n + (c * tl.num_programs(1) + bh) * DK
        for d in range(0, DK, BK):
            dk = d + tl.arange(0, BK)
            total += tl.sum(_tile(q, t, q_t, time, dk).to(tl.float32) * tl.load(n + dk)[None, :], 1)
        total *= tl.load(read + gate_base + rows)
    for start in range(0, first + BT, BT):
        columns = start + tl.arange(0, BT)
        products = tl.zeros((BT, BT), tl.float32)
        for d in range(0, DK, BK):
            dk = d + tl.arange(0, BK)
            k_tile = _tile(k, c * L + columns, k_t, time, dk)
            products += tl.dot(_tile(q, t, q_t, time, dk), tl.trans(k_tile), input_precision="ieee")
        products *= _weights(
            row, row_fine, column, column_fine, segment, gate_base, segment_base, rows, columns, RESETS
        )
        at = gate_base * L + rows[:, None] * L + columns[None, :]
        tl.store(scores + at, products.to(scores.dtype.element_ty))
        total += tl.sum(products, 1)
    if NORMALIZE:
        tl.store(s + bh * time + t, total, mask=t < time)


@tuned(*OPTIONS, by=DIMENSIONS)
@triton.jit(do_not_specialize=RUN_TIME)
def outputs_kernel(
    q, v, scores, read, inverse, states_C, h,
    q_b, q_h, q_t, v_b, v_h, v_t, time, chunks, heads,
    L: tl.constexpr, BT: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
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
    C = states_C + (c * tl.num_programs(2) + bh) * DK * DV
    y = tl.zeros((BT, BV), tl.float32)
    for d in range(0, DK, BK):
        dk = d + tl.arange(0, BK)
        q_tile = _tile(q, t, q_t, time, dk)
        C_tile = tl.load(C + dk[:, None] * DV + dv[None, :])
        y += tl.dot(q_tile, C_tile.to(q_tile.dtype), input_precision="ieee")
    y *= tl.load(read + gate_base + rows)[:, None]
    for start in range(0, first + BT, BT):
        columns = start + tl.arange(0, BT)
        s_tile = tl.load(scores + gate_base * L + rows[:, None] * L + columns[None, :])
        y += tl.dot(s_tile, _tile(v, c * L + columns, v_t, time, dv), input_precision="ieee")
    y *= tl.load(inverse + gate_base + rows)[:, None]
    tl.store(h + (bh * time + t)[:, None] * DV + dv[None, :], y.to(h.dtype.element_ty), mask=(t < time)[:, None])
