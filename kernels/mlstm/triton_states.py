"""The mLSTM's states between chunks, and their gradients, as Triton kernels: a program walks over all chunks.

Both operands of every product come from memory as they are (`triton_operands` weights them). Sequences and heads are
the slowest axis of the grid, so that the programs that run together read the same tokens.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl

from kernels.mlstm.triton_tiles import DIMENSIONS, EIGHT_WARPS, RUN_TIME, WIDE_OPTIONS, _place, _tile
from kernels.tuning import tuned


@tuned(*WIDE_OPTIONS, by=DIMENSIONS)
@triton.jit(do_not_specialize=RUN_TIME)
def states_kernel(
    written, v, carry, initial_C, states_C, final_C, v_b, v_h, v_t, time, chunks, heads,
    L: tl.constexpr, ST: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    HAS_INITIAL: tl.constexpr,
):  # fmt: skip
    """One tile of the state C before each chunk, and of the final one."""
    dk = tl.program_id(0) * BK + tl.arange(0, BK)
    dv = tl.program_id(1) * BV + tl.arange(0, BV)
    bh = tl.program_id(2).to(tl.int64)
    rows = tl.num_programs(2)
    v += (bh // heads) * v_b + (bh % heads) * v_h
    place = dk[:, None] * DV + dv[None, :]
    C = tl.zeros((BK, BV), tl.float32)
    if HAS_INITIAL:
        C += tl.load(initial_C + bh * DK * DV + place)
    for c in range(chunks):
        tl.store(states_C + _place(c, bh, rows, DK * DV) + place, C.to(states_C.dtype.element_ty))
        C *= tl.load(carry + bh * chunks + c)
        of_chunk = written + (bh * chunks + c) * L * DK
        for start in range(0, L, ST):
            position = start + tl.arange(0, ST)
            k_tile = tl.load(of_chunk + position[:, None] * DK + dk[None, :])
            C += tl.dot(tl.trans(k_tile), _tile(v, c * L + position, v_t, time, dv), input_precision="ieee")
    tl.store(final_C + bh * DK * DV + place, C)


@tuned(*EIGHT_WARPS, by=DIMENSIONS)
@triton.jit(do_not_specialize=RUN_TIME)
def states_backward_kernel(
    reading, grad_h, carry, grad_C, states_C, grads_C, first_C, carried, g_b, g_h, g_t, time, chunks, heads,
    L: tl.constexpr, ST: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    HAS_GRAD: tl.constexpr,
):  # fmt: skip
    """One tile of the gradient of the state C after each chunk, and of the initial one; carried (batch * heads, chunks,
    tiles): what passes a chunk through C.
    """
    dk = tl.program_id(0) * BK + tl.arange(0, BK)
    dv = tl.program_id(1) * BV + tl.arange(0, BV)
    bh = tl.program_id(2).to(tl.int64)
    rows = tl.num_programs(2)
    tiles = tl.num_programs(0) * tl.num_programs(1)
    grad_h += (bh // heads) * g_b + (bh % heads) * g_h
    place = dk[:, None] * DV + dv[None, :]
    dC = tl.zeros((BK, BV), tl.float32)
    if HAS_GRAD:
        dC += tl.load(grad_C + bh * DK * DV + place)
    for step in range(chunks):
        c = chunks - 1 - step
        of_state = _place(c, bh, rows, DK * DV)
        tl.store(grads_C + of_state + place, dC.to(grads_C.dtype.element_ty))
        kept = tl.load(carry + bh * chunks + c)
        passed = tl.sum(dC * tl.load(states_C + of_state + place).to(tl.float32)) * kept
        tl.store(carried + (bh * chunks + c) * tiles + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), passed)
        dC *= kept
        of_chunk = reading + (bh * chunks + c) * L * DK
        for start in range(0, L, ST):
            position = start + tl.arange(0, ST)
            q_tile = tl.load(of_chunk + position[:, None] * DK + dk[None, :])
            dC += tl.dot(tl.trans(q_tile), _tile(grad_h, c * L + position, g_t, time, dv), input_precision="ieee")
    tl.store(first_C + bh * DK * DV + place, dC)
