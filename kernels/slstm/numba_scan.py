"""The sLSTM for CPUs: the recurrence step by step, without a launch per operation. The equations are `torch_scan`'s.

A piece of work is a head of a few sequences, which share the rows of its recurrent matrix while they are in the cache.
The logarithm of the normaliser is a float64; what a step adds to it is a float32 of full relative accuracy.
"""

# mypy: disable-error-code="no-untyped-def"

import numpy as np
import torch
from torch import Tensor

from kernels.cpu import kernel, rows, run
from kernels.cpu.functions import ONE, ZERO, add_rows, clear_row, exp, f32, given, log1p, row, sigmoid, split, tanh
from kernels.cpu.table import Doubles, Flags, Rows
from kernels.slstm.reference import Saved, SLSTMState
from kernels.slstm.torch_scan import _by_head, at_unit_scale

SEQUENCES_AT_ONCE = 4
EMPTY = -np.inf
"""The logarithm of an empty memory's normaliser."""


@kernel
def _forward(
    first, last, batch: int, time: int, width: int, group: int, matrices: Rows, resets: Flags | None, actives: Rows,
    all_cs: Rows, gates: Rows, state_h: Rows, state_c: Rows, state_l: Doubles, all_hs: Rows, all_ls: Rows,
):  # fmt: skip
    """`group`: sequences of a piece; `gates` (batch, time, 4, heads, width); `actives` (time, heads, batch, 5 * width).

    The state is (heads, batch, width); `all_cs`, `all_hs` and `all_ls` are c, h and l of all steps.
    """
    groups = (batch + group - 1) // group
    for piece in range(first, last):
        head, begin = piece // groups, piece % groups * group
        end = min(begin + group, batch)
        matrix = row(matrices, head)
        for t in range(time):
            for b in range(begin, end):
                h, c, l = row(state_h, head, b), row(state_c, head, b), row(state_l, head, b)
                if given(resets) and row(resets, b)[t]:
                    for d in range(width):
                        h[d], c[d], l[d] = ZERO, ZERO, EMPTY
                active = row(actives, t, head, b)
                clear_row(active, 0, 4 * width)
            for j in range(0, width, 8):
                for b in range(begin, end):
                    h, active = row(state_h, head, b), row(actives, t, head, b)
                    add_rows(active, 4 * width, h, j, min(j + 8, width), matrix, 4 * width)
            for b in range(begin, end):
                h, c, l = row(state_h, head, b), row(state_c, head, b), row(state_l, head, b)
                active, cs = row(actives, t, head, b), row(all_cs, t, head, b)
                hs, ls = row(all_hs, t, head, b), row(all_ls, t, head, b)
                # Loops of float32 between loops of float64: each is as wide as its numbers allow.
                z, f = row(gates, b, t, 2, head), row(gates, b, t, 1, head)
                i, o = row(gates, b, t, 0, head), row(gates, b, t, 3, head)
                for d in range(width):
                    # Only now: sums of products that were added to a large gate one by one would be rounded as often.
                    active[width + d] += f[d]
                    active[2 * width + d] += i[d]
                    active[4 * width + d] = log1p(exp(-abs(active[width + d])))
                for d in range(width):
                    # log sigmoid f = min(f, 0) - log(1 + exp(-|f|))
                    past = l[d] + (np.float64(min(active[width + d], ZERO)) - active[4 * width + d])
                    exponent = past - active[2 * width + d]
                    ahead, hs[d] = split(exponent)
                    l[d] = past if ahead >= ZERO else active[2 * width + d]
                    active[4 * width + d] = ahead
                for d in range(width):
                    ahead, fine = active[4 * width + d], hs[d]
                    less = exp(-abs(ahead)) * exp(-fine if ahead >= ZERO else fine)
                    more = ONE / (ONE + less)
                    keep, w = (more, less * more) if ahead >= ZERO else (less * more, more)
                    cell, out = tanh(active[d] + z[d]), sigmoid(active[3 * width + d] + o[d])
                    c[d] += w * (cell - c[d])
                    h[d] = out * c[d]
                    active[d], active[2 * width + d], active[3 * width + d], active[4 * width + d] = cell, w, out, keep
                    cs[d], hs[d], ls[d] = c[d], h[d], log1p(less)
                for d in range(width):
                    l[d] += ls[d]
                    ls[d] = f32(l[d])


@kernel
def _backward(
    first, last, batch: int, time: int, width: int, group: int, matrices: Rows, resets: Flags | None, actives: Rows,
    all_cs: Rows, c_before: Rows, grad_hs: Rows, grad_state_c: Rows, grad_state_n: Rows, grad_state_h: Rows,
    dpres: Rows, clip: float,
):  # fmt: skip
    """As `_forward`; the gradients of the state are first those of the final one, then those of the initial one."""
    groups = (batch + group - 1) // group
    for piece in range(first, last):
        head, begin = piece // groups, piece % groups * group
        end = min(begin + group, batch)
        matrix = row(matrices, head)
        for t in range(time - 1, -1, -1):
            for b in range(begin, end):
                active, cs, dpre = (
                    row(actives, t, head, b),
                    row(all_cs, t, head, b),
                    row(dpres, t, head, b),
                )
                dc, dn, dh = row(grad_state_c, head, b), row(grad_state_n, head, b), row(grad_state_h, head, b)
                above = row(grad_hs, t, head, b)
                before = row(c_before, head, b) if t == 0 else row(all_cs, t - 1, head, b)
                known = ONE  # whether the state before the step reaches it
                if given(resets) and row(resets, b)[t]:
                    known = ZERO
                for d in range(width):
                    z, f, w = active[d], active[width + d], active[2 * width + d]
                    o, keep = active[3 * width + d], active[4 * width + d]
                    grad_h = above[d] + dh[d]
                    grad_c = dc[d] + o * grad_h
                    grad_n = dn[d] - o * cs[d] * grad_h
                    forget = keep * sigmoid(-f)
                    dpre[d] = w * (ONE - z * z) * grad_c
                    dpre[width + d] = forget * (known * before[d] * grad_c + grad_n)
                    dpre[2 * width + d] = w * (z * grad_c + grad_n)
                    dpre[3 * width + d] = cs[d] * o * (ONE - o) * grad_h
                    dc[d] = grad_c
                    dn[d] = grad_n
                    if t > 0:  # the initial state has a scale of its own
                        dc[d] *= known * keep
                        dn[d] *= known * keep
                    dh[d] = ZERO
            for j in range(0, 4 * width, 8):
                for b in range(begin, end):
                    dh, dpre = row(grad_state_h, head, b), row(dpres, t, head, b)
                    add_rows(dh, width, dpre, j, min(j + 8, 4 * width), matrix, width)
            for b in range(begin, end):
                dh = row(grad_state_h, head, b)
                if clip > ZERO:
                    for d in range(width):
                        dh[d] = min(max(dh[d], -clip), clip)
                if given(resets) and row(resets, b)[t]:
                    clear_row(dh, 0, width)


def _group(batch: int, heads: int) -> int:
    """Sequences of a piece: several share a matrix, but no thread is left without work."""
    return max(1, min(SEQUENCES_AT_ONCE, batch * heads // torch.get_num_threads()))


def forward(gates: Tensor, recurrent: Tensor, state: SLSTMState, resets: Tensor | None) -> Saved:
    """As `torch_scan.forward`."""
    batch, time, _, heads, head_dim = gates.shape
    active = gates.new_empty(time, heads, batch, 5, head_dim)
    hs, cs, ls = (gates.new_empty(time, heads, batch, head_dim) for _ in range(3))
    *_, l = at_unit_scale(state, torch.float64)
    h, c, _ = at_unit_scale(state, torch.float32)
    h, c, l = (part.clone(memory_format=torch.contiguous_format) for part in (h, c, l))
    group = _group(batch, heads)
    run(
        _forward, heads * -(-batch // group), batch=batch, time=time, width=head_dim, group=group,
        matrices=_by_head(recurrent, torch.float32), resets=None if resets is None else rows(resets),
        actives=active.flatten(3), all_cs=cs, gates=rows(gates), state_h=h, state_c=c, state_l=l, all_hs=hs, all_ls=ls,
    )  # fmt: skip
    return Saved(hs, cs, ls, active)


def backward(
    grad_h: Tensor, grads: Tensor, recurrent: Tensor, first_c: Tensor, resets: Tensor | None, saved: Saved, clip: float
) -> tuple[Tensor, Tensor]:
    """As `torch_scan.backward`."""
    hs, cs, _, active = saved
    time, heads, batch, head_dim = hs.shape
    dpre = torch.empty_like(active[:, :, :, :4], memory_format=torch.contiguous_format)
    recurrent_grad = hs.new_zeros(heads, batch, head_dim)
    group = _group(batch, heads)
    run(
        _backward, heads * -(-batch // group), batch=batch, time=time, width=head_dim, group=group,
        matrices=_by_head(recurrent, hs.dtype).mT.contiguous(), resets=None if resets is None else rows(resets),
        actives=active.flatten(3), all_cs=cs, c_before=first_c.contiguous(),
        grad_hs=rows(grad_h), grad_state_c=grads[0], grad_state_n=grads[1], grad_state_h=recurrent_grad,
        dpres=dpre.flatten(3), clip=clip,
    )  # fmt: skip
    return dpre, recurrent_grad
