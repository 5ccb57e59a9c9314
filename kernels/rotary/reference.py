"""Rotary positions by definition: a complex number per pair, times that of its angle."""

import torch
from torch import Tensor


def rotary_reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`x` (batch, time, heads, head_dim), `cos` and `sin` ([batch,] time, head_dim/2), one angle for all heads."""
    wide = x.to(torch.promote_types(x.dtype, cos.dtype))
    first, second = wide.chunk(2, dim=-1)
    cos, sin = cos.to(wide.dtype)[..., None, :], sin.to(wide.dtype)[..., None, :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
