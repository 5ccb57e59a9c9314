"""Causal depthwise convolution over time, with state and document resets: a block's view of the last few tokens."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kernels.causal_conv import causal_conv_silu

KERNEL_SIZE = 4


class ConvolvedState(NamedTuple):
    """What a block with a convolution remembers."""

    past: Tensor | None  # (batch, 3, channels): the convolution's last inputs; None without one
    memory: Any  # of what reads the convolution's result


class CausalConv(nn.Module):
    """y_t = bias + sum_j w_j x_{t-3+j} per channel, followed by SiLU. State: the last three inputs."""

    def __init__(self, channels: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, KERNEL_SIZE))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None

    def forward(self, x: Tensor, past: Tensor | None, resets: Tensor | None) -> tuple[Tensor, Tensor]:
        """`x` (batch, time, channels), `past` (batch, 3, channels), `resets` (batch, time): result as x, and new past.

        A token does not see across the start of its document.
        """
        bias = self.weight.new_zeros(self.weight.shape[0]) if self.bias is None else self.bias
        return causal_conv_silu(x, self.weight, bias, past=past, resets=resets)
