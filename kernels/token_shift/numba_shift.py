"""Token shift for CPUs: a row read once for all its mixtures, and on the way back their gradients."""

# mypy: disable-error-code="no-untyped-def"

from torch import Tensor

from kernels.cpu import kernel, rows, run
from kernels.cpu.functions import ONE, ZERO, clear_row, given, nth, row
from kernels.cpu.table import Argument, Flags, Rows

AT_ONCE = 32
"""Tokens of a piece."""


@kernel
def _forward(
    first, last, time: int, channels: int, mixtures: int, xs: Rows, lasts: Rows, resets: Flags | None, shares: Rows,
    ys: list[Rows],
):  # fmt: skip
    """`xs` and each of `ys` (batch, time, channels), `lasts` (batch, channels), `shares` (mixtures, channels)."""
    blocks = (time + AT_ONCE - 1) // AT_ONCE
    for piece in range(first, last):
        b, start = piece // blocks, piece % blocks * AT_ONCE
        for t in range(start, min(start + AT_ONCE, time)):
            x, before, kept = row(xs, b, t), row(xs, b, t - 1), ONE
            if t == 0:
                before = row(lasts, b)
            if given(resets) and row(resets, b)[t]:
                kept = ZERO
            for n in range(mixtures):
                y, s = row(nth(ys, n), b, t), row(shares, n)
                if kept == ONE:
                    for d in range(channels):
                        y[d] = before[d] + s[d] * (x[d] - before[d])
                else:
                    for d in range(channels):
                        y[d] = s[d] * x[d]


@kernel
def _backward(
    first, last, time: int, channels: int, mixtures: int, xs: Rows, lasts: Rows, resets: Flags | None, shares: Rows,
    grad_xs: Rows, grad_lasts: Rows, parts: Rows, grads: list[Rows],
):  # fmt: skip
    """As `_forward`; `parts` (pieces, mixtures, channels): what each piece gives to the gradient of the shares."""
    blocks = (time + AT_ONCE - 1) // AT_ONCE
    for piece in range(first, last):
        b, start = piece // blocks, piece % blocks * AT_ONCE
        for n in range(mixtures):
            clear_row(row(parts, piece, n), 0, channels)
        if start == 0:
            grad_last = row(grad_lasts, b)
            clear_row(grad_last, 0, channels)
            if not (given(resets) and row(resets, b)[0]):
                for n in range(mixtures):
                    grad, s = row(nth(grads, n), b), row(shares, n)
                    for d in range(channels):
                        grad_last[d] += grad[d] * (ONE - s[d])
        for t in range(start, min(start + AT_ONCE, time)):
            x, before, grad_x = row(xs, b, t), row(xs, b, t - 1), row(grad_xs, b, t)
            if t == 0:
                before = row(lasts, b)
            kept, seen = ONE, ONE  # whether the token before is mixed in, and this token into the next
            if given(resets) and row(resets, b)[t]:
                kept = ZERO
            if t + 1 == time or (given(resets) and row(resets, b)[t + 1]):
                seen = ZERO
            clear_row(grad_x, 0, channels)
            for n in range(mixtures):
                s, part, grad = row(shares, n), row(parts, piece, n), row(nth(grads, n), b, t)
                if kept == ONE:
                    for d in range(channels):
                        part[d] += grad[d] * (x[d] - before[d])
                else:
                    for d in range(channels):
                        part[d] += grad[d] * x[d]
                if seen == ONE:
                    later = row(nth(grads, n), b, t + 1)
                    for d in range(channels):
                        grad_x[d] += grad[d] * s[d] + later[d] * (ONE - s[d])
                else:
                    for d in range(channels):
                        grad_x[d] += grad[d] * s[d]


def _shared(x: Tensor, shares: Tensor, last: Tensor, resets: Tensor | None) -> dict[str, Argument]:
    sizes = {"time": x.shape[1], "channels": x.shape[2], "mixtures": shares.shape[0]}
    tensors = {"xs": rows(x), "lasts": rows(last), "shares": rows(shares)}
    return {**sizes, **tensors, "resets": None if resets is None else rows(resets)}


def _pieces(x: Tensor) -> int:
    return x.shape[0] * -(-x.shape[1] // AT_ONCE)


def forward(x: Tensor, shares: Tensor, last: Tensor, resets: Tensor | None) -> list[Tensor]:
    """As the reference."""
    mixtures = [x.new_empty(x.shape) for _ in shares]
    run(_forward, _pieces(x), **_shared(x, shares, last, resets), ys=mixtures)
    return mixtures


def backward(
    grads: list[Tensor], x: Tensor, shares: Tensor, last: Tensor, resets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, shares and last."""
    grad_x, grad_last = x.new_empty(x.shape), last.new_empty(last.shape)
    parts = x.new_empty(_pieces(x), *shares.shape)
    run(
        _backward, _pieces(x), **_shared(x, shares, last, resets), grad_xs=grad_x, grad_lasts=grad_last, parts=parts,
        grads=[rows(grad) for grad in grads],
    )  # fmt: skip
    return grad_x, parts.sum(0), grad_last
