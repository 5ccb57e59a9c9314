"""Squared ReLU for CPUs: one pass each way."""

# mypy: disable-error-code="no-untyped-def"

from torch import Tensor

from kernels.cpu import PIECES, by_row, kernel, run
from kernels.cpu.functions import TWO, ZERO, row
from kernels.cpu.table import Rows


@kernel
def _forward(first, last, total: int, width: int, xs: Rows, ys: Rows):
    """Tensors are (total, width)."""
    for r in range(total * first // PIECES, total * last // PIECES):
        x, y = row(xs, r), row(ys, r)
        for d in range(width):
            positive = ZERO if x[d] < ZERO else x[d]
            y[d] = positive * positive


@kernel
def _backward(first, last, total: int, width: int, xs: Rows, grad_ys: Rows, grad_xs: Rows):
    """Tensors are (total, width)."""
    for r in range(total * first // PIECES, total * last // PIECES):
        x, grad_y, grad_x = row(xs, r), row(grad_ys, r), row(grad_xs, r)
        for d in range(width):
            positive = ZERO if x[d] < ZERO else x[d]
            grad_x[d] = TWO * positive * grad_y[d]


def forward(x: Tensor) -> Tensor:
    """As the reference."""
    y, xs = x.new_empty(x.shape), by_row(x)
    total, width = xs.shape
    run(_forward, PIECES, total=total, width=width, xs=xs, ys=by_row(y))
    return y


def backward(grad_y: Tensor, x: Tensor) -> Tensor:
    """2 max(x, 0) dy."""
    grad_x, xs = x.new_empty(x.shape), by_row(x)
    total, width = xs.shape
    run(_backward, PIECES, total=total, width=width, xs=xs, grad_ys=by_row(grad_y), grad_xs=by_row(grad_x))
    return grad_x
