"""The loss in chunks of rows, forward and backward: matrix products of the library, rows by `torch` or `triton`.

Few logits are kept for the backward; where they are many, only the logarithm of each row's partition sum is, and the
backward computes the logits of a chunk anew.
"""

from types import ModuleType

import torch
from torch import Tensor

from kernels.dispatch import state_dtype

CHUNK_LOGITS = 2**24
"""Logits held at once (64 MiB in float32): those of a whole batch would dwarf the model."""


def rows_at_once(vocab: int) -> int:
    """Rows whose logits are held at once."""
    return max(1, CHUNK_LOGITS // vocab)


def forward(
    rowwise: ModuleType,
    rows: Tensor,
    weight: Tensor,
    labels: Tensor,
    ignored: int,
    soft_cap: float | None,
    z_loss: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, logarithms of the partition sums, and what is kept of the logits: all or nothing."""
    count, vocab = rows.shape[0], weight.shape[0]
    chunk = rows_at_once(vocab)
    if count <= chunk:
        result: tuple[Tensor, Tensor, Tensor] = rowwise.losses(rows @ weight.t(), labels, ignored, soft_cap)
        return result
    losses, log_z = (rows.new_empty(count, dtype=state_dtype(rows)) for _ in range(2))
    for start in range(0, count, chunk):
        part = slice(start, start + chunk)
        losses[part], log_z[part], _ = rowwise.losses(rows[part] @ weight.t(), labels[part], ignored, soft_cap)
    return losses, log_z, rows.new_empty(0, vocab, dtype=rowwise.kept_dtype(rows))


def backward(
    rowwise: ModuleType,
    grads: Tensor,
    rows: Tensor,
    weight: Tensor,
    labels: Tensor,
    log_z: Tensor,
    kept: Tensor,
    ignored: int,
    soft_cap: float | None,
    z_loss: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of the rows and of the weight."""
    count = rows.shape[0]
    grads = grads.to(log_z.dtype).masked_fill(labels == ignored, 0.0)
    if kept.shape[0] == count:
        own = kept.clone() if rowwise.WRITES_OVER else kept
        of_logits = rowwise.gradients(own, log_z, labels, grads, soft_cap, z_loss).to(rows.dtype)
        return of_logits @ weight, of_logits.t() @ rows
    grad_rows = torch.empty_like(rows, memory_format=torch.contiguous_format)
    grad_weight = weight.new_zeros(weight.shape, dtype=log_z.dtype)
    chunk = rows_at_once(weight.shape[0])
    for start in range(0, count, chunk):
        part = slice(start, start + chunk)
        again = rowwise.losses(rows[part] @ weight.t(), labels[part], ignored, soft_cap)[2]
        of_logits = rowwise.gradients(again, log_z[part], labels[part], grads[part], soft_cap, z_loss).to(rows.dtype)
        torch.mm(of_logits, weight, out=grad_rows[part])
        grad_weight += of_logits.t() @ rows[part]
    return grad_rows, grad_weight.to(weight.dtype)
