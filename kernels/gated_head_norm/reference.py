"""Head-wise norm, learnable skip and gate of an mLSTM block: the definition."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class Inputs(NamedTuple):
    """What is normed, skipped and gated; channels are heads * head_dim."""

    h: Tensor  # (batch, time, heads, head_dim)
    weight: Tensor  # (channels,)
    gate: Tensor  # (batch, time, channels)
    skipped: Tensor | None  # (batch, time, channels)
    skip: Tensor | None  # (channels,)


def gated_head_norm_reference(inputs: Inputs, eps: float) -> Tensor:
    """(weight * norm of each head of h + skip * skipped) * silu(gate), (batch, time, channels)."""
    h, weight, gate, skipped, skip = inputs
    inner = F.layer_norm(h, h.shape[-1:], eps=eps).flatten(-2) * weight
    if skipped is not None and skip is not None:
        inner = inner + skip * skipped
    return (inner * F.silu(gate)).to(gate.dtype)
