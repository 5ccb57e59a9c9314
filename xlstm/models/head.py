"""From the last hidden vectors to logits, or straight to losses without holding the logits of a whole batch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

IGNORED = -100
"""Target of a token that is not to be predicted."""
CHUNK_LOGITS = 2**24
"""Logits held at once: float32 logits of a whole batch would dwarf the model (64 MiB of them here)."""


def logits_or_losses(hidden: Tensor, head: nn.Linear, targets: Tensor | None) -> Tensor:
    """Logits (batch, time, vocab) in the head's dtype; with targets, losses in nats (batch, time), float32.

    The loss of a token whose target is -100 is 0. With gradients on, each chunk's logits are computed again in the
    backward pass.
    """
    if targets is None:
        return head(hidden)
    rows = hidden.reshape(-1, hidden.shape[-1])
    labels = targets.reshape(-1)
    chunk = max(1, CHUNK_LOGITS // head.out_features)
    if rows.shape[0] <= chunk:
        return _losses(rows, head.weight, labels).view(targets.shape)
    losses = [
        checkpoint(_losses, part, head.weight, label, use_reentrant=False)
        for part, label in zip(rows.split(chunk), labels.split(chunk), strict=True)
    ]
    return torch.cat(losses).view(targets.shape)


def _losses(rows: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(rows, weight).float(), labels, reduction="none", ignore_index=IGNORED)
