"""SwiGLU for CPUs: two numbers read and one written, and on the way back three and two."""

# mypy: disable-error-code="no-untyped-def"

from torch import Tensor

from kernels.cpu import PIECES, by_row, kernel, run
from kernels.cpu_functions import ONE, count, row, share, sigmoid

ROWS, WIDTH, GATE, UP = range(4)
"""Arguments of both kernels: tensors are (rows, width)."""
Y = 4
"""Of the forward."""
GRAD_Y, GRAD_GATE, GRAD_UP = range(4, 7)
"""Of the backward."""


@kernel
def _forward(table):
    first, last = share(table)
    total, width = count(table, ROWS), count(table, WIDTH)
    for r in range(total * first // PIECES, total * last // PIECES):
        gate, up, y = row(table, GATE, r), row(table, UP, r), row(table, Y, r)
        for d in range(width):
            y[d] = gate[d] * sigmoid(gate[d]) * up[d]


@kernel
def _backward(table):
    first, last = share(table)
    total, width = count(table, ROWS), count(table, WIDTH)
    for r in range(total * first // PIECES, total * last // PIECES):
        gate, up, grad_y = row(table, GATE, r), row(table, UP, r), row(table, GRAD_Y, r)
        grad_gate, grad_up = row(table, GRAD_GATE, r), row(table, GRAD_UP, r)
        for d in range(width):
            open_ = sigmoid(gate[d])
            gated = gate[d] * open_
            grad_gate[d] = grad_y[d] * up[d] * (open_ + gated * (ONE - open_))
            grad_up[d] = grad_y[d] * gated


def forward(gate: Tensor, up: Tensor) -> Tensor:
    """As the reference."""
    y, gates = gate.new_empty(gate.shape), by_row(gate)
    run(_forward, PIECES, *gates.shape, gates, by_row(up), by_row(y))
    return y


def backward(grad_y: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up."""
    grad_gate, grad_up = gate.new_empty(gate.shape), up.new_empty(up.shape)
    gates = by_row(gate)
    run(_backward, PIECES, *gates.shape, gates, by_row(up), by_row(grad_y), by_row(grad_gate), by_row(grad_up))
    return grad_gate, grad_up
