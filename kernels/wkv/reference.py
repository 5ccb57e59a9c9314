"""RWKV-4's WKV as its recurrence over time: the definition the other implementations are tested against.

Peng et al. 2023 (arXiv 2305.13048), equation 16, in the stabilised form of its appendix D. Autograd differentiates it;
the stabiliser m is a gauge (y does not depend on it), so it carries no gradient.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.dispatch import state_dtype

NOTHING = -1e30
"""The scale of an empty memory: exp of it is 0, and sums of a few such numbers stay finite in float32."""


class WKVState(NamedTuple):
    """What WKV remembers. In true units the sums are a exp(m) and b exp(m); float32, or float64 for float64 inputs."""

    a: Tensor  # (batch, channels): decayed sum of exp(k) v
    b: Tensor  # (batch, channels): decayed sum of exp(k)
    m: Tensor  # (batch, channels): their scale, without gradient


class Inputs(NamedTuple):
    """What WKV sees of a sequence, and what it does with it."""

    k: Tensor  # (batch, time, channels)
    v: Tensor  # (batch, time, channels)
    decay: Tensor  # (channels,), negative
    bonus: Tensor  # (channels,)


def zero_state(k: Tensor) -> WKVState:
    """The state before the first token: empty sums."""
    shape = (k.shape[0], k.shape[2])
    zeros = torch.zeros(2, *shape, dtype=state_dtype(k), device=k.device)
    return WKVState(zeros[0], zeros[1], torch.full_like(zeros[0], NOTHING))


def wkv_reference(inputs: Inputs, state: WKVState, resets: Tensor | None) -> tuple[Tensor, WKVState]:
    """The whole sequence, token by token; arguments as in `kernels.wkv.wkv`."""
    k, v, decay, bonus = (tensor.to(state.a.dtype) for tensor in inputs)
    outputs = []
    a, b, m = state.a, state.b, state.m.detach()
    for t in range(k.shape[1]):
        if resets is not None:
            reset = resets[:, t, None]
            a, b, m = a.masked_fill(reset, 0.0), b.masked_fill(reset, 0.0), m.masked_fill(reset, NOTHING)
        now = bonus + k[:, t]
        scale = torch.maximum(m, now).detach()
        past, present = torch.exp(m - scale), torch.exp(now - scale)
        outputs.append((past * a + present * v[:, t]) / (past * b + present))
        m_new = torch.maximum(m + decay, k[:, t]).detach()
        keep, write = torch.exp(m + decay - m_new), torch.exp(k[:, t] - m_new)
        a, b, m = keep * a + write * v[:, t], keep * b + write, m_new
    y = torch.stack(outputs, dim=1) + 0 * torch.exp(decay)  # of one token, too, y has a gradient for the decay: zero
    return y.to(inputs.v.dtype), WKVState(a, b, m)
