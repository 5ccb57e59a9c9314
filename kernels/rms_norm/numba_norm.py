"""RMSNorm for CPUs: a row is read once while it lies in the cache, each way."""

# mypy: disable-error-code="no-untyped-def"

import numpy as np
from torch import Tensor

from kernels.cpu import PIECES, by_row, kernel, rows, run
from kernels.cpu_functions import ONE, ZERO, count, f32, number, row, share

ROWS, WIDTH, X, WEIGHT, SCALE = range(5)
"""Arguments of both kernels: `X` (rows, width), `SCALE` (rows,)."""
EPS, Y = range(5, 7)
"""Of the forward."""
GRAD_Y, GRAD_X, GRAD_WEIGHT = range(5, 8)
"""Of the backward; `GRAD_WEIGHT` (pieces, width)."""


@kernel
def _forward(table):
    first, last = share(table)
    total, width = count(table, ROWS), count(table, WIDTH)
    weight, scale = row(table, WEIGHT), row(table, SCALE)
    for r in range(total * first // PIECES, total * last // PIECES):
        x, y, squares = row(table, X, r), row(table, Y, r), ZERO
        for d in range(width):
            squares += x[d] * x[d]
        factor = ONE / np.sqrt(squares / f32(width) + number(table, EPS))
        scale[r] = factor
        for d in range(width):
            y[d] = x[d] * factor * weight[d]


@kernel
def _backward(table):
    first, last = share(table)
    total, width = count(table, ROWS), count(table, WIDTH)
    weight, scale = row(table, WEIGHT), row(table, SCALE)
    for piece in range(first, last):
        grad_weight = row(table, GRAD_WEIGHT, piece)
        for r in range(total * piece // PIECES, total * (piece + 1) // PIECES):
            x, grad_y, grad_x, along, factor = (
                row(table, X, r),
                row(table, GRAD_Y, r),
                row(table, GRAD_X, r),
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
    run(_forward, PIECES, scale.numel(), x.shape[-1], by_row(x), rows(weight), scale.view(-1), float(eps), by_row(y))
    return y, scale


def backward(grad_y: Tensor, x: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """As `torch_fused.backward`."""
    grad_x, parts = x.new_empty(x.shape), weight.new_zeros(PIECES, weight.shape[0])
    run(
        _backward, PIECES, scale.numel(), x.shape[-1], by_row(x), rows(weight), rows(scale.reshape(-1)),
        by_row(grad_y), by_row(grad_x), parts,
    )  # fmt: skip
    return grad_x, parts.sum(0)
