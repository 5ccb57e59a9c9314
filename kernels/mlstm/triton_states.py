"""The mLSTM's states between chunks, and their gradients, as Triton kernels: a program walks over all chunks."""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl

from kernels.mlstm.triton_tiles import DIMENSIONS, OPTIONS, RUN_TIME, _tile
from kernels.tuning import tuned


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
