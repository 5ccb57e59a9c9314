"""Linear attention with a decay per key channel as its recurrence over time: the definition of the other forms.

Yang et al. 2024 (arXiv 2312.06635), equation 3, for the read after the update; Peng et al. 2024 (arXiv 2404.05892),
equations 13 to 19, for the read before it with a bonus. Autograd differentiates it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 64
"""Tokens between the states that are kept for the backward, in every implementation."""


class Inputs(NamedTuple):
    """What linear attention sees of a sequence, and its bonus."""

    q: Tensor  # (batch, time, heads, key_dim)
    k: Tensor  # (batch, time, heads, key_dim)
    v: Tensor  # (batch, time, heads, value_dim)
    g: Tensor  # (batch, time, heads, key_dim): logarithms of the decay
    bonus: Tensor | None  # (heads, key_dim)


def gated_linear_attention_reference(inputs: Inputs, state: Tensor, resets: Tensor | None) -> tuple[Tensor, Tensor]:
    """The whole sequence, token by token; arguments as in `kernels.gated_linear_attention.gated_linear_attention`."""
    *sequence, bonus = inputs
    queries, keys, values, decays = (x.to(state.dtype).unbind(1) for x in sequence)
    outputs = []
    for t, (q_t, k_t, v_t, g_t) in enumerate(zip(queries, keys, values, decays, strict=True)):
        if resets is not None:
            state = state.masked_fill(resets[:, t, None, None, None], 0.0)
        written = k_t[..., None] * v_t[..., None, :]
        after = torch.exp(g_t)[..., None] * state + written
        seen = after if bonus is None else state + bonus.to(state.dtype)[..., None] * written
        outputs.append(torch.einsum("bhk,bhkv->bhv", q_t, seen))
        state = after
    return torch.stack(outputs, dim=1).to(inputs.v.dtype), state
