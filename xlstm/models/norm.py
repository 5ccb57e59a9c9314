"""RMSNorm (Zhang & Sennrich 2019): y = x / sqrt(mean(x²) + ε) · w over the last dimension."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """`nn.RMSNorm`; on a CPU, where that is a dozen operations each way, with its gradient written out."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu":
            return _OnCPU.apply(x, self.weight, self.eps)
        return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)


class _OnCPU(torch.autograd.Function):
    """With r = 1 / sqrt(mean(x²) + ε): dw = Σ r x dy, and dx = r w dy - r³ x mean(x w dy)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = torch.rsqrt(torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square() / x.shape[-1] + epsilon)
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        x, weight, scale = ctx.saved_tensors
        wide, weight_wide = x.to(scale.dtype), weight.to(scale.dtype)
        weighted = grad * wide
        along = (weighted @ weight_wide).unsqueeze(-1)
        grad_weight = weighted.flatten(0, -2).t() @ scale.flatten()
        grad_x = (grad * weight_wide).addcmul_(wide, along * scale.square(), value=-1 / x.shape[-1]).mul_(scale)
        return grad_x.to(x.dtype), grad_weight.to(weight.dtype), None
