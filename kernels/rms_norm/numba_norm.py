"""RMSNorm for CPUs: a row is read once while it lies in the cache, each way."""

# mypy: disable-error-code="no-untyped-def"

import numpy as np
from torch import Tensor

from kernels.cpu import PIECES, by_row, kernel, rows, run
from kernels.cpu.functions import ONE, ZERO, f32, row
from kernels.cpu.table import Rows


@kernel
def _forward(first, last, total: int, width: int, xs: Rows, weights: Rows, scales: Rows, eps: float, ys: Rows):
    """`xs` and `ys` (total, width), `scales` (total,)."""
    weight, scale = row(weights), row(scales)
    for r in range(total * first // PIECES, total * last // PIECES):
        x, y, squares = row(xs, r), row(ys, r), ZERO
        for d in range(width):
            squares += x[d] * x[d]
        factor = ONE / np.sqrt(squares / f32(width) + eps)
        scale[r] = factor
        for d in range(width):
            y[d] = x[d] * factor * weight[d]


@kernel
def _backward(
    first, last, total: int, width: int, xs: Rows, weights: Rows, scales: Rows, grad_ys: Rows, grad_xs: Rows,
    grad_weights: Rows,
):  # fmt: skip
    """As `_forward`; `grad_weights` (pieces, width)."""
    weight, scale = row(weights), row(scales)
    for piece in range(first, last):
        grad_weight = row(grad_weights, piece)
        for r in range(total * piece // PIECES, total * (piece + 1) // PIECES):
            x, grad_y, grad_x, along, factor = (
                row(xs, r),
                row(grad_ys, r),
                row(grad_xs, r),
                ZERO,
                scale[r],
            )
            for d in range(width):
                along += grad_y[d] * x[d] * weight[d]
            along *= factor * factor / f32(width)
            for d in range(width):
                grad_weight[d] += grad_y[d] * x[d] * factor
                grad_x[d] = (grad_y[d] * weight[d] - x[d] * along) * factor


def forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As `torch_fused.forward`."""
    y, scale = x.new_empty(x.shape), x.new_empty(x.shape[:-1])
    run(
        _forward, PIECES, total=scale.numel(), width=x.shape[-1], xs=by_row(x), weights=rows(weight),
        scales=scale.view(-1), eps=float(eps), ys=by_row(y),
    )  # fmt: skip
    return y, scale


def backward(grad_y: Tensor, x: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """As `torch_fused.backward`."""
    grad_x, parts = x.new_empty(x.shape), weight.new_zeros(PIECES, weight.shape[0])
    run(
        _backward, PIECES, total=scale.numel(), width=x.shape[-1], xs=by_row(x), weights=rows(weight),
        scales=rows(scale.reshape(-1)), grad_ys=by_row(grad_y), grad_xs=by_row(grad_x), grad_weights=parts,
    )  # fmt: skip
    return grad_x, parts.sum(0)
