"""The mLSTM in chunks as Triton kernels: two levels of tiling, and every inner loop a matrix product.

The mathematics is that of `torch_chunkwise.py`, whose gate weights are used as they are. The outer level are chunks of
L tokens, between which a state passes; the inner level are tiles of BT tokens and of 16 to 64 channels. The quadratic
form of a chunk, S = (Q K^T) * W, is written to memory once: beside heads of 384 to 1280 channels its L columns are
narrow, and every product that follows is then a plain loop over tiles that no other program repeats.

    forward                                        backward
    states    C, n before each chunk               scores_backward  S, dP = dS * W, sums for the gates
    scores    S, s                                 states_backward  dC, dn after each chunk
    outputs   h = (a q C + S V) / den              inputs_backward  dq, dk, dv: state part, then dP or S part

Lengths, batch and strides are run-time arguments: only dtypes, head dimensions and tile sizes compile anew.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.mlstm.torch_chunkwise import ChunkGates, chunk_gates, gate_gradients
from kernels.tuning import tuned

RUN_TIME = ["time", "chunks", "heads"]
"""Arguments whose divisibility must not compile a kernel anew."""

OPTIONS = ((4, 3), (4, 2), (4, 4), (8, 3), (8, 2))
"""Warps and stages, to be chosen from."""
EIGHT_WARPS = ((8, 3), (8, 2), (8, 4))
"""Where four tiles of BT x BT floats would spill from the registers of four warps."""
DIMENSIONS = ("L", "DK", "DV")


def power_of_two_divisor(size: int, largest: int) -> int:
    """The largest power of two up to `largest` that divides `size`."""
    return min(size & -size, largest)


def shape_obstacle(key_dim: int, value_dim: int, chunk: int) -> str | None:
    """Why the kernels refuse these shapes, or None."""
    for name, size in (("key_dim", key_dim), ("value_dim", value_dim), ("chunk_size", chunk)):
        if size % 16:
            return f"{name} {size} is not a multiple of 16"
    return None


@triton.jit
def _tile(base, t, stride, time, d):
    """Rows t and channels d of a sequence, (len t, len d): 0 after its end."""
    return tl.load(base + t[:, None] * stride + d[None, :], mask=(t < time)[:, None], other=0.0)


@triton.jit
def _weights(row, row_fine, column, column_fine, segment, gate_base, segment_base, rows, columns, RESETS: tl.constexpr):
    """W of chunk positions rows x columns: 0 above the diagonal and across resets."""
    exponent = tl.load(row + gate_base + rows)[:, None] + tl.load(column + gate_base + columns)[None, :]
    fine = tl.load(row_fine + gate_base + rows)[:, None] * tl.load(column_fine + gate_base + columns)[None, :]
    seen = columns[None, :] <= rows[:, None]
    if RESETS:
        of_rows = tl.load(segment + segment_base + rows)
        seen = seen & (of_rows[:, None] == tl.load(segment + segment_base + columns)[None, :])
    return tl.where(seen, tl.exp(exponent) * fine, 0.0)


@tuned(*OPTIONS, by=DIMENSIONS, restored=["final_C"])
@triton.jit(do_not_specialize=RUN_TIME)
def states_kernel(
    k, v, write, carry, states_C, states_n, final_C, initial_n,
    k_b, k_h, k_t, v_b, v_h, v_t, time, chunks, heads,
    L: tl.constexpr, BT: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """The states before each chunk. final_C holds the initial C, then the final one; states_n ends with the final n."""
    bh = tl.program_id(0).to(tl.int64)
    dk = tl.program_id(1) * BK + tl.arange(0, BK)
    dv = tl.program_id(2) * BV + tl.arange(0, BV)
    rows = tl.num_programs(0)
    k += (bh // heads) * k_b + (bh % heads) * k_h
    v += (bh // heads) * v_b + (bh % heads) * v_h
    at_C = bh * DK * DV + dk[:, None] * DV + dv[None, :]
    at_n = bh * DK + dk
    C = tl.load(final_C + at_C)
    n = tl.load(initial_n + at_n)
    for c in range(chunks):
        tl.store(states_C + c * rows * DK * DV + at_C, C.to(states_C.dtype.element_ty))
        if tl.program_id(2) == 0:
            tl.store(states_n + c * rows * DK + at_n, n)
        kept = tl.load(carry + bh * chunks + c)
        C *= kept
        n *= kept
        for tile in range(L // BT):
            position = tile * BT + tl.arange(0, BT)
            t = c * L + position
            weight = tl.load(write + (bh * chunks + c) * L + position)
            k_tile = _tile(k, t, k_t, time, dk).to(tl.float32) * weight[:, None]
            n += tl.sum(k_tile, 0)
            v_tile = _tile(v, t, v_t, time, dv)
            C += tl.dot(tl.trans(k_tile.to(v_tile.dtype)), v_tile, input_precision="ieee")
    tl.store(final_C + at_C, C)
    if tl.program_id(2) == 0:
        tl.store(states_n + chunks * rows * DK + at_n, n)


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


@tuned(*OPTIONS, by=DIMENSIONS, restored=["first_C", "first_n"])
@triton.jit(do_not_specialize=RUN_TIME)
def states_backward_kernel(
    q, grad_h, read, inverse, ds, carry, states_C, states_n, grads_C, grads_n, first_C, first_n, carried,
    q_b, q_h, q_t, g_b, g_h, g_t, time, chunks, heads,
    L: tl.constexpr, BT: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Gradients of the states after each chunk. first_C holds the final C's, then the initial one's; grads_n starts
    with the initial n's.
    """
    bh = tl.program_id(0).to(tl.int64)
    dk = tl.program_id(1) * BK + tl.arange(0, BK)
    dv = tl.program_id(2) * BV + tl.arange(0, BV)
    rows = tl.num_programs(0)
    partials = tl.num_programs(1) * tl.num_programs(2)
    q += (bh // heads) * q_b + (bh % heads) * q_h
    grad_h += (bh // heads) * g_b + (bh % heads) * g_h
    at_C = bh * DK * DV + dk[:, None] * DV + dv[None, :]
    at_n = bh * DK + dk
    dC = tl.load(first_C + at_C)
    dn = tl.load(first_n + at_n)
    owns_n = tl.program_id(2) == 0
    for step in range(chunks):
        c = chunks - 1 - step
        tl.store(grads_C + c * rows * DK * DV + at_C, dC.to(grads_C.dtype.element_ty))
        C = tl.load(states_C + c * rows * DK * DV + at_C).to(tl.float32)
        through = tl.sum(dC * C)
        if owns_n:
            tl.store(grads_n + (c + 1) * rows * DK + at_n, dn)
            through += tl.sum(dn * tl.load(states_n + c * rows * DK + at_n))
        kept = tl.load(carry + bh * chunks + c)
        place = tl.program_id(1) * tl.num_programs(2) + tl.program_id(2)
        tl.store(carried + (bh * chunks + c) * partials + place, through * kept)
        dC *= kept
        dn *= kept
        for tile in range(L // BT):
            position = tile * BT + tl.arange(0, BT)
            t = c * L + position
            gate = (bh * chunks + c) * L + position
            q_tile = _tile(q, t, q_t, time, dk).to(tl.float32) * tl.load(read + gate)[:, None]
            dn += tl.sum(q_tile * tl.load(ds + gate)[:, None], 0)
            q_tile *= tl.load(inverse + gate)[:, None]
            g_tile = _tile(grad_h, t, g_t, time, dv)
            dC += tl.dot(tl.trans(q_tile.to(g_tile.dtype)), g_tile, input_precision="ieee")
    tl.store(first_C + at_C, dC)
    if owns_n:
        tl.store(grads_n + at_n, dn)


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


def _dense_rows(x: Tensor) -> Tensor:
    """A tensor whose last axis is contiguous: what the kernels need of strides."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _strides(*tensors: Tensor) -> list[int]:
    return [x.stride(axis) for x in tensors for axis in range(3)]


def tiling_of(key_dim: int, value_dim: int, chunk: int) -> dict[str, int]:
    return {
        "L": chunk,
        "BT": power_of_two_divisor(chunk, 64),
        "DK": key_dim,
        "DV": value_dim,
        "BK": power_of_two_divisor(key_dim, 64),
        "BV": power_of_two_divisor(value_dim, 64),
    }


def _inverse(s: Tensor, gates: ChunkGates, normalize: bool, eps: float) -> Tensor:
    """1 / den per chunk position, (batch * heads, chunks, L)."""
    if not normalize:
        return torch.ones_like(gates.floor)
    rows, chunks, chunk = gates.floor.shape
    s = torch.nn.functional.pad(s, (0, chunks * chunk - s.shape[-1])).view(rows, chunks, chunk)
    return 1.0 / (torch.maximum(s.abs(), gates.floor) + eps)


def _segments(gates: ChunkGates) -> Tensor:
    return gates.floor if gates.segment is None else gates.segment.to(torch.int32).contiguous()


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
    """As `torch_chunkwise.forward`; the saved states C are in v's dtype."""
    batch, heads, time, key_dim = q.shape
    value_dim, rows, chunks = v.shape[-1], batch * heads, -(-time // chunk)
    q, k, v = _dense_rows(q), _dense_rows(k), _dense_rows(v)
    stabilized = input_gate == "exponential" and normalize
    gates = chunk_gates(i, f, m, resets, input_gate, stabilized, chunk, key_dim, torch.float32)
    read = gates.read * gates.row_fine
    tiling = tiling_of(key_dim, value_dim, chunk)
    single: dict[str, Any] = {"dtype": torch.float32}
    states_C = v.new_empty(chunks, rows, key_dim, value_dim)
    states_n = v.new_empty(chunks + 1, rows, key_dim, **single)
    final_C = v.new_zeros(rows, key_dim, value_dim, **single)
    initial_n = v.new_zeros(rows, key_dim, **single)
    if C is not None and n is not None:
        final_C.copy_(C.reshape(final_C.shape))
        initial_n.copy_(n.reshape(initial_n.shape))
    states_kernel[(rows, key_dim // tiling["BK"], value_dim // tiling["BV"])](
        k, v, gates.write, gates.carry, states_C, states_n, final_C, initial_n, *_strides(k, v),
        time, chunks, heads, **tiling,
    )  # fmt: skip
    blocks = chunks * (chunk // tiling["BT"])
    scores = v.new_empty(rows, chunks, chunk, chunk)
    s = v.new_empty(rows, time if normalize else 0, **single)
    scores_kernel[(blocks, rows)](
        q, k, gates.row, gates.row_fine, gates.column, gates.column_fine, _segments(gates), read, states_n, scores, s,
        *_strides(q, k), time, chunks, heads,
        **{name: tiling[name] for name in ("L", "BT", "DK", "BK")},
        RESETS=resets is not None, NORMALIZE=normalize,
    )  # fmt: skip
    h = torch.empty_like(v, memory_format=torch.contiguous_format)
    outputs_kernel[(value_dim // tiling["BV"], blocks, rows)](
        q, v, scores, read, _inverse(s, gates, normalize, eps), states_C, h, *_strides(q, v),
        time, chunks, heads, **tiling,
    )  # fmt: skip
    return (
        h,
        final_C.view(batch, heads, key_dim, value_dim),
        states_n[-1].clone().view(batch, heads, key_dim),
        gates.m[:, -1].clone().view(batch, heads),
        states_C if save_states else states_C.new_empty(0, *states_C.shape[1:]),
        states_n[:-1].clone() if save_states else states_n.new_empty(0, *states_n.shape[1:]),
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
    batch, heads, time, key_dim = q.shape
    value_dim, rows, chunks = v.shape[-1], batch * heads, -(-time // chunk)
    q, k, v, grad_h, h = _dense_rows(q), _dense_rows(k), _dense_rows(v), _dense_rows(grad_h), h.contiguous()
    stabilized = input_gate == "exponential" and normalize
    gates = chunk_gates(i, f, m, resets, input_gate, stabilized, chunk, key_dim, torch.float32)
    read = gates.read * gates.row_fine
    inverse = _inverse(s, gates, normalize, eps)
    sign = torch.zeros_like(inverse)
    if normalize:
        padded = torch.nn.functional.pad(s, (0, chunks * chunk - time)).view(inverse.shape)
        sign = torch.where(padded.abs() > gates.floor, padded.sign(), 0.0)
    tiling = tiling_of(key_dim, value_dim, chunk)
    tiles = chunk // tiling["BT"]
    single: dict[str, Any] = {"dtype": torch.float32}

    scores, d_products = (v.new_empty(rows, chunks, chunk, chunk) for _ in range(2))
    ds, row_sums, diagonal = (torch.empty_like(inverse) for _ in range(3))
    column_sums = v.new_zeros(rows, chunks, tiles, chunk, **single)
    scores_backward_kernel[(chunks * tiles, rows)](
        q, k, v, h, grad_h, gates.row, gates.row_fine, gates.column, gates.column_fine, _segments(gates),
        inverse, sign, scores, d_products, ds, row_sums, column_sums, diagonal,
        *_strides(q, k, v, grad_h), time, chunks, heads, **tiling, RESETS=resets is not None, NORMALIZE=normalize,
    )  # fmt: skip

    grads_C = torch.empty_like(states_C)
    grads_n = v.new_empty(chunks + 1, rows, key_dim, **single)  # first the initial state's, then after each chunk
    dC = v.new_zeros(rows, key_dim, value_dim, **single)
    dn = v.new_zeros(rows, key_dim, **single)
    if grad_C is not None:
        dC.copy_(grad_C.reshape(dC.shape))
    if grad_n is not None:
        dn.copy_(grad_n.reshape(dn.shape))
    grid = (rows, key_dim // tiling["BK"], value_dim // tiling["BV"])
    carried = v.new_empty(rows, chunks, grid[1] * grid[2], **single)
    states_backward_kernel[grid](
        q, grad_h, read, inverse, ds, gates.carry, states_C, states_n, grads_C, grads_n, dC, dn, carried,
        *_strides(q, grad_h), time, chunks, heads, **tiling,
    )  # fmt: skip

    grad_q, grad_k, grad_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    ones = torch.ones_like(inverse)
    BK, BV = tiling["BK"], tiling["BV"]
    shared = {"L": chunk, "BT": tiling["BT"]}
    by_key = {"DX": value_dim, "DO": key_dim, "BX": BV, "BO": BK, "TRANSPOSED_STATE": True, "HAS_DOTS": True}
    reading = v.new_empty(rows, chunks, chunk, key_dim // BK, **single)
    writing = torch.empty_like(reading)
    key_grid, value_grid = ((size, chunks * tiles, rows) for size in (key_dim // BK, value_dim // BV))
    inputs_backward_kernel[key_grid](
        grad_h, states_C, k, d_products, read * inverse, states_n, read * ds, ones, q, grad_q, reading,
        *_strides(grad_h, k, q), time, chunks, heads, **shared, **by_key, LATER=False, HAS_VECTOR=normalize,
    )  # fmt: skip
    inputs_backward_kernel[key_grid](
        v, grads_C, q, d_products, gates.write, grads_n[1:], gates.write, ones, k, grad_k, writing,
        *_strides(v, q, k), time, chunks, heads, **shared, **by_key, LATER=True, HAS_VECTOR=True,
    )  # fmt: skip
    inputs_backward_kernel[value_grid](
        k, grads_C, grad_h, scores, gates.write, ones, ones, inverse, v, grad_v, ones,
        *_strides(k, grad_h, v), time, chunks, heads, **shared,
        DX=key_dim, DO=value_dim, BX=BK, BO=BV, TRANSPOSED_STATE=False, HAS_DOTS=False, LATER=True, HAS_VECTOR=False,
    )  # fmt: skip

    columns, written = column_sums.sum(2), writing.sum(-1)
    grad_i, grad_f = gate_gradients(
        i, f, resets, input_gate, row_sums - columns, columns + diagonal + written,
        reading.sum(-1), written, carried.sum(-1, keepdim=True),
    )  # fmt: skip
    initial = (dC.view(batch, heads, key_dim, value_dim), grads_n[0].clone().view(batch, heads, key_dim))
    return grad_q, grad_k, grad_v, grad_i, grad_f, *initial
