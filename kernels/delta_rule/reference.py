"""The generalised delta rule as its recurrence over time: the definition of the other forms.

Yang et al. 2024 (arXiv 2406.06484, 2412.06464) and Peng et al. 2025 (arXiv 2503.14456). Autograd differentiates it.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Inputs(NamedTuple):
    """What the delta rule sees of a sequence, (batch, time, heads, key_dim) where not said otherwise."""

    q: Tensor
    k: Tensor
    v: Tensor  # (batch, time, heads, value_dim)
    a: Tensor  # what is looked up before the write
    b: Tensor  # where what is found is written
    g: Tensor  # logarithms of the decay


def delta_rule_reference(inputs: Inputs, state: Tensor, resets: Tensor | None) -> tuple[Tensor, Tensor]:
    """The whole sequence, token by token; arguments as in `kernels.delta_rule.delta_rule`."""
    outputs = []
    sequence = zip(*(x.to(state.dtype).unbind(1) for x in inputs), strict=True)
    for t, (q_t, k_t, v_t, a_t, b_t, g_t) in enumerate(sequence):
        if resets is not None:
            state = state.masked_fill(resets[:, t, None, None, None], 0.0)
        found = torch.einsum("bhk,bhkv->bhv", a_t, state)
        state = torch.exp(g_t)[..., None] * state + b_t[..., None] * found[..., None, :]
        state = state + k_t[..., None] * v_t[..., None, :]
        outputs.append(torch.einsum("bhk,bhkv->bhv", q_t, state))
    return torch.stack(outputs, dim=1).to(inputs.v.dtype), state
