"""Token shift for CPUs: a row read once for all its mixtures, and on the way back their gradients."""

# mypy: disable-error-code="no-untyped-def"

from torch import Tensor

from kernels.cpu import kernel, rows, run
from kernels.cpu_functions import ONE, ZERO, count, flags, given, row, share

AT_ONCE = 32
"""Tokens of a piece."""

TIME, CHANNELS, MIXTURES, X, LAST, RESETS, SHARES = range(7)
"""Arguments of both kernels. `X` (batch, time, channels), `LAST` (batch, channels), `SHARES` (mixtures, channels)."""
Y = 7
"""Of the forward: as many tensors (batch, time, channels) as there are mixtures."""
GRAD_X, GRAD_LAST, PARTS, GRADS = range(7, 11)
"""Of the backward. `PARTS` (pieces, mixtures, channels): what each gives to the shares; `GRADS` as `Y`, and more."""


@kernel
def _forward(table):
    first, last = share(table)
    time, channels = count(table, TIME), count(table, CHANNELS)
    blocks = (time + AT_ONCE - 1) // AT_ONCE
    for piece in range(first, last):
        b, start = piece // blocks, piece % blocks * AT_ONCE
        for t in range(start, min(start + AT_ONCE, time)):
            x, before, kept = row(table, X, b, t), row(table, X, b, t - 1), ONE
            if t == 0:
                before = row(table, LAST, b)
            if given(table, RESETS) and flags(table, RESETS, b)[t]:
                kept = ZERO
            for n in range(count(table, MIXTURES)):
                y, s = row(table, Y + n, b, t), row(table, SHARES, n)
                if kept == ONE:
                    for d in range(channels):
                        y[d] = before[d] + s[d] * (x[d] - before[d])
                else:
                    for d in range(channels):
                        y[d] = s[d] * x[d]


@kernel
def _backward(table):
    first, last = share(table)
    time, channels, mixtures = count(table, TIME), count(table, CHANNELS), count(table, MIXTURES)
    blocks = (time + AT_ONCE - 1) // AT_ONCE
    for piece in range(first, last):
        b, start = piece // blocks, piece % blocks * AT_ONCE
        for n in range(mixtures):
            part = row(table, PARTS, piece, n)
            for d in range(channels):
                part[d] = ZERO
        if start == 0:
            grad_last = row(table, GRAD_LAST, b)
            for d in range(channels):
                grad_last[d] = ZERO
            if not (given(table, RESETS) and flags(table, RESETS, b)[0]):
                for n in range(mixtures):
                    grad, s = row(table, GRADS + n, b), row(table, SHARES, n)
                    for d in range(channels):
                        grad_last[d] += grad[d] * (ONE - s[d])
        for t in range(start, min(start + AT_ONCE, time)):
            x, before, grad_x = row(table, X, b, t), row(table, X, b, t - 1), row(table, GRAD_X, b, t)
            if t == 0:
                before = row(table, LAST, b)
            kept, seen = ONE, ONE  # whether the token before is mixed in, and this token into the next
            if given(table, RESETS) and flags(table, RESETS, b)[t]:
                kept = ZERO
            if t + 1 == time or (given(table, RESETS) and flags(table, RESETS, b)[t + 1]):
                seen = ZERO
            for d in range(channels):
                grad_x[d] = ZERO
            for n in range(mixtures):
                s, part, grad = row(table, SHARES, n), row(table, PARTS, piece, n), row(table, GRADS + n, b, t)
                if kept == ONE:
                    for d in range(channels):
                        part[d] += grad[d] * (x[d] - before[d])
                else:
                    for d in range(channels):
                        part[d] += grad[d] * x[d]
                if seen == ONE:
                    later = row(table, GRADS + n, b, t + 1)
                    for d in range(channels):
                        grad_x[d] += grad[d] * s[d] + later[d] * (ONE - s[d])
                else:
                    for d in range(channels):
                        grad_x[d] += grad[d] * s[d]


def _shared(x: Tensor, shares: Tensor, last: Tensor, resets: Tensor | None) -> tuple[int | Tensor | None, ...]:
    seen = None if resets is None else rows(resets)
    return *x.shape[1:], shares.shape[0], rows(x), rows(last), seen, rows(shares)


def _pieces(x: Tensor) -> int:
    return x.shape[0] * -(-x.shape[1] // AT_ONCE)


def forward(x: Tensor, shares: Tensor, last: Tensor, resets: Tensor | None) -> list[Tensor]:
    """As the reference."""
    mixtures = [x.new_empty(x.shape) for _ in shares]
    run(_forward, _pieces(x), *_shared(x, shares, last, resets), *mixtures)
    return mixtures


def backward(
    grads: list[Tensor], x: Tensor, shares: Tensor, last: Tensor, resets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, shares and last."""
    grad_x, grad_last = x.new_empty(x.shape), last.new_empty(last.shape)
    parts = x.new_empty(_pieces(x), *shares.shape)
    given_rows = [rows(grad) for grad in grads]
    run(_backward, _pieces(x), *_shared(x, shares, last, resets), grad_x, grad_last, parts, *given_rows)
    return grad_x, parts.sum(0), grad_last
