"""Rows of logits to losses, and to their gradients in place, as Triton kernels: each row is read once, or twice back.

The matrix products around them are the library's. A program takes a row, or a part of one; logits stay in the dtype of
the product, only a tile of them is float32 at a time, and the gradients overwrite them.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 2048
"""Logits at once."""
WARPS = 8
WRITES_OVER = True
"""Whether `gradients` writes over what it is given of the logits."""


@triton.jit
def _capped(x, cap, CAP: tl.constexpr):
    """cap * tanh(x / cap)."""
    return cap * (1.0 - 2.0 / (tl.exp(2.0 * x / cap) + 1.0)) if CAP else x


@triton.jit
def losses_kernel(
    logits, labels, losses, log_z, stride, vocab, cap, ignored, CAP: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """One row: the running maximum and the sum of exponentials relative to it, tile by tile."""
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels + row)
    logits += row * stride
    maximum = tl.full((), float("-inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    for start in range(0, vocab, BLOCK):
        c = start + tl.arange(0, BLOCK)
        x = _capped(tl.load(logits + c, mask=c < vocab, other=0.0).to(tl.float32), cap, CAP)
        x = tl.where(c < vocab, x, float("-inf"))
        higher = tl.maximum(maximum, tl.max(x, axis=0))
        # Where all so far is -inf, its sum is 0 and stays so.
        total = total * tl.where(maximum == higher, 1.0, tl.exp(maximum - higher)) + tl.sum(tl.exp(x - higher), axis=0)
        maximum = higher
    z = maximum + tl.log(total)
    own = tl.load(logits + tl.where(label == ignored, 0, label)).to(tl.float32)
    tl.store(log_z + row, z)
    tl.store(losses + row, tl.where(label == ignored, 0.0, z - _capped(own, cap, CAP)))


@triton.jit
def gradients_kernel(
    logits, labels, grads, log_z, stride, vocab, cap, z_loss, CAP: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """One tile of a row, in place."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    grad = tl.load(grads + row)
    z = tl.load(log_z + row)
    place = logits + row * stride + c
    x = _capped(tl.load(place, mask=c < vocab, other=0.0).to(tl.float32), cap, CAP)
    result = tl.exp(x - z) * (1.0 + 2.0 * z_loss * z) - tl.where(c == tl.load(labels + row), 1.0, 0.0)
    if CAP:
        result *= 1.0 - (x / cap) * (x / cap)
    tl.store(place, (result * grad).to(logits.dtype.element_ty), mask=c < vocab)


def kept_dtype(rows: Tensor) -> torch.dtype:
    """Of what is kept of the logits of these rows."""
    return rows.dtype


def losses(logits: Tensor, labels: Tensor, ignored: int, soft_cap: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, logarithms of the partition sums, and what `gradients` takes: the logits as they are."""
    rows, vocab = logits.shape
    result, log_z = (logits.new_empty(rows, dtype=torch.float32) for _ in range(2))
    cap = soft_cap or 1.0
    losses_kernel[(rows,)](
        logits, labels, result, log_z, logits.stride(0), vocab, cap, ignored,
        CAP=soft_cap is not None, BLOCK=TILE, num_warps=WARPS,
    )  # fmt: skip
    return result, log_z, logits


def kept(logits: Tensor, soft_cap: float | None) -> Tensor:
    """What `gradients` takes, as `losses` gives it: the logits as they are."""
    return logits


def gradients(
    logits: Tensor,
    log_z: Tensor,
    labels: Tensor,
    grads: Tensor,
    soft_cap: float | None,
    z_loss: float,
) -> Tensor:
    """Of the logits before their cap, written over them; `grads` are those of the losses, 0 for ignored labels."""
    rows, vocab = logits.shape
    cap = soft_cap or 1.0
    gradients_kernel[(rows, triton.cdiv(vocab, TILE))](
        logits, labels, grads, log_z, logits.stride(0), vocab, cap, z_loss,
        CAP=soft_cap is not None, BLOCK=TILE, num_warps=WARPS,
    )  # fmt: skip
    return logits
