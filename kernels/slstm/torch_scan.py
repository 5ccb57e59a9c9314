"""The sLSTM over time with few kernel launches per step, forward and backward: fast on any device.

On CPU, and on GPU without a kernel of its own, a step costs its launches, so the recurrence is written at the scale
where the normaliser is 1: c is then the cell divided by the normaliser and l the logarithm of the true normaliser,

    a_t = log sigmoid(f_t) + l_{t-1}          weight of the past         w_t = sigmoid(i_t - a_t)
    l_t = logaddexp(a_t, i_t)                 weight of past and now     c_t = c_{t-1} + w_t (tanh z_t - c_{t-1})
    h_t = sigmoid(o_t) c_t

which is exactly the sLSTM (the scale is a gauge), without stabiliser and division: nine launches a step. The zero state
is l = -inf. The two logarithms are float64 whatever the gates are: over a long memory each step adds to l less than
float32 resolves, and every weight after it would carry that loss. Going back, with dc and dn the gradients of cell and
normaliser at that scale, keep = exp(a_t - l_t):

    dc += o dh            dz~ = w (1 - z^2) dc           df~ = keep sigmoid(-f~) (c_{t-1} dc + dn)
    dn -= o c dh          di~ = w (z dc + dn)            do~ = c o (1 - o) dh            (dc, dn) <- keep (dc, dn)

All factors are formed for a block of steps at once; a step is six launches. The gates are kept in the order z, f, i, o,
in which those that share a launch are neighbours.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.dispatch import state_dtype
from kernels.slstm.reference import Saved, SLSTMState

ORDER = (2, 1, 0, 3)
"""Positions of z, f, i, o among i, f, z, o; its own inverse."""
STEPS_AT_ONCE = 128
"""Steps whose logarithms, and whose backward factors, are formed together: nine tensors of so many steps are alive."""


def _by_head(recurrent: Tensor, dtype: torch.dtype) -> Tensor:
    """(4, heads, head_dim, head_dim) in our order as one matrix per head, (heads, head_dim, 4 * head_dim)."""
    return torch.stack([recurrent[gate] for gate in ORDER], dim=2).flatten(2).to(dtype)


def at_unit_scale(state: SLSTMState, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """h, c and l of a state (batch, heads, head_dim), as (heads, batch, head_dim)."""
    h, c, n, m = (part.to(dtype).transpose(0, 1) for part in state)
    return h, torch.where(n == 0, 0.0, c / n), m + torch.log(n)


def _resetting(resets: Tensor | None, time: int) -> list[bool]:
    """Which steps reset any sequence of the batch."""
    return [False] * time if resets is None else resets.any(0).tolist()


def forward(gates: Tensor, recurrent: Tensor, state: SLSTMState, resets: Tensor | None) -> Saved:
    """The whole sequence from a state (batch, heads, head_dim) at any scale."""
    batch, time, _, heads, head_dim = gates.shape
    dtype = state_dtype(gates)
    active = gates.new_empty(time, heads, batch, 5, head_dim, dtype=dtype)
    for place, gate in enumerate(ORDER):
        active[:, :, :, place].copy_(gates[:, :, gate].permute(1, 2, 0, 3))
    matrices = _by_head(recurrent, dtype)
    hs, cs, ls = (gates.new_empty(time, heads, batch, head_dim, dtype=dtype) for _ in range(3))
    *_, l = at_unit_scale(state, torch.float64)
    h, c, _ = at_unit_scale(state, dtype)
    resetting = _resetting(resets, time)
    span = (min(STEPS_AT_ONCE, time), heads, batch, head_dim)
    past, present = (gates.new_empty(span, dtype=torch.float64) for _ in range(2))  # a and l of one block of steps
    for first in range(0, time, STEPS_AT_ONCE):
        block = slice(first, min(time, first + STEPS_AT_ONCE))
        l = l.clone()  # else the block's first step would overwrite what it reads
        now = active[block]
        each = (now[:, :, :, :4].flatten(3), *now.unbind(3)[:4], now[:, :, :, 2:4], hs[block], cs[block])
        steps = zip(*(part.unbind(0) for part in (*each, past, present)), strict=False)
        for t, (pre, z, f, i, o, i_and_o, h_t, c_t, a_t, l_t) in enumerate(steps, first):
            if resets is not None and resetting[t]:
                at = resets[:, t, None]  # (batch, 1)
                h, c, l = h.masked_fill(at, 0.0), c.masked_fill(at, 0.0), l.masked_fill(at, -torch.inf)
            pre.baddbmm_(h, matrices)
            torch.add(F.logsigmoid(f), l, out=a_t)
            torch.logaddexp(a_t, i.double(), out=l_t)
            i.sub_(a_t)
            i_and_o.sigmoid_()
            z.tanh_()
            torch.lerp(c, z, i, out=c_t)
            torch.mul(o, c_t, out=h_t)
            h, c, l = h_t, c_t, l_t
        taken = block.stop - block.start
        ls[block].copy_(present[:taken])
        active[block, :, :, 4].copy_(past[:taken].sub_(present[:taken]).exp_())
    return Saved(hs, cs, ls, active)


def shifted(first: Tensor, rest: Tensor, resets: Tensor | None) -> Tensor:
    """What each step finds from the step before it, (time, heads, batch, head_dim): zeros at resets."""
    before = torch.cat([first[None], rest[:-1]])
    return before if resets is None else before.masked_fill(resets.t()[:, None, :, None], 0.0)


def backward(
    grad_h: Tensor, grads: Tensor, recurrent: Tensor, first_c: Tensor, resets: Tensor | None, saved: Saved, clip: float
) -> tuple[Tensor, Tensor]:
    """Gradients of pre-activations (time, heads, batch, 4, head_dim), and of the initial h (heads, batch, head_dim).

    `grad_h` (time, heads, batch, head_dim) holds all gradients of the outputs; `grads` (2, heads, batch, head_dim) are
    dc and dn of the final state at its scale n = 1, and then those after the first step; `first_c` (heads, batch,
    head_dim) is the initial c at that scale; `clip` is 0 where the gradient through R has no bound.
    """
    hs, cs, _, active = saved
    time = hs.shape[0]
    transposed = _by_head(recurrent, hs.dtype).mT.contiguous()
    resetting = _resetting(resets, time)
    c_before = shifted(first_c, cs, resets)
    dh = grad_h.clone(memory_format=torch.contiguous_format)
    dpre = torch.empty_like(active[:, :, :, :4], memory_format=torch.contiguous_format)
    dc, dn = grads[0, :, :, None], grads[1, :, :, None]
    keep_next: Tensor | None = None
    recurrent_grad = torch.zeros_like(dh[0])
    for block in reversed(range(0, time, STEPS_AT_ONCE)):
        steps = slice(block, min(time, block + STEPS_AT_ONCE))
        z, f, w, o, keep = active[steps].unbind(3)
        cell, before = cs[steps], c_before[steps]
        forget = keep * torch.sigmoid(-f)
        out = dpre[steps]
        each = (
            dh[steps],
            keep,
            torch.stack([o, -o * cell], dim=1),  # to dc, dn
            torch.stack([w * (1 - z * z), forget * before, w * z], dim=3),  # from dc to z, f, i
            torch.stack([forget, w], dim=3),  # from dn to f, i
            cell * o * (1 - o),  # from dh to o
            out[:, :, :, :3],
            out[:, :, :, 1:3],
            out[:, :, :, 3],
            out.flatten(3),
        )
        parts = [part.unbind(0) for part in each]
        for t in reversed(range(steps.start, steps.stop)):
            dh_t, keep_t, to_state, from_dc, from_dn, to_o, into_zfi, into_fi, into_o, pre = (
                p[t - block] for p in parts
            )
            if t + 1 < time:
                dh_t.add_(recurrent_grad)
            if keep_next is not None:
                grads.mul_(keep_next)
                if resets is not None and resetting[t + 1]:
                    grads.masked_fill_(resets[:, t + 1, None], 0.0)
            grads.addcmul_(to_state, dh_t)
            torch.mul(from_dc, dc, out=into_zfi)
            into_fi.addcmul_(from_dn, dn)
            torch.mul(to_o, dh_t, out=into_o)
            torch.bmm(pre, transposed, out=recurrent_grad)
            if clip:
                recurrent_grad.clamp_(-clip, clip)
            if resets is not None and resetting[t]:
                recurrent_grad.masked_fill_(resets[:, t, None], 0.0)
            keep_next = keep_t
    return dpre, recurrent_grad


def collected(
    dpre: Tensor, grads: Tensor, dh: Tensor, state: SLSTMState, resets: Tensor | None, saved: Saved
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of gates, recurrent matrices and initial h, c and n, from what `backward` gives and from `grads`."""
    hs, _, ls, active = saved
    time, heads, batch, head_dim = hs.shape
    h, _, n, m = (part.to(hs.dtype).transpose(0, 1) for part in state)
    # The initial state stands at a scale of its own: n may be 0 there, the first step's weight of it is finite.
    first = torch.exp(F.logsigmoid(active[0, :, :, 1]) + m - ls[0])
    first = torch.where(n == 0, first, active[0, :, :, 4] / n)
    if resets is not None:
        first = first.masked_fill(resets[:, 0, None], 0.0)
    initial = torch.cat([dh[None], grads * first]).transpose(1, 2)
    h_before = shifted(h, hs, resets)
    grad_matrices = torch.bmm(
        h_before.transpose(0, 1).reshape(heads, time * batch, head_dim).mT,
        dpre.transpose(0, 1).reshape(heads, time * batch, 4 * head_dim),
    ).view(heads, head_dim, 4, head_dim)
    grad_gates = torch.stack([dpre[:, :, :, place].permute(2, 0, 1, 3) for place in ORDER], dim=2)
    grad_recurrent = torch.stack([grad_matrices[:, :, place] for place in ORDER], dim=0)
    dh, dc, dn = (part.clone(memory_format=torch.contiguous_format) for part in initial)
    return grad_gates, grad_recurrent, dh, dc, dn
