"""Gradients within the mLSTM's chunks as Triton kernels: of the quadratic form, then of queries, keys and values."""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl

from kernels.mlstm.triton_tiles import (
    DIMENSIONS,
    EIGHT_WARPS,
    RUN_TIME,
    WIDE_OPTIONS,
    _denominator,
    _place,
    _tile,
    _weights,
)
from kernels.tuning import tuned


@tuned(*WIDE_OPTIONS, by=[*DIMENSIONS, "RESETS"])
@triton.jit(do_not_specialize=RUN_TIME)
def scores_backward_kernel(
    q, k, v, h, grad_h, row, row_fine, column, column_fine, segment, read, s, floor, scores, d_products,
    grad_y, outer, through_n, row_sums, column_sums, diagonal,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, g_b, g_h, g_t, eps, time, chunks, heads,
    L: tl.constexpr, ST: tl.constexpr, BT: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, SK: tl.constexpr,
    SV: tl.constexpr, RESETS: tl.constexpr, NORMALIZE: tl.constexpr,
):  # fmt: skip
    """S again, dP = dS * W, and the sums of dS * S below the diagonal by row and column, and on it.

    With them, what the other gradients are made of: grad_y = grad_h / den (batch * heads, chunks, L, DV), outer = a /
    den, and through_n = a ds, the weight of n's gradient. Above the diagonal S and dP are 0 as far as they are read.
    """
    tiles: tl.constexpr = L // ST
    c = tl.program_id(0) // tiles
    first = (tl.program_id(0) % tiles) * ST
    bh = tl.program_id(1).to(tl.int64)
    q += (bh // heads) * q_b + (bh % heads) * q_h
    k += (bh // heads) * k_b + (bh % heads) * k_h
    v += (bh // heads) * v_b + (bh % heads) * v_h
    grad_h += (bh // heads) * g_b + (bh % heads) * g_h
    gate_base = (bh * chunks + c) * L
    segment_base = ((bh // heads) * chunks + c) * L
    rows = first + tl.arange(0, ST)
    t = c * L + rows
    read_t = tl.load(read + gate_base + rows)
    inverse_t = tl.full((ST,), 1.0, tl.float32)
    ds_t = tl.zeros((ST,), tl.float32)
    if NORMALIZE:
        s_t = tl.load(s + bh * time + t, mask=t < time, other=0.0)
        floor_t = tl.load(floor + gate_base + rows)
        inverse_t = 1.0 / _denominator(s_t, floor_t, eps)
        for d in range(0, DV, SV):
            dv = d + tl.arange(0, SV)
            h_tile = _tile(h + bh * time * DV, t, DV, time, dv).to(tl.float32)
            g_tile = _tile(grad_h, t, g_t, time, dv).to(tl.float32)
            ds_t += tl.sum(h_tile * g_tile, 1)
            place = rows[:, None] * DV + dv[None, :]
            tl.store(grad_y + gate_base * DV + place, (g_tile * inverse_t[:, None]).to(grad_y.dtype.element_ty))
        sign = tl.where(s_t > 0, 1.0, -1.0)
        ds_t = tl.where(tl.abs(s_t) > floor_t, -ds_t * inverse_t * sign, 0.0)
    # After the end, 1 / den may be infinite: the queries' zeros there would be NaN.
    tl.store(outer + gate_base + rows, tl.where(t < time, read_t * inverse_t, 0.0))
    tl.store(through_n + gate_base + rows, read_t * ds_t)
    sums = tl.zeros((ST,), tl.float32)
    for start in range(0, first + ST, ST):
        columns = start + tl.arange(0, ST)
        j = c * L + columns
        products = tl.zeros((ST, ST), tl.float32)
        for d in range(0, DK, SK):
            dk = d + tl.arange(0, SK)
            products += tl.dot(_tile(q, t, q_t, time, dk), tl.trans(_tile(k, j, k_t, time, dk)), input_precision="ieee")
        d_scores = tl.zeros((ST, ST), tl.float32)
        for d in range(0, DV, SV):
            dv = d + tl.arange(0, SV)
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
        tl.store(column_sums + gate_base * tiles + (first // ST) * L + columns, tl.sum(below, 0))
        if start == first:
            tl.store(diagonal + gate_base + rows, tl.sum(tl.where(on_diagonal, pairs, 0.0), 1))
    tl.store(row_sums + gate_base + rows, sums)
    for start in range(first + ST, (first // BT + 1) * BT, ST):
        at = gate_base * L + rows[:, None] * L + start + tl.arange(0, ST)[None, :]
        nothing = tl.zeros((ST, ST), scores.dtype.element_ty)
        tl.store(scores + at, nothing)
        tl.store(d_products + at, nothing)


@tuned(*EIGHT_WARPS, by=["L", "DX", "DO", "TRANSPOSED_STATE", "LATER"])
@triton.jit(do_not_specialize=RUN_TIME)
def inputs_backward_kernel(
    x, states, y, pairs, outer, vector, vector_scale, own, out, dots,
    x_b, x_h, x_t, y_b, y_h, y_t, own_b, own_h, own_t, out_b, out_h, out_t, time, chunks, heads,
    L: tl.constexpr, BT: tl.constexpr, ST: tl.constexpr, DX: tl.constexpr, DO: tl.constexpr, SX: tl.constexpr,
    BO: tl.constexpr, TRANSPOSED_STATE: tl.constexpr, LATER: tl.constexpr, HAS_VECTOR: tl.constexpr,
    HAS_DOTS: tl.constexpr,
):  # fmt: skip
    """One tile of a gradient that comes through the states and through the pairs of its chunk:

        part = outer_t x_t M + vector_scale_t vector
        dots_t = part . own_t
        out_t = part + sum_j pairs_tj y_j

    with M the chunk's state or its transpose, and pairs read by row (j <= t) or, where LATER, by column (j >= t).
    dq: x = grad_h, M = C^T, y = k; dk: x = v, M = dC^T, y = q; dv: x = k, M = dC, y = grad_h / den.
    """
    tiles: tl.constexpr = L // BT
    do = tl.program_id(0) * BO + tl.arange(0, BO)
    c = tl.program_id(1) // tiles
    first = (tl.program_id(1) % tiles) * BT
    bh = tl.program_id(2).to(tl.int64)
    x += (bh // heads) * x_b + (bh % heads) * x_h
    y += (bh // heads) * y_b + (bh % heads) * y_h
    gate_base = (bh * chunks + c) * L
    rows = first + tl.arange(0, BT)
    t = c * L + rows
    M = states + _place(c, bh, tl.num_programs(2), DX * DO)
    part = tl.zeros((BT, BO), tl.float32)
    for d in range(0, DX, SX):
        dx = d + tl.arange(0, SX)
        x_tile = _tile(x, t, x_t, time, dx)
        if TRANSPOSED_STATE:
            m_tile = tl.trans(tl.load(M + do[:, None] * DX + dx[None, :]))
        else:
            m_tile = tl.load(M + dx[:, None] * DO + do[None, :])
        part += tl.dot(x_tile, m_tile.to(x_tile.dtype), input_precision="ieee")
    part *= tl.load(outer + gate_base + rows)[:, None]
    if HAS_VECTOR:
        scale = tl.load(vector_scale + gate_base + rows)
        part += scale[:, None] * tl.load(vector + _place(c, bh, tl.num_programs(2), DO) + do)[None, :]
    if HAS_DOTS:
        own += (bh // heads) * own_b + (bh % heads) * own_h
        dot = tl.sum(part * _tile(own, t, own_t, time, do).to(tl.float32), 1)
        tl.store(dots + (gate_base + rows) * tl.num_programs(0) + tl.program_id(0), dot)
    of_chunk = pairs + gate_base * L
    if LATER:
        for start in range(first, L, ST):
            columns = start + tl.arange(0, ST)
            p_tile = tl.load(of_chunk + columns[:, None] * L + rows[None, :])
            part += tl.dot(tl.trans(p_tile), _tile(y, c * L + columns, y_t, time, do), input_precision="ieee")
    else:
        for start in range(0, first + BT, ST):
            columns = start + tl.arange(0, ST)
            p_tile = tl.load(of_chunk + rows[:, None] * L + columns[None, :])
            part += tl.dot(p_tile, _tile(y, c * L + columns, y_t, time, do), input_precision="ieee")
    out += (bh // heads) * out_b + (bh % heads) * out_h
    tl.store(out + t[:, None] * out_t + do[None, :], part.to(out.dtype.element_ty), mask=(t < time)[:, None])
