"""RMSNorm (Zhang & Sennrich 2019): y = x / sqrt(mean(x²) + ε) · w over the last dimension."""

import torch
from torch import Tensor, nn

from kernels.rms_norm import rms_norm


class RMSNorm(nn.Module):
    """A weight per channel, no bias."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(…, channels) to the same shape."""
        return rms_norm(x, self.weight, eps=self.eps)
