"""The selective scan as its recurrence over time: the definition the other implementations are tested against.

Gu & Dao 2023 (arXiv 2312.00752), equation 2a with the discretisation of section 3.6 (zero-order hold for A, Euler for
B). Autograd differentiates it.
"""

import torch
from torch import Tensor

from kernels.dispatch import state_dtype


def zero_state(u: Tensor, A: Tensor) -> Tensor:
    """The state before the first token: zeros (batch, channels, state_dim), float32, or float64 for float64 inputs."""
    return torch.zeros(u.shape[0], *A.shape, dtype=state_dtype(u), device=u.device)


def selective_scan_reference(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, resets: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The whole sequence, token by token; arguments as in `kernels.selective_scan.selective_scan`."""
    dtype, output_dtype = state.dtype, u.dtype
    u, delta, A, B, C = (tensor.to(dtype) for tensor in (u, delta, A, B, C))
    outputs = []
    for t in range(u.shape[1]):
        if resets is not None:
            state = state.masked_fill(resets[:, t, None, None], 0.0)
        keep = torch.exp(delta[:, t, :, None] * A)  # (batch, channels, state_dim)
        write = (delta[:, t] * u[:, t])[..., None] * B[:, t, None, :]
        state = keep * state + write
        outputs.append(torch.einsum("bcn,bn->bc", state, C[:, t]))
    return torch.stack(outputs, dim=1).to(output_dtype), state
