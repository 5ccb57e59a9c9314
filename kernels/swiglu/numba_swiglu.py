"""SwiGLU for CPUs: two numbers read and one written, and on the way back three and two."""

# mypy: disable-error-code="no-untyped-def"

from torch import Tensor

from kernels.cpu import PIECES, by_row, kernel, run
from kernels.cpu.functions import ONE, row, sigmoid
from kernels.cpu.table import Rows


@kernel
def _forward(first, last, total: int, width: int, gates: Rows, ups: Rows, ys: Rows):
    """Tensors are (total, width)."""
    for r in range(total * first // PIECES, total * last // PIECES):
        gate, up, y = row(gates, r), row(ups, r), row(ys, r)
        for d in range(width):
            y[d] = gate[d] * sigmoid(gate[d]) * up[d]


@kernel
def _backward(
    first, last, total: int, width: int, gates: Rows, ups: Rows, grad_ys: Rows, grad_gates: Rows, grad_ups: Rows,
):  # fmt: skip
    """Tensors are (total, width)."""
    for r in range(total * first // PIECES, total * last // PIECES):
        gate, up, grad_y = row(gates, r), row(ups, r), row(grad_ys, r)
        grad_gate, grad_up = row(grad_gates, r), row(grad_ups, r)
        for d in range(width):
            open_ = sigmoid(gate[d])
            gated = gate[d] * open_
            grad_gate[d] = grad_y[d] * up[d] * (open_ + gated * (ONE - open_))
            grad_up[d] = grad_y[d] * gated


def forward(gate: Tensor, up: Tensor) -> Tensor:
    """As the reference."""
    y, gates = gate.new_empty(gate.shape), by_row(gate)
    total, width = gates.shape
    run(_forward, PIECES, total=total, width=width, gates=gates, ups=by_row(up), ys=by_row(y))
    return y


def backward(grad_y: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up."""
    grad_gate, grad_up = gate.new_empty(gate.shape), up.new_empty(up.shape)
    gates = by_row(gate)
    total, width = gates.shape
    run(
        _backward, PIECES, total=total, width=width, gates=gates, ups=by_row(up), grad_ys=by_row(grad_y),
        grad_gates=by_row(grad_gate), grad_ups=by_row(grad_up),
    )  # fmt: skip
    return grad_gate, grad_up
