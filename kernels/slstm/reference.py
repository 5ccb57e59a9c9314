"""The sLSTM as its recurrence over time: the definition the other implementations are tested against.

Beck et al. 2024 (arXiv 2405.04517), equations 8-18, with a sigmoid forget gate. Autograd differentiates it; the
stabiliser m is a gauge (h does not depend on it), so it carries no gradient.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.dispatch import state_dtype

LARGEST = 80.0
"""An exponent whose exponential is finite in float32, and beyond all that a memory which is not empty is kept by."""


class SLSTMState(NamedTuple):
    """What the sLSTM remembers, each (batch, heads, head_dim); float32, or float64 for float64 inputs.

    The cell and the normaliser in true units are c exp(m) and n exp(m), with |c| <= n. A state that an operator returns
    has n = 1 (m = the logarithm of the true normaliser), the zero state n = 0; every other scale is accepted as well.
    """

    h: Tensor
    c: Tensor
    n: Tensor
    m: Tensor  # a scale, without gradient


class Saved(NamedTuple):
    """What the forward leaves for the backward, (time, heads, batch, head_dim) where not said otherwise."""

    hs: Tensor
    cs: Tensor
    ls: Tensor  # logarithms of the true normaliser
    active: Tensor  # tanh z, f, w, sigmoid o and keep, (time, heads, batch, 5, head_dim)


def zero_state(gates: Tensor) -> SLSTMState:
    """The state before the first token."""
    batch, _, _, heads, head_dim = gates.shape
    zero = torch.zeros(batch, heads, head_dim, dtype=state_dtype(gates), device=gates.device)
    return SLSTMState(zero, zero, zero, zero)


class ClipGradient(torch.autograd.Function):
    """The identity, whose gradient is clipped elementwise to [-limit, limit]."""

    @staticmethod
    def forward(ctx, x: Tensor, limit: float) -> Tensor:  # type: ignore[no-untyped-def, override]
        ctx.limit = limit
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def, override]
        return grad.clamp(-ctx.limit, ctx.limit), None


def recurrence_step(
    gates: Tensor, recurrent: Tensor, state: SLSTMState, reset: Tensor | None, gradient_clip: float | None
) -> SLSTMState:
    """One token: gates (batch, 4, heads, head_dim), reset (batch,). The output is the new state's h."""
    h, c, n, m = state.h, state.c, state.n, state.m.detach()
    if reset is not None:
        h, c, n, m = (s.masked_fill(reset[:, None, None], 0.0) for s in (h, c, n, m))
    if gradient_clip is not None:
        h = ClipGradient.apply(h, gradient_clip)
    pre = gates.to(h.dtype) + torch.einsum("bhd,ghde->bghe", h, recurrent.to(h.dtype))
    i, f, z, o = pre.unbind(1)  # each (batch, heads, head_dim)
    log_f = F.logsigmoid(f)
    m_new = torch.where(n == 0, i, torch.maximum(log_f + m, i)).detach()
    write = torch.exp(i - m_new)
    # An empty memory (n = 0) may meet an input gate far below its arbitrary scale: 0 times a finite number stays 0, and
    # so does its gradient.
    keep = torch.exp((log_f + m - m_new).clamp(max=LARGEST))
    c = keep * c + write * torch.tanh(z)
    n = keep * n + write
    return SLSTMState(torch.sigmoid(o) * c / n, c, n, m_new)


def rescaled(state: SLSTMState) -> SLSTMState:
    """The same memory at the scale where n = 1."""
    scale = state.n.detach()
    return SLSTMState(state.h, state.c / scale, state.n / scale, state.m + torch.log(scale))


def slstm_reference(
    gates: Tensor, recurrent: Tensor, state: SLSTMState, resets: Tensor | None, gradient_clip: float | None
) -> tuple[Tensor, SLSTMState]:
    """The whole sequence, token by token; arguments as in `kernels.slstm.slstm`."""
    outputs = []
    for t in range(gates.shape[1]):
        state = recurrence_step(
            gates[:, t], recurrent, state, None if resets is None else resets[:, t], gradient_clip
        )  # fmt: skip
        outputs.append(state.h)
    return torch.stack(outputs, dim=1).to(gates.dtype), rescaled(state)
