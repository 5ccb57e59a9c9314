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


class Inputs(NamedTuple):
    """What the mLSTM sees of a sequence, or of a token without the axis of time."""

    q: Tensor  # (batch, heads, time, key_dim)
    k: Tensor  # (batch, heads, time, key_dim)
    v: Tensor  # (batch, heads, time, value_dim)
    i: Tensor  # (batch, heads, time), as f: pre-activations of the input and the forget gate
    f: Tensor


class Upstream(NamedTuple):
    """Gradients of the outputs and of the final state, which may have none."""

    h: Tensor  # (batch, heads, time, value_dim)
    C: Tensor | None  # (batch, heads, key_dim, value_dim)
    n: Tensor | None  # (batch, heads, key_dim)


class Saved(NamedTuple):
    """What the forward leaves for the backward. `states_C` is in v's dtype where the Triton kernels have run."""

    h: Tensor  # (batch, heads, time, value_dim)
    states_C: Tensor  # before each chunk: (chunks, batch * heads, key_dim, value_dim)
    states_n: Tensor  # (chunks, batch * heads, key_dim)
    s: Tensor  # (batch * heads, time): the denominators before their maximum


class Options(NamedTuple):
    """How the mLSTM computes; as in `kernels.mlstm.mlstm`."""

    input_gate: str
    normalize: bool
    eps: float
    chunk: int  # tokens

    @property
    def stabilized(self) -> bool:
        """Whether there is a scale: bounded gates and unnormalised outputs need none, it stays exp(0)."""
        return self.input_gate == "exponential" and self.normalize


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
    inputs: Inputs, state: MLSTMState, reset: Tensor | None, options: Options
) -> tuple[Tensor, MLSTMState]:
    """One token: q, k (batch, heads, key_dim), v (batch, heads, value_dim), gates (batch, heads), reset (batch,)."""
    q, k, v, i, f = (x.to(state.C.dtype) for x in inputs)
    k = k * k.shape[-1] ** -0.5
    C, n, m = state.C, state.n, state.m.detach()
    if reset is not None:
        C = C.masked_fill(reset[:, None, None, None], 0.0)
        n = n.masked_fill(reset[:, None, None], 0.0)
        m = m.masked_fill(reset[:, None], 0.0)
    log_f = F.logsigmoid(f)
    log_i = i if options.input_gate == "exponential" else F.logsigmoid(i)
    m_new = torch.maximum(log_f + m, log_i).detach() if options.stabilized else torch.zeros_like(m)
    keep = torch.exp(log_f + m - m_new)  # (batch, heads)
    write = torch.exp(log_i - m_new)
    C = keep[..., None, None] * C + write[..., None, None] * (k[..., :, None] * v[..., None, :])
    n = keep[..., None] * n + write[..., None] * k
    h = torch.einsum("bhk,bhkv->bhv", q, C)
    if options.normalize:
        weight = torch.einsum("bhk,bhk->bh", q, n)
        h = h / (torch.maximum(weight.abs(), torch.exp(-m_new)) + options.eps)[..., None]
    return h, MLSTMState(C, n, m_new)


def mlstm_reference(
    inputs: Inputs, state: MLSTMState, resets: Tensor | None, options: Options
) -> tuple[Tensor, MLSTMState]:
    """The whole sequence, token by token; arguments as in `kernels.mlstm.mlstm`."""
    outputs = []
    for t in range(inputs.q.shape[2]):
        token = Inputs(*(x[:, :, t] for x in inputs))
        h, state = recurrence_step(token, state, None if resets is None else resets[:, t], options)
        outputs.append(h)
    return torch.stack(outputs, dim=2).to(inputs.v.dtype), state
