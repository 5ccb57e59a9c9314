"""Gradients within the mLSTM's chunks as Triton kernels: of the quadratic form, then of queries, keys and values."""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl

from kernels.mlstm.triton_tiles import DIMENSIONS, EIGHT_WARPS, OPTIONS, RUN_TIME, _tile, _weights
from kernels.tuning import tuned


@tuned(*EIGHT_WARPS, by=[*DIMENSIONS, "RESETS"])
@triton.jit(do_not_specialize=RUN_TIME)
def scores_backward_kernel(
    q, k, v, h, grad_h, row, row_fine, column, column_fine, segment, inverse, sign, scores, d_products,
    ds, row_sums, column_sums, diagonal,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, g_b, g_h, g_t, time, chunks, heads,
    L: tl.constexpr, BT: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    RESETS: tl.constexpr, NORMALIZE: tl.constexpr,
):  # fmt: skip
    """S again, dP = dS * W, ds, and the sums of dS * S below the diagonal by row and column, and on it."""
    tiles: tl.constexpr = L // BT
    c = tl.program_id(0) // tiles
    first = (tl.program_id(0) % tiles) * BT
    bh = tl.program_id(1).to(tl.int64)
    q += (bh // heads) * q_b + (bh % heads) * q_h
    k += (bh // heads) * k_b + (bh % heads) * k_h
    v += (bh // heads) * v_b + (bh % heads) * v_h
    grad_h += (bh // heads) * g_b + (bh % heads) * g_h
    gate_base = (bh * chunks + c) * L
    segment_base = ((bh // heads) * chunks + c) * L
    rows = first + tl.arange(0, BT)
    t = c * L + rows
    inverse_t = tl.load(inverse + gate_base + rows)
    ds_t = tl.zeros((BT,), tl.float32)
    if NORMALIZE:
        for d in range(0, DV, BV):
            dv = d + tl.arange(0, BV)
            h_tile = _tile(h + bh * time * DV, t, DV, time, dv).to(tl.float32)
            ds_t += tl.sum(h_tile * _tile(grad_h, t, g_t, time, dv).to(tl.float32), 1)
        ds_t *= -inverse_t * tl.load(sign + gate_base + rows)
    tl.store(ds + gate_base + rows, ds_t)
    sums = tl.zeros((BT,), tl.float32)
    for start in range(0, first + BT, BT):
        columns = start + tl.arange(0, BT)
        j = c * L + columns
        products = tl.zeros((BT, BT), tl.float32)
        for d in range(0, DK, BK):
            dk = d + tl.arange(0, BK)
            products += tl.dot(_tile(q, t, q_t, time, dk), tl.trans(_tile(k, j, k_t, time, dk)), input_precision="ieee")
        d_scores = tl.zeros((BT, BT), tl.float32)
        for d in range(0, DV, BV):
            dv = d + tl.arange(0, BV)
            d_scores += tl.dot(
                _tile(grad_h, t, g_t, time, dv), tl.trans(_tile(v, j, v_t, time, dv)), input_precision="ieee"
            )
        d_scores = d_scores * inverse_t[:, None] + ds_t[:, None]
        weights = _weights(row, row_fine, column, column_fine, segment, gate_base, segment_base, rows, columns, RESETS)
        products *= weights
        at = gate_base * L + rows[:, None] * L + columns[None, :]
        tl.store(scores + at, products.to(scores.dtype.element_ty))
        tl.store(d_products + at, (d_scores * weights).to(d_products.dtype.element_ty))
        pairs = d_scores * products
        on_diagonal = rows[:, None] == columns[None, :]
        below = tl.where(on_diagonal, 0.0, pairs)
        sums += tl.sum(below, 1)
        # One partial sum per row of tiles: their total does not depend on the order in which programs end.
        tl.store(column_sums + gate_base * tiles + (first // BT) * L + columns, tl.sum(below, 0))
        if start == first:
            tl.store(diagonal + gate_base + rows, tl.sum(tl.where(on_diagonal, pairs, 0.0), 1))
    tl.store(row_sums + gate_base + rows, sums)


@tuned(*OPTIONS, by=["L", "DX", "DO", "TRANSPOSED_STATE", "LATER"])
@triton.jit(do_not_specialize=RUN_TIME)
def inputs_backward_kernel(
    x, states, y, pairs, outer, vector, vector_scale, inner, own, out, dots,
    x_b, x_h, x_t, y_b, y_h, y_t, o_b, o_h, o_t, time, chunks, heads,
    L: tl.constexpr, BT: tl.constexpr, DX: tl.constexpr, DO: tl.constexpr, BX: tl.constexpr, BO: tl.constexpr,
    TRANSPOSED_STATE: tl.constexpr, LATER: tl.constexpr, HAS_VECTOR: tl.constexpr, HAS_DOTS: tl.constexpr,
):  # fmt: skip
    """One tile of a gradient that comes through the states and through the pairs of its chunk:

        part = outer_t x_t M + vector_scale_t vector
        dots_t = part . own_t
        out_t = part + sum_j pairs_tj inner_j y_j

    with M the chunk's state or its transpose, and pairs read by row (j <= t) or, where LATER, by column (j >= t).
    dq: x = grad_h, M = C^T, y = k; dk: x = v, M = dC^T, y = q; dv: x = k, M = dC, y = grad_h.
    """
    tiles: tl.constexpr = L // BT
    do = tl.program_id(0) * BO + tl.arange(0, BO)
    c = tl.program_id(1) // tiles
    first = (tl.program_id(1) % tiles) * BT
    bh = tl.program_id(2).to(tl.int64)
    x += (bh // heads) * x_b + (bh % heads) * x_h
    y += (bh // heads) * y_b + (bh % heads) * y_h
    own += (bh // heads) * o_b + (bh % heads) * o_h
    gate_base = (bh * chunks + c) * L
    rows = first + tl.arange(0, BT)
    t = c * L + rows
    M = states + (c * tl.num_programs(2) + bh) * DX * DO
    part = tl.zeros((BT, BO), tl.float32)
    for d in range(0, DX, BX):
        dx = d + tl.arange(0, BX)
        x_tile = _tile(x, t, x_t, time, dx)
        if TRANSPOSED_STATE:
            m_tile = tl.trans(tl.load(M + do[:, None] * DX + dx[None, :]))
        else:
            m_tile = tl.load(M + dx[:, None] * DO + do[None, :])
        part += tl.dot(x_tile, m_tile.to(x_tile.dtype), input_precision="ieee")
    part *= tl.load(outer + gate_base + rows)[:, None]
    if HAS_VECTOR:
        scale = tl.load(vector_scale + gate_base + rows)
        part += scale[:, None] * tl.load(vector + (c * tl.num_programs(2) + bh) * DO + do)[None, :]
    if HAS_DOTS:
        dot = tl.sum(part * _tile(own, t, o_t, time, do).to(tl.float32), 1)
        tl.store(dots + (gate_base + rows) * tl.num_programs(0) + tl.program_id(0), dot)
    if LATER:
        for start in range(first, L, BT):
            columns = start + tl.arange(0, BT)
            p_tile = tl.load(pairs + gate_base * L + columns[:, None] * L + rows[None, :])
            scale = tl.load(inner + gate_base + columns)
            y_tile = _tile(y, c * L + columns, y_t, time, do)
            y_tile = (y_tile.to(tl.float32) * scale[:, None]).to(y_tile.dtype)
            part += tl.dot(tl.trans(p_tile), y_tile, input_precision="ieee")
    else:
        for start in range(0, first + BT, BT):
            columns = start + tl.arange(0, BT)
            p_tile = tl.load(pairs + gate_base * L + rows[:, None] * L + columns[None, :])
            part += tl.dot(p_tile, _tile(y, c * L + columns, y_t, time, do), input_precision="ieee")
    tl.store(out + (bh * time + t)[:, None] * DO + do[None, :], part.to(out.dtype.element_ty), mask=(t < time)[:, None])
