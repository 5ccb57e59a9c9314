"""From the last hidden vectors to what a model returns: logits, or each token's loss without all logits at once."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.linear_cross_entropy import linear_cross_entropy
from xlstm.models import IGNORED


def logits_or_losses(
    hidden: Tensor, weight: Tensor, targets: Tensor | None, soft_cap: float | None = None, z_loss: float = 0.0
) -> Tensor:
    """Logits of `hidden` (batch, time, d) times `weight` (vocab, d); with `targets` (batch, time), the losses instead.

    Losses are in nats, float32 (float64 for float64 models), (batch, time), 0 where the target is IGNORED. The caller
    sums and divides, since only it knows how many tokens the global batch counts. `soft_cap` c bounds logits:
    c tanh(logit / c).

    With `z_loss`, the gradient of each token's loss is that of `loss + z_loss * log(Z)²`; its value stays the loss. Z
    is the sum of the exponentials of the logits: the penalty keeps them from drifting away from zero together, which
    the loss does not see and low precision does (Chowdhery et al. 2022, arXiv 2204.02311, section 5, with 1e-4).
    """
    if targets is None:
        logits = F.linear(hidden, weight)
        return logits if soft_cap is None else soft_cap * torch.tanh(logits / soft_cap)
    return linear_cross_entropy(hidden, weight, targets, ignored=IGNORED, soft_cap=soft_cap, z_loss=z_loss)


def squared_errors(hidden: Tensor, weight: Tensor, targets: Tensor | None) -> Tensor:
    """The numbers that `hidden` (batch, time, d) and `weight` (1, d) say, (batch, time, 1); or their squared errors.

    Errors are (batch, time), at least float32, 0 where the target is IGNORED.
    """
    numbers = F.linear(hidden, weight)
    if targets is None:
        return numbers
    said = numbers.squeeze(-1).to(torch.promote_types(numbers.dtype, torch.float32))
    return torch.where(targets == IGNORED, 0.0, (said - targets).square())
