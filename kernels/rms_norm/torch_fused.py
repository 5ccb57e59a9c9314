"""RMSNorm with its gradient written out: of the dozen operations that autograd would make of it, half."""

import torch
from torch import Tensor

from kernels.dispatch import state_dtype


def forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The result in the dtype of x, and r (…), the factor of each row."""
    wide = x.to(state_dtype(x))
    scale = torch.rsqrt(torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square() / x.shape[-1] + eps)
    return (wide * scale).mul_(weight).to(x.dtype).contiguous(), scale.squeeze(-1).contiguous()


def backward(grad_y: Tensor, x: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the weight."""
    grad, wide, wide_weight = (t.to(scale.dtype) for t in (grad_y, x, weight))
    weighted, factor = grad * wide, scale.unsqueeze(-1)
    along = (weighted @ wide_weight).unsqueeze(-1)
    grad_weight = weighted.flatten(0, -2).t() @ scale.flatten()
    grad_x = (grad * wide_weight).addcmul_(wide, along * factor.square(), value=-1 / x.shape[-1]).mul_(factor)
    return grad_x.to(x.dtype).contiguous(), grad_weight.to(weight.dtype)
