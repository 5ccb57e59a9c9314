"""Rows of logits to losses, and to the gradients of the logits, with PyTorch's element-wise operations."""

import torch
from torch import Tensor

from kernels.dispatch import state_dtype

WRITES_OVER = False
"""Whether `gradients` writes over what it is given of the logits."""


def kept_dtype(rows: Tensor) -> torch.dtype:
    """Of what is kept of the logits of these rows."""
    return state_dtype(rows)


def losses(logits: Tensor, labels: Tensor, ignored: int, soft_cap: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, logarithms of the partition sums, and what `gradients` takes: the logarithms of the probabilities."""
    logits = _capped(logits, soft_cap)
    log_p = torch.log_softmax(logits, dim=-1)
    own = labels.clamp(min=0)[:, None]
    log_p_own = log_p.gather(-1, own)[:, 0]
    log_z = logits.gather(-1, own)[:, 0] - log_p_own
    return (-log_p_own).masked_fill_(labels == ignored, 0.0), log_z, log_p


def kept(logits: Tensor, soft_cap: float | None) -> Tensor:
    """What `gradients` takes, as `losses` gives it."""
    return torch.log_softmax(_capped(logits, soft_cap), dim=-1)


def _capped(logits: Tensor, soft_cap: float | None) -> Tensor:
    logits = logits.to(state_dtype(logits))
    return logits if soft_cap is None else logits.div(soft_cap).tanh_().mul_(soft_cap)


def gradients(
    log_p: Tensor,
    log_z: Tensor,
    labels: Tensor,
    grads: Tensor,
    soft_cap: float | None,
    z_loss: float,
) -> Tensor:
    """Of the logits before their cap; `grads` are those of the losses, 0 where the label is ignored."""
    grads = grads[:, None]
    result = log_p.exp().mul_(grads)
    if z_loss:
        result.mul_((1.0 + 2.0 * z_loss * log_z)[:, None])
    result.scatter_add_(-1, labels.clamp(min=0)[:, None], -grads)
    if soft_cap is not None:
        capped = (log_p + log_z[:, None]).div_(soft_cap)
        result.addcmul_(result, capped.square_(), value=-1.0)
    return result
