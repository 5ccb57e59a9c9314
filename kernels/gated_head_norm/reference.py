"""Head-wise norm, learnable skip and gate of an mLSTM block: the definition."""

import torch.nn.functional as F
from torch import Tensor


def gated_head_norm_reference(
    h: Tensor, weight: Tensor, gate: Tensor, skipped: Tensor | None, skip: Tensor | None, eps: float
) -> Tensor:
    """(weight * norm of each head of h + skip * skipped) * silu(gate), (batch, time, channels)."""
    inner = F.layer_norm(h, h.shape[-1:], eps=eps).flatten(-2) * weight
    if skipped is not None and skip is not None:
        inner = inner + skip * skipped
    return (inner * F.silu(gate)).to(gate.dtype)
