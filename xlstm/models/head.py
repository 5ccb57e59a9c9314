"""From the last hidden vectors to what a model returns: logits, or each token's loss without all logits at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.linear_cross_entropy import linear_cross_entropy

IGNORED = -100
"""The target that is not counted: its loss is 0."""


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


def logits_or_losses(hidden: Tensor, weight: Tensor, targets: Tensor | None, soft_cap: float | None = None) -> Tensor:
    """Logits of `hidden` (batch, time, d) times `weight` (vocab, d); with `targets` (batch, time), the losses instead.

    Losses are in nats, float32 (float64 for float64 models), (batch, time), 0 where the target is -100. The caller sums
    and divides, since only it knows how many tokens the global batch counts. `soft_cap` c bounds logits:
    c tanh(logit / c).
    """
    if targets is None:
        logits = F.linear(hidden, weight)
        return logits if soft_cap is None else soft_cap * torch.tanh(logits / soft_cap)
    return linear_cross_entropy(hidden, weight, targets, ignored=IGNORED, soft_cap=soft_cap, z_loss=_z_loss.get())
