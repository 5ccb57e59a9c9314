"""RMSNorm: the definition."""

import torch
from torch import Tensor

from kernels.dispatch import state_dtype


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) * weight over the last dimension, in the dtype of x."""
    wide = x.to(state_dtype(x))
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)
