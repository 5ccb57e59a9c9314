"""The selective scan as its recurrence over time: the definition the other implementations are tested against.

Gu & Dao 2023 (arXiv 2312.00752), equation 2a with the discretisation of section 3.6 (zero-order hold for A, Euler for
B). Autograd differentiates it.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Inputs(NamedTuple):
    """What the selective scan sees of a sequence, and its rates."""

    u: Tensor  # (batch, time, channels)
    delta: Tensor  # (batch, time, channels): positive step sizes
    A: Tensor  # (channels, state_dim): negative rates
    B: Tensor  # (batch, time, state_dim)
    C: Tensor  # (batch, time, state_dim)


def selective_scan_reference(inputs: Inputs, state: Tensor, resets: Tensor | None) -> tuple[Tensor, Tensor]:
    """The whole sequence, token by token; arguments as in `kernels.selective_scan.selective_scan`."""
    u, delta, A, B, C = (tensor.to(state.dtype) for tensor in inputs)
    outputs = []
    for t in range(u.shape[1]):
        if resets is not None:
            state = state.masked_fill(resets[:, t, None, None], 0.0)
        keep = torch.exp(delta[:, t, :, None] * A)  # (batch, channels, state_dim)
        write = (delta[:, t] * u[:, t])[..., None] * B[:, t, None, :]
        state = keep * state + write
        outputs.append(torch.einsum("bcn,bn->bc", state, C[:, t]))
    return torch.stack(outputs, dim=1).to(inputs.u.dtype), state
