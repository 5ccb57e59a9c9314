"""What the mLSTM's states are made of, as Triton kernels: weighted keys and queries, and the normaliser's state n.

A product whose first operand is computed where it is used takes it from registers, which on Hopper the next turn of a
loop may overwrite before the product has read them. So each is weighted once, rounded as it would be there, and written
to memory; what the tiles of a head's values would all compute, n and its gradient, is computed here, once.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl

from kernels.mlstm.triton_tiles import RUN_TIME, _place, _tile


@triton.jit(do_not_specialize=RUN_TIME)
def keys_kernel(
    k, write, carry, initial_n, written, states_n, final_n, k_b, k_h, k_t, time, chunks, heads,
    L: tl.constexpr, ST: tl.constexpr, DK: tl.constexpr, SK: tl.constexpr, HAS_INITIAL: tl.constexpr,
):  # fmt: skip
    """Keys as the states take them, write_t k_t (batch * heads, chunks, L, DK), and n before each chunk and at the end.

    A program takes some channels of a sequence through all chunks.
    """
    dk = tl.program_id(0) * SK + tl.arange(0, SK)
    bh = tl.program_id(1).to(tl.int64)
    rows = tl.num_programs(1)
    k += (bh // heads) * k_b + (bh % heads) * k_h
    n = tl.zeros((SK,), tl.float32)
    if HAS_INITIAL:
        n += tl.load(initial_n + bh * DK + dk)
    for c in range(chunks):
        tl.store(states_n + _place(c, bh, rows, DK) + dk, n)
        n *= tl.load(carry + bh * chunks + c)
        base = (bh * chunks + c) * L
        for start in range(0, L, ST):
            position = start + tl.arange(0, ST)
            weight = tl.load(write + base + position)
            k_tile = _tile(k, c * L + position, k_t, time, dk).to(tl.float32) * weight[:, None]
            n += tl.sum(k_tile, 0)
            place = position[:, None] * DK + dk[None, :]
            tl.store(written + base * DK + place, k_tile.to(written.dtype.element_ty))
    tl.store(final_n + bh * DK + dk, n)


@triton.jit(do_not_specialize=RUN_TIME)
def queries_kernel(
    q, outer, through_n, carry, states_n, grad_n, reading, grads_n, first_n, carried, q_b, q_h, q_t,
    time, chunks, heads,
    L: tl.constexpr, ST: tl.constexpr, DK: tl.constexpr, SK: tl.constexpr, HAS_GRAD: tl.constexpr,
):  # fmt: skip
    """Queries as the states' gradients take them, outer_t q_t (batch * heads, chunks, L, DK), and the gradient of n
    after each chunk and of the initial one; carried (batch * heads, chunks, tiles): what passes a chunk through n.
    """
    dk = tl.program_id(0) * SK + tl.arange(0, SK)
    bh = tl.program_id(1).to(tl.int64)
    rows = tl.num_programs(1)
    q += (bh // heads) * q_b + (bh % heads) * q_h
    dn = tl.zeros((SK,), tl.float32)
    if HAS_GRAD:
        dn += tl.load(grad_n + bh * DK + dk)
    for step in range(chunks):
        c = chunks - 1 - step
        at = _place(c, bh, rows, DK) + dk
        tl.store(grads_n + at, dn)
        kept = tl.load(carry + bh * chunks + c)
        passed = tl.sum(dn * tl.load(states_n + at)) * kept
        tl.store(carried + (bh * chunks + c) * tl.num_programs(0) + tl.program_id(0), passed)
        dn *= kept
        base = (bh * chunks + c) * L
        for start in range(0, L, ST):
            position = start + tl.arange(0, ST)
            q_tile = _tile(q, c * L + position, q_t, time, dk).to(tl.float32)
            dn += tl.sum(q_tile * tl.load(through_n + base + position)[:, None], 0)
            q_tile *= tl.load(outer + base + position)[:, None]
            place = position[:, None] * DK + dk[None, :]
            tl.store(reading + base * DK + place, q_tile.to(reading.dtype.element_ty))
    tl.store(first_n + bh * DK + dk, dn)
