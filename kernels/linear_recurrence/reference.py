"""An element-wise linear recurrence, step by step: the definition of the other forms. Autograd differentiates it."""

import torch
from torch import Tensor


def linear_recurrence_reference(x: Tensor, g: Tensor, state: Tensor, resets: Tensor | None) -> Tensor:
    """The whole sequence, token by token; arguments as in `kernels.linear_recurrence.linear_recurrence`."""
    keep = torch.exp(g.to(state.dtype))
    if resets is not None:
        keep = keep.masked_fill(resets[..., None], 0.0)
    states = []
    for x_t, keep_t in zip(x.to(state.dtype).unbind(1), keep.unbind(1), strict=True):
        state = keep_t * state + x_t
        states.append(state)
    return torch.stack(states, dim=1)
