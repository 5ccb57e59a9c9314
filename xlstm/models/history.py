"""The tokens before these, as convolutions see them: zeros where they are of another document."""

import torch
import torch.nn.functional as F
from torch import Tensor


def joined(past: Tensor | None, x: Tensor, resets: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """`past` (batch, before, channels) and `x` (batch, time, channels) in a row, with resets for both."""
    if past is None:
        return x, resets
    return torch.cat((past, x), dim=1), None if resets is None else F.pad(resets, (past.shape[1], 0))


def latest(x: Tensor, resets: Tensor | None, count: int) -> Tensor:
    """The last tokens of `x` (batch, time, channels), `count` of them or all; zeros before the last document."""
    begin = max(0, x.shape[1] - count)
    x = x[:, begin:]
    if resets is None:
        return x
    document = resets.cumsum(1)
    return x.masked_fill((document[:, begin:] != document[:, -1:])[..., None], 0.0)
