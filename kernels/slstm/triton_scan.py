"""The sLSTM as Triton kernels: one program per head and tile of sequences walks over all steps.

The mathematics and the saved tensors are those of `torch_scan.py`. The recurrent matrices of one head (4 head_dim^2
numbers: 288 KiB in bfloat16 at 192, 3.1 MiB at 640) exceed a multiprocessor's shared memory, so each step streams them
from the second-level cache, tile by tile; h of the step before is read back from memory after a barrier, which every
program needs only for its own sequences. What does not have to wait for the step before, the gradient of the matrices,
is one product afterwards.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.slstm.reference import Saved, SLSTMState
from kernels.slstm.torch_scan import at_unit_scale, collected, shifted
from kernels.tuning import tuned

SEQUENCES = 16
"""Sequences of one program: the least a matrix product takes."""
OPTIONS = ((8, 2), (8, 1), (16, 2))
"""Warps and stages, to be chosen from: four warps, or three stages of the four matrices' tiles, spill registers."""
RUN_TIME = ["time", "batch"]
"""Arguments whose divisibility must not compile a kernel anew."""


def shape_obstacle(head_dim: int) -> str | None:
    """Why the kernels refuse these shapes, or None."""
    if head_dim % 16:
        return f"head_dim {head_dim} is not a multiple of 16"
    return None


def tiling_of(head_dim: int) -> dict[str, int]:
    """Tile sizes: the largest power of two up to 64 that divides head_dim, at least two of them along the products.

    Without a loop to pipeline, the matrices of a head of 64 would all be in registers, and some of them spill.
    """
    tile = min(head_dim & -head_dim, 64)
    return {"D": head_dim, "BB": SEQUENCES, "BN": tile, "BK": min(tile, max(16, head_dim // 2))}


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _log_one_plus_exp_of_minus(x):
    """Exact to the last digits also where the exponential is far below one (Higham 2002, section 1.14.1)."""
    small = tl.exp(-x)
    rounded = 1.0 + small
    return tl.where(rounded == 1.0, small, tl.log(rounded) * (small / tl.where(rounded == 1.0, 1.0, rounded - 1.0)))


@tuned(*OPTIONS, by=["D", "RESETS"], restored=["level"])
@triton.jit(do_not_specialize=RUN_TIME)
def forward_kernel(
    gates, recurrent, resets, hs, cs, ls, level, active, time, batch,
    D: tl.constexpr, BB: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, RESETS: tl.constexpr,
):  # fmt: skip
    """hs, cs (time + 1, heads, batch, D) start with the initial state; active is z, f, w, o, keep.

    `level` (heads, batch, D), float64, is the running l, of which ls (time, heads, batch, D) keeps the rounded value.
    """
    head = tl.program_id(0).to(tl.int64)
    heads = tl.num_programs(0)
    b = tl.program_id(1) * BB + tl.arange(0, BB)
    inside = (b < batch)[:, None]
    row = head * batch + b
    matrix = heads * D * D
    for t in range(time):
        before = row + t * (row * 0 + heads * batch)
        after = before + heads * batch
        reset = b < 0
        if RESETS:
            reset = tl.load(resets + b * time + t, mask=b < batch, other=0) != 0
        for e in range(0, D, BN):
            columns = e + tl.arange(0, BN)
            at_gate = gates + ((b.to(tl.int64) * time + t) * 4 * heads + head)[:, None] * D + columns[None, :]
            i = tl.load(at_gate, mask=inside, other=0.0).to(tl.float32)
            f = tl.load(at_gate + heads * D, mask=inside, other=0.0).to(tl.float32)
            z = tl.load(at_gate + 2 * heads * D, mask=inside, other=0.0).to(tl.float32)
            o = tl.load(at_gate + 3 * heads * D, mask=inside, other=0.0).to(tl.float32)
            for d in range(0, D, BK):
                inner = d + tl.arange(0, BK)
                h = tl.load(hs + before[:, None] * D + inner[None, :], mask=inside, other=0.0)
                h = tl.where(reset[:, None], 0.0, h).to(recurrent.dtype.element_ty)
                R = recurrent + head * D * D + inner[:, None] * D + columns[None, :]
                i += tl.dot(h, tl.load(R), input_precision="ieee")
                f += tl.dot(h, tl.load(R + matrix), input_precision="ieee")
                z += tl.dot(h, tl.load(R + 2 * matrix), input_precision="ieee")
                o += tl.dot(h, tl.load(R + 3 * matrix), input_precision="ieee")
            at = before[:, None] * D + columns[None, :]
            running = level + row[:, None] * D + columns[None, :]
            l = tl.load(running, mask=inside, other=0.0)
            c = tl.load(cs + at, mask=inside, other=0.0)
            l = tl.where(reset[:, None], float("-inf"), l)
            c = tl.where(reset[:, None], 0.0, c)
            a = l + (tl.minimum(f, 0.0) - _log_one_plus_exp_of_minus(tl.abs(f)))
            above = (i - a).to(tl.float32)
            w = _sigmoid(above)
            l = tl.maximum(a, i.to(tl.float64)) + _log_one_plus_exp_of_minus(tl.abs(above))
            keep = tl.exp((a - l).to(tl.float32))
            decay = tl.exp(-2.0 * tl.abs(z))
            z = tl.where(z < 0, -1.0, 1.0) * (1.0 - decay) / (1.0 + decay)
            o = _sigmoid(o)
            c += w * (z - c)
            tl.store(running, l, mask=inside)
            tl.store(ls + at, l.to(tl.float32), mask=inside)
            at = after[:, None] * D + columns[None, :]
            tl.store(cs + at, c, mask=inside)
            tl.store(hs + at, o * c, mask=inside)
            at = active + before[:, None] * 5 * D + columns[None, :]
            tl.store(at, z, mask=inside)
            tl.store(at + D, f, mask=inside)
            tl.store(at + 2 * D, w, mask=inside)
            tl.store(at + 3 * D, o, mask=inside)
            tl.store(at + 4 * D, keep, mask=inside)
        tl.debug_barrier()


@triton.jit
def _through_matrices(
    dpre, recurrent, head, matrix, after, columns, inside,
    D: tl.constexpr, BB: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Gradient of h from the pre-activations (z, f, i, o) of the step after it."""
    dh = tl.zeros((BB, BN), tl.float32)
    for d in range(0, D, BK):
        inner = d + tl.arange(0, BK)
        at = dpre + after[:, None] * 4 * D + inner[None, :]
        R = recurrent + head * D * D + columns[:, None] * D + inner[None, :]
        for place in tl.static_range(3):  # z, f, i here; i, f, z among the matrices
            part = tl.load(at + place * D, mask=inside, other=0.0).to(recurrent.dtype.element_ty)
            dh += tl.dot(part, tl.trans(tl.load(R + (2 - place) * matrix)), input_precision="ieee")
        part = tl.load(at + 3 * D, mask=inside, other=0.0).to(recurrent.dtype.element_ty)
        dh += tl.dot(part, tl.trans(tl.load(R + 3 * matrix)), input_precision="ieee")
    return dh


@tuned(*OPTIONS, by=["D", "RESETS", "CLIP"], restored=["dc", "dn"])
@triton.jit(do_not_specialize=RUN_TIME)
def backward_kernel(
    grad_h, recurrent, resets, cs, before_cs, active, dpre, dc, dn, first_h, clip, time, batch,
    D: tl.constexpr, BB: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, RESETS: tl.constexpr, CLIP: tl.constexpr,
):  # fmt: skip
    """dpre (time, heads, batch, 4, D); dc, dn (heads, batch, D) are the state's gradients, from last to first."""
    head = tl.program_id(0).to(tl.int64)
    heads = tl.num_programs(0)
    b = tl.program_id(1) * BB + tl.arange(0, BB)
    inside = (b < batch)[:, None]
    row = head * batch + b
    matrix = heads * D * D
    for step in range(time + 1):
        t = time - 1 - step
        now = row + t * (row * 0 + heads * batch)
        after = now + heads * batch
        reset_after = b < 0
        if RESETS:  # known when compiling, the other only when running
            if step > 0:
                reset_after = tl.load(resets + b * time + t + 1, mask=b < batch, other=0) != 0
        for e in range(0, D, BN):
            columns = e + tl.arange(0, BN)
            dh = tl.zeros((BB, BN), tl.float32)
            if step > 0:
                dh += _through_matrices(dpre, recurrent, head, matrix, after, columns, inside, D, BB, BN, BK)
                if CLIP:
                    dh = tl.minimum(tl.maximum(dh, -clip), clip)
                dh = tl.where(reset_after[:, None], 0.0, dh)
            state = row[:, None] * D + columns[None, :]
            if t < 0:
                tl.store(first_h + state, dh, mask=inside)
            else:
                at = now[:, None] * D + columns[None, :]
                dh += tl.load(grad_h + at, mask=inside, other=0.0)
                c = tl.load(cs + at, mask=inside, other=0.0)
                before = tl.load(before_cs + at, mask=inside, other=0.0)
                at_active = active + now[:, None] * 5 * D + columns[None, :]
                z = tl.load(at_active, mask=inside, other=0.0)
                f = tl.load(at_active + D, mask=inside, other=0.0)
                w = tl.load(at_active + 2 * D, mask=inside, other=0.0)
                o = tl.load(at_active + 3 * D, mask=inside, other=0.0)
                keep = tl.load(at_active + 4 * D, mask=inside, other=0.0)
                grad_c = tl.load(dc + state, mask=inside, other=0.0)
                grad_n = tl.load(dn + state, mask=inside, other=0.0)
                if step > 0:
                    at_after = active + after[:, None] * 5 * D + 4 * D + columns[None, :]
                    kept = tl.load(at_after, mask=inside, other=0.0)
                    grad_c = tl.where(reset_after[:, None], 0.0, grad_c * kept)
                    grad_n = tl.where(reset_after[:, None], 0.0, grad_n * kept)
                grad_c += o * dh
                grad_n -= o * c * dh
                tl.store(dc + state, grad_c, mask=inside)
                tl.store(dn + state, grad_n, mask=inside)
                at_pre = dpre + now[:, None] * 4 * D + columns[None, :]
                tl.store(at_pre, w * (1.0 - z * z) * grad_c, mask=inside)
                tl.store(at_pre + D, keep * _sigmoid(-f) * (before * grad_c + grad_n), mask=inside)
                tl.store(at_pre + 2 * D, w * (z * grad_c + grad_n), mask=inside)
                tl.store(at_pre + 3 * D, c * o * (1.0 - o) * dh, mask=inside)
        tl.debug_barrier()


def forward(gates: Tensor, recurrent: Tensor, state: SLSTMState, resets: Tensor | None) -> Saved:
    """As `torch_scan.forward`."""
    batch, time, _, heads, head_dim = gates.shape
    hs, cs = (gates.new_empty(time + 1, heads, batch, head_dim, dtype=torch.float32) for _ in range(2))
    ls = gates.new_empty(time, heads, batch, head_dim, dtype=torch.float32)
    hs[0], cs[0], _ = at_unit_scale(state, torch.float32)
    level = at_unit_scale(state, torch.float64)[2].contiguous()
    active = gates.new_empty(time, heads, batch, 5, head_dim, dtype=torch.float32)
    forward_kernel[(heads, -(-batch // SEQUENCES))](
        gates.contiguous(), recurrent.to(gates.dtype).contiguous(), gates if resets is None else resets.contiguous(),
        hs, cs, ls, level, active, time, batch, **tiling_of(head_dim), RESETS=resets is not None,
    )  # fmt: skip
    return Saved(hs[1:], cs[1:], ls, active)


def backward(
    grad_h: Tensor,
    grad_c: Tensor | None,
    grad_n: Tensor | None,
    recurrent: Tensor,
    state: SLSTMState,
    resets: Tensor | None,
    saved: Saved,
    gradient_clip: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `torch_scan.backward`."""
    hs, cs, _, active = saved
    time, heads, batch, head_dim = hs.shape
    at = None if resets is None else resets.t()
    before_cs = shifted(at_unit_scale(state, torch.float32)[1], cs, at)
    dpre = hs.new_empty(time, heads, batch, 4, head_dim)
    grads = hs.new_zeros(2, heads, batch, head_dim)
    for part, grad in zip(grads, (grad_c, grad_n), strict=True):
        if grad is not None:
            part.copy_(grad.transpose(0, 1))
    first_h = hs.new_empty(heads, batch, head_dim)
    backward_kernel[(heads, -(-batch // SEQUENCES))](
        grad_h.contiguous(), recurrent.contiguous(), hs if resets is None else resets.contiguous(),
        cs.contiguous(), before_cs, active, dpre, grads[0], grads[1], first_h,
        float(gradient_clip or 0.0), time, batch,
        **tiling_of(head_dim), RESETS=resets is not None, CLIP=gradient_clip is not None,
    )  # fmt: skip
    return collected(dpre, grads, first_h, state, at, saved)
