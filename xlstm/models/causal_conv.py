"""Causal depthwise convolution over time, with state and document resets: a block's view of the last few tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERNEL_SIZE = 4


class CausalConv(nn.Module):
    """y_t = bias + sum_j w_j x_{t-3+j} per channel, followed by SiLU. State: the last three inputs."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, KERNEL_SIZE))
        self.bias = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor, past: Tensor | None, resets: Tensor | None) -> tuple[Tensor, Tensor]:
        """`x` (batch, time, channels), `past` (batch, 3, channels), `resets` (batch, time): result as x, and new past.

        A token does not see across the start of its document.
        """
        batch, time, channels = x.shape
        lag = KERNEL_SIZE - 1
        if past is None:
            past = x.new_zeros(batch, lag, channels)
        padded = torch.cat((past, x), dim=1)
        if resets is None:
            convolved = F.conv1d(padded.transpose(1, 2), self.weight[:, None], self.bias, groups=channels)
            return F.silu(convolved.transpose(1, 2)), padded[:, time:]
        # Documents are numbered; a tap counts where it lies in the same one. What lies before the pass is number 0.
        number = F.pad(resets.to(torch.int64).cumsum(dim=1), (lag, 0))  # (batch, lag + time)
        here = number[:, lag:]
        convolved = self.bias.expand_as(x)
        for tap in range(KERNEL_SIZE):
            same = (number[:, tap : tap + time] == here)[..., None]
            convolved = convolved + self.weight[:, tap] * padded[:, tap : tap + time].masked_fill(~same, 0.0)
        keep = (number[:, time:] == number[:, -1:])[..., None]
        return F.silu(convolved), padded[:, time:].masked_fill(~keep, 0.0)
