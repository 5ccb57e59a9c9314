"""The linear recurrence in PyTorch: the steps of all pieces of a sequence at once, then from piece to piece.

With pieces of about the root of the length, the operations that follow one another number twice that root. What came
into a piece reaches its steps by products of what is kept, all at most 1: nothing is divided, nothing overflows.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def scan(keep: Tensor, x: Tensor, state: Tensor) -> Tensor:
    """h_t = keep_t h_{t-1} + x_t, (batch, time, channels), from `state` (batch, channels)."""
    time = x.shape[1]
    steps = math.isqrt(time - 1) + 1
    padding = (0, 0, 0, -time % steps)
    kept = F.pad(keep, padding).unflatten(1, (-1, steps)).permute(2, 1, 0, 3).clone()  # (step, piece, batch, channels)
    h = F.pad(x, padding).unflatten(1, (-1, steps)).permute(2, 1, 0, 3).clone()
    for t in range(1, steps):
        h[t].addcmul_(kept[t], h[t - 1])
        kept[t].mul_(kept[t - 1])
    incoming = torch.empty_like(h[0])
    for piece in range(incoming.shape[0]):
        incoming[piece] = state
        state = torch.addcmul(h[-1, piece], kept[-1, piece], state)
    h.addcmul_(kept, incoming)
    return h.permute(2, 1, 0, 3).flatten(1, 2)[:, :time].contiguous()


def _keep(g: Tensor, resets: Tensor | None, dtype: torch.dtype) -> Tensor:
    keep = g.to(dtype).exp()
    return keep if resets is None else keep.masked_fill_(resets[..., None], 0.0)


def forward(x: Tensor, g: Tensor, state: Tensor, resets: Tensor | None) -> Tensor:
    """Every state, (batch, time, channels)."""
    return scan(_keep(g, resets, state.dtype), x.to(state.dtype), state)


def backward(
    grad_h: Tensor, x: Tensor, g: Tensor, state: Tensor, resets: Tensor | None, h: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, g and the initial state: dx_t = dh_t + keep_{t+1} dx_{t+1}, dg_t = keep_t h_{t-1} dx_t."""
    keep = _keep(g, resets, state.dtype)
    following = F.pad(keep[:, 1:], (0, 0, 0, 1))
    grad_x = scan(following.flip(1), grad_h.flip(1), torch.zeros_like(state)).flip(1)
    before = torch.cat((state[:, None], h[:, :-1]), dim=1)
    grad_g = before.mul_(keep).mul_(grad_x)
    return grad_x.to(x.dtype), grad_g.to(g.dtype), keep[:, 0] * grad_x[:, 0]
