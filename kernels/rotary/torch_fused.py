"""Rotary positions in PyTorch: a product and a sum with a product for each half, into place."""

import torch
from torch import Tensor


def turn(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, back: bool) -> tuple[Tensor, Tensor]:
    """As the reference for both, by the opposite angles where `back`; rounded once."""
    wide = torch.promote_types(query.dtype, cos.dtype)
    cos, sin = cos.to(wide)[..., None, :], sin.to(wide)[..., None, :]
    sin = -sin if back else sin
    return _turn(query, cos, sin), _turn(key, cos, sin)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    turned = x.new_empty(x.shape, dtype=cos.dtype)
    (first, second), (into_first, into_second) = x.to(cos.dtype).chunk(2, dim=-1), turned.chunk(2, dim=-1)
    torch.mul(first, cos, out=into_first).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=into_second).addcmul_(first, sin)
    return turned.to(x.dtype)
