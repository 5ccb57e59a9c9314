"""From the last hidden states to what a model returns: logits, or each token's loss."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORED = -100
"""The target that is not counted: its loss is 0."""


def logits_or_losses(hidden: Tensor, head: nn.Module, targets: Tensor | None) -> Tensor:
    """Logits of `head` over `hidden` (batch, time, d); with `targets` (batch, time), the losses instead.

    Losses are in nats, float32 (float64 for float64 models), (batch, time), 0 where the target is -100. The caller sums
    and divides, since only it knows how many tokens the global batch counts.
    """
    logits: Tensor = head(hidden)
    if targets is None:
        return logits
    if targets.shape != logits.shape[:-1]:
        raise ValueError(
            f"targets have shape {tuple(targets.shape)}, expected (batch, time) {tuple(logits.shape[:-1])}"
        )
    logits = logits.flatten(0, 1)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(logits, targets.flatten(), reduction="none", ignore_index=IGNORED)
    return losses.view(targets.shape)
