"""The mLSTM as its recurrence over time: the definition the other implementations are tested against.

Beck et al. 2024 (arXiv 2405.04517), equations 19-27, in the stabilised form of its appendix A.1. Autograd
differentiates it; the stabiliser m is a gauge (h does not depend on it, up to eps), so it carries no gradient.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.dispatch import state_dtype


class MLSTMState(NamedTuple):
    """What the mLSTM remembers, float32 or float64 as its inputs. In true units the memory is C exp(m) and n exp(m)."""

    C: Tensor  # (batch, heads, key_dim, value_dim); holds keys already divided by sqrt(key_dim)
    n: Tensor  # (batch, heads, key_dim)
    m: Tensor  # (batch, heads); a scale, without gradient


def zero_state(q: Tensor, v: Tensor) -> MLSTMState:
    """The state before the first token: an empty memory at scale exp(0)."""
    batch, heads, key_dim, value_dim = q.shape[0], q.shape[1], q.shape[-1], v.shape[-1]
    dtype, device = state_dtype(v), v.device
    return MLSTMState(
        torch.zeros(batch, heads, key_dim, value_dim, dtype=dtype, device=device),
        torch.zeros(batch, heads, key_dim, dtype=dtype, device=device),
        torch.zeros(batch, heads, dtype=dtype, device=device),
    )


def recurrence_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    state: MLSTMState,
    reset: Tensor | None,
    input_gate: str,
    normalize: bool,
    eps: float,
) -> tuple[Tensor, MLSTMState]:
    """One token: q, k (batch, heads, key_dim), v (batch, heads, value_dim), gates (batch, heads), reset (batch,)."""
    dtype = state.C.dtype
    q, v, i, f = q.to(dtype), v.to(dtype), i.to(dtype), f.to(dtype)
    k = k.to(dtype) * k.shape[-1] ** -0.5
    C, n, m = state.C, state.n, state.m.detach()
    if reset is not None:
        C = C.masked_fill(reset[:, None, None, None], 0.0)
        n = n.masked_fill(reset[:, None, None], 0.0)
        m = m.masked_fill(reset[:, None], 0.0)
    log_f = F.logsigmoid(f)
    log_i = i if input_gate == "exponential" else F.logsigmoid(i)
    # Bounded gates and unnormalised outputs need no stabiliser: the scale stays exp(0).
    stabilized = input_gate == "exponential" and normalize
    m_new = torch.maximum(log_f + m, log_i).detach() if stabilized else torch.zeros_like(m)
    keep = torch.exp(log_f + m - m_new)  # (batch, heads)
    write = torch.exp(log_i - m_new)
    C = keep[..., None, None] * C + write[..., None, None] * (k[..., :, None] * v[..., None, :])
    n = keep[..., None] * n + write[..., None] * k
    h = torch.einsum("bhk,bhkv->bhv", q, C)
    if normalize:
        weight = torch.einsum("bhk,bhk->bh", q, n)
        h = h / (torch.maximum(weight.abs(), torch.exp(-m_new)) + eps)[..., None]
    return h, MLSTMState(C, n, m_new)


def mlstm_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    state: MLSTMState,
    resets: Tensor | None,
    input_gate: str,
    normalize: bool,
    eps: float,
) -> tuple[Tensor, MLSTMState]:
    """The whole sequence, token by token; arguments as in `kernels.mlstm.mlstm`."""
    outputs = []
    for t in range(q.shape[2]):
        h, state = recurrence_step(
            q[:, :, t], k[:, :, t], v[:, :, t], i[:, :, t], f[:, :, t], state,
            None if resets is None else resets[:, t], input_gate, normalize, eps,
        )  # fmt: skip
        outputs.append(h)
    return torch.stack(outputs, dim=2).to(v.dtype), state
