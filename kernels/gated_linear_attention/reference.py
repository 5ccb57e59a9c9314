"""Linear attention with a decay per key channel as its recurrence over time: the definition of the other forms.

Yang et al. 2024 (arXiv 2312.06635), equation 3, for the read after the update; Peng et al. 2024 (arXiv 2404.05892),
equations 13 to 19, for the read before it with a bonus. Autograd differentiates it.
"""

import torch
from torch import Tensor

from kernels.dispatch import state_dtype

CHUNK = 64
"""Tokens between the states that are kept for the backward, in every implementation."""


def zero_state(k: Tensor, v: Tensor) -> Tensor:
    """The state before the first token, (batch, heads, key_dim, value_dim)."""
    return k.new_zeros(k.shape[0], k.shape[2], k.shape[3], v.shape[3], dtype=state_dtype(v))


def gated_linear_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, bonus: Tensor | None, state: Tensor, resets: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The whole sequence, token by token; arguments as in `kernels.gated_linear_attention.gated_linear_attention`."""
    dtype = state.dtype
    queries, keys, values, decays = (x.to(dtype).unbind(1) for x in (q, k, v, g))
    outputs = []
    for t, (q_t, k_t, v_t, g_t) in enumerate(zip(queries, keys, values, decays, strict=True)):
        if resets is not None:
            state = state.masked_fill(resets[:, t, None, None, None], 0.0)
        written = k_t[..., None] * v_t[..., None, :]
        after = torch.exp(g_t)[..., None] * state + written
        seen = after if bonus is None else state + bonus.to(dtype)[..., None] * written
        outputs.append(torch.einsum("bhk,bhkv->bhv", q_t, seen))
        state = after
    return torch.stack(outputs, dim=1).to(v.dtype), state
