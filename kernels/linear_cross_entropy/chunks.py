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
GPU_CHUNK_BYTES = 2**29
"""Of logits held at once on a GPU: a chunk's products are short there, and each writes the weight's gradient."""
GPU_ROWS = 256
"""On a GPU, rows of a chunk are a multiple of it, as wide as tiles of matrix products get."""


def rows_at_once(vocab: int, itemsize: int, on_gpu: bool) -> int:
    """Rows whose logits, of `itemsize` bytes each, are held at once."""
    if on_gpu:
        return max(1, GPU_CHUNK_BYTES // itemsize // vocab // GPU_ROWS) * GPU_ROWS
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
    chunk = rows_at_once(vocab, rows.itemsize, rows.is_cuda)
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
    chunk = rows_at_once(weight.shape[0], rows.itemsize, rows.is_cuda)
    for start in range(0, count, chunk):
        part = slice(start, start + chunk)
        again = rowwise.kept(rows[part] @ weight.t(), soft_cap)
        of_logits = rowwise.gradients(again, log_z[part], labels[part], grads[part], soft_cap, z_loss).to(rows.dtype)
        torch.mm(of_logits, weight, out=grad_rows[part])
        grad_weight = _plus_product(grad_weight, of_logits.t(), rows[part])
    return grad_rows, grad_weight.to(weight.dtype)


def _plus_product(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """total + left right, written over it where the product is one of its own: on a GPU it adds to float32 itself."""
    if total.is_cuda and total.dtype == torch.float32:
        return torch.addmm(total, left, right, out_dtype=torch.float32)
    total += left @ right
    return total
