"""How tensors lie that Triton kernels read: the numbers of a row next to each other, resets as bytes."""

import torch
from torch import Tensor


def dense_rows(x: Tensor) -> Tensor:
    """The tensor, copied only if its last axis is not contiguous."""
    return x if x.stride(-1) == 1 else x.contiguous()


def by_row(x: Tensor) -> Tensor:
    """(rows, channels) with dense channels; a view where the strides allow it."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def as_bytes(resets: Tensor | None) -> Tensor | None:
    """Booleans as Triton loads them."""
    return None if resets is None else resets.contiguous().view(torch.uint8)
