"""The loss of a linear map to a vocabulary, written out; differentiated by autograd."""

import torch
import torch.nn.functional as F
from torch import Tensor


def linear_cross_entropy_reference(
    rows: Tensor, weight: Tensor, labels: Tensor, ignored: int, soft_cap: float | None, z_loss: float
) -> Tensor:
    """Losses (rows,) of `rows` (rows, d) against `labels` (rows,)."""
    logits = F.linear(rows, weight)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if soft_cap is not None:
        logits = soft_cap * torch.tanh(logits / soft_cap)
    losses = F.cross_entropy(logits, labels, reduction="none", ignore_index=ignored)
    if z_loss == 0.0:
        return losses
    penalty = z_loss * logits.logsumexp(dim=-1).square().masked_fill(labels == ignored, 0.0)
    return losses + (penalty - penalty.detach())
