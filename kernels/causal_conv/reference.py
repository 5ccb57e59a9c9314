"""The causal convolution with SiLU: the definition."""

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_conv_silu_reference(
    x: Tensor, weight: Tensor, bias: Tensor, past: Tensor, documents: Tensor | None
) -> Tensor:
    """y_t = silu(bias + sum_l weight[:, taps - 1 - l] x_{t-l}), over the l whose token lies in t's document."""
    taps, time = weight.shape[1], x.shape[1]
    padded = torch.cat((past.to(x.dtype), x), dim=1)
    number = None if documents is None else F.pad(documents, (taps - 1, 0))
    total = bias.expand_as(x)
    for tap in range(taps):
        seen = padded[:, tap : tap + time]
        if number is not None:
            seen = seen.masked_fill((number[:, tap : tap + time] != number[:, taps - 1 :])[..., None], 0.0)
        total = total + weight[:, tap] * seen
    return F.silu(total).to(x.dtype)
