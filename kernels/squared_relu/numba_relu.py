"""Squared ReLU for CPUs: one pass each way."""

# mypy: disable-error-code="no-untyped-def"

from torch import Tensor

from kernels.cpu import PIECES, by_row, kernel, run
from kernels.cpu_functions import TWO, ZERO, count, row, share

ROWS, WIDTH, X = range(3)
"""Arguments of both kernels: tensors are (rows, width)."""
Y = 3
"""Of the forward."""
GRAD_Y, GRAD_X = range(3, 5)
"""Of the backward."""


@kernel
def _forward(table):
    first, last = share(table)
    total, width = count(table, ROWS), count(table, WIDTH)
    for r in range(total * first // PIECES, total * last // PIECES):
        x, y = row(table, X, r), row(table, Y, r)
        for d in range(width):
            positive = ZERO if x[d] < ZERO else x[d]
            y[d] = positive * positive


@kernel
def _backward(table):
    first, last = share(table)
    total, width = count(table, ROWS), count(table, WIDTH)
    for r in range(total * first // PIECES, total * last // PIECES):
        x, grad_y, grad_x = row(table, X, r), row(table, GRAD_Y, r), row(table, GRAD_X, r)
        for d in range(width):
            positive = ZERO if x[d] < ZERO else x[d]
            grad_x[d] = TWO * positive * grad_y[d]


def forward(x: Tensor) -> Tensor:
    """As the reference."""
    y, given = x.new_empty(x.shape), by_row(x)
    run(_forward, PIECES, *given.shape, given, by_row(y))
    return y


def backward(grad_y: Tensor, x: Tensor) -> Tensor:
    """2 max(x, 0) dy."""
    grad_x, given = x.new_empty(x.shape), by_row(x)
    run(_backward, PIECES, *given.shape, given, by_row(grad_y), by_row(grad_x))
    return grad_x
