"""The bounded gate for CPUs: a number read and two written, and on the way back three and one."""

# mypy: disable-error-code="no-untyped-def"

import torch
from torch import Tensor

from kernels.cpu import PIECES, by_row, kernel, rows, run
from kernels.cpu.functions import HALF, ONE, ZERO, exp, log, log1p, row
from kernels.cpu.table import Rows


@kernel
def _forward(first, last, total: int, width: int, xs: Rows, bounds: Rows, kepts: Rows, rests: Rows):
    """`bounds` (1, width), others (total, width)."""
    bound = row(bounds)
    for r in range(total * first // PIECES, total * last // PIECES):
        x, kept, rest = row(xs, r), row(kepts, r), row(rests, r)
        for d in range(width):
            small = exp(-abs(x[d]))
            part = ONE / (ONE + small)
            closed = small * part if x[d] > ZERO else part
            open_ = part if x[d] > ZERO else small * part
            lets_in = (ONE - bound[d]) * closed
            near = min(lets_in, HALF)
            far = log(bound[d] + (ONE - bound[d]) * open_)
            kept[d] = -log1p(near / (ONE - near)) if lets_in < HALF else far
            rest[d] = lets_in


@kernel
def _backward(
    first, last, total: int, width: int, xs: Rows, bounds: Rows, grad_kepts: Rows, grad_rests: Rows, grad_xs: Rows,
    parts: Rows,
):  # fmt: skip
    """As `_forward`; `parts` (PIECES, width), zeros at first: what each piece gives to the gradient of the bounds."""
    bound = row(bounds)
    for piece in range(first, last):
        part_of_bound = row(parts, piece)
        for r in range(total * piece // PIECES, total * (piece + 1) // PIECES):
            x, grad_x = row(xs, r), row(grad_xs, r)
            grad_kept, grad_rest = row(grad_kepts, r), row(grad_rests, r)
            for d in range(width):
                small = exp(-abs(x[d]))
                part = ONE / (ONE + small)
                closed = small * part if x[d] > ZERO else part
                open_ = part if x[d] > ZERO else small * part
                upstream = closed * (grad_kept[d] / (bound[d] + (ONE - bound[d]) * open_) - grad_rest[d])
                part_of_bound[d] += upstream
                grad_x[d] = (ONE - bound[d]) * open_ * upstream


def forward(logits: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    """As the reference."""
    kept, rest, xs = logits.new_empty(logits.shape), logits.new_empty(logits.shape), by_row(logits)
    total, width = xs.shape
    run(
        _forward, PIECES, total=total, width=width, xs=xs, bounds=rows(bound)[None], kepts=by_row(kept),
        rests=by_row(rest),
    )  # fmt: skip
    return kept, rest


def backward(grad_kept: Tensor, grad_rest: Tensor, logits: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the logits and the bound."""
    grad_logits, xs = logits.new_empty(logits.shape), by_row(logits)
    total, width = xs.shape
    parts = torch.zeros(PIECES, width)
    run(
        _backward, PIECES, total=total, width=width, xs=xs, bounds=rows(bound)[None], grad_kepts=by_row(grad_kept),
        grad_rests=by_row(grad_rest), grad_xs=by_row(grad_logits), parts=parts,
    )  # fmt: skip
    return grad_logits, parts.sum(0)
