"""From the last hidden vectors to what a model returns: logits, or each token's loss without all logits at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

IGNORED = -100
"""The target that is not counted: its loss is 0."""
CHUNK_LOGITS = 2**24
"""Logits held at once (64 MiB in float32): those of a whole batch would dwarf the model."""


_z_loss: ContextVar[float] = ContextVar("z_loss", default=0.0)


@contextmanager
def z_loss(coefficient: float) -> Iterator[None]:
    """Within it, the gradient of each token's loss is that of `loss + coefficient * log(Z)²`; its value stays the loss.

    Z is the sum of the exponentials of the logits: the penalty keeps them from drifting away from zero together, which
    the loss does not see and low precision does (Chowdhery et al. 2022, arXiv 2204.02311, section 5, with 1e-4).
    """
    before = _z_loss.set(coefficient)
    try:
        yield
    finally:
        _z_loss.reset(before)


class Head(Protocol):
    """A map from hidden vectors to the vocabulary: `nn.Linear`, or one that is tied to the embedding."""

    out_features: int

    def __call__(self, hidden: Tensor, /) -> Any: ...


def logits_or_losses(hidden: Tensor, head: Head, targets: Tensor | None, soft_cap: float | None = None) -> Tensor:
    """Logits of `head` over `hidden` (batch, time, d); with `targets` (batch, time), the losses instead.

    Losses are in nats, float32 (float64 for float64 models), (batch, time), 0 where the target is -100. The caller sums
    and divides, since only it knows how many tokens the global batch counts. Where the logits of the batch are many,
    they are computed chunk by chunk, and again in the backward pass. `soft_cap` c bounds logits: c tanh(logit / c).
    """
    if targets is None:
        return _logits(hidden, head, soft_cap)
    if targets.shape != hidden.shape[:-1]:
        raise ValueError(
            f"targets have shape {tuple(targets.shape)}, expected (batch, time) {tuple(hidden.shape[:-1])}"
        )
    rows, labels = hidden.flatten(0, 1), targets.flatten()
    chunk = max(1, CHUNK_LOGITS // head.out_features)
    penalty = _z_loss.get()
    if rows.shape[0] <= chunk:
        return _losses(rows, head, labels, soft_cap, penalty).view(targets.shape)
    losses = [
        checkpoint(_losses, part, head, label, soft_cap, penalty, use_reentrant=False)
        for part, label in zip(rows.split(chunk), labels.split(chunk), strict=True)
    ]
    return torch.cat(losses).view(targets.shape)


def _logits(hidden: Tensor, head: Head, soft_cap: float | None) -> Tensor:
    logits: Tensor = head(hidden)
    return logits if soft_cap is None else soft_cap * torch.tanh(logits / soft_cap)


def _losses(rows: Tensor, head: Head, labels: Tensor, soft_cap: float | None, penalty: float) -> Tensor:
    logits = _logits(rows, head, soft_cap)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORED)
    if penalty == 0.0:
        return losses
    squares = penalty * logits.logsumexp(dim=-1).square().masked_fill(labels == IGNORED, 0.0)
    return losses + (squares - squares.detach())
