"""Head-wise norm, skip and gate for CPUs: every tensor is read once and written once, each way."""

# mypy: disable-error-code="no-untyped-def"

import numpy as np
from torch import Tensor

from kernels.cpu import PIECES, kernel, rows, run
from kernels.cpu_functions import ONE, ZERO, count, f32, given, number, row, share, sigmoid

TOKENS, TIME, HEADS, HEAD_DIM, H, WEIGHT, GATE, SKIPPED, SKIP, MEAN, DEVIATION = range(11)
"""Arguments of both kernels."""
EPS, Y = range(11, 13)
"""Of the forward."""
GRAD_Y, GRAD_H, GRAD_GATE, GRAD_SKIPPED, GRAD_WEIGHT, GRAD_SKIP = range(11, 17)
"""Of the backward. `GRAD_WEIGHT` and `GRAD_SKIP` (pieces, channels)."""


@kernel
def _forward(table):
    first, last = share(table)
    tokens, time, heads, width = (count(table, TOKENS), count(table, TIME), count(table, HEADS), count(table, HEAD_DIM))
    for token in range(tokens * first // PIECES, tokens * last // PIECES):
        b, t = token // time, token % time
        for head in range(heads):
            h, begin = row(table, H, b, t, head), head * width
            mean = ZERO
            for d in range(width):
                mean += h[d]
            mean /= f32(width)
            variance = ZERO
            for d in range(width):
                variance += (h[d] - mean) * (h[d] - mean)
            deviation = ONE / np.sqrt(variance / f32(width) + number(table, EPS))
            row(table, MEAN, b, t, head)[0] = mean
            row(table, DEVIATION, b, t, head)[0] = deviation
            weight, gate, y = row(table, WEIGHT), row(table, GATE, b, t), row(table, Y, b, t)
            if given(table, SKIP):
                skip, skipped = row(table, SKIP), row(table, SKIPPED, b, t)
                for d in range(width):
                    inner = (h[d] - mean) * deviation * weight[begin + d] + skip[begin + d] * skipped[begin + d]
                    y[begin + d] = inner * gate[begin + d] * sigmoid(gate[begin + d])
            else:
                for d in range(width):
                    inner = (h[d] - mean) * deviation * weight[begin + d]
                    y[begin + d] = inner * gate[begin + d] * sigmoid(gate[begin + d])


@kernel
def _backward(table):
    first, last = share(table)
    tokens, time, heads, width = (count(table, TOKENS), count(table, TIME), count(table, HEADS), count(table, HEAD_DIM))
    for piece in range(first, last):
        for token in range(tokens * piece // PIECES, tokens * (piece + 1) // PIECES):
            b, t = token // time, token % time
            for head in range(heads):
                h, grad_h, begin = row(table, H, b, t, head), row(table, GRAD_H, b, t, head), head * width
                mean, deviation = row(table, MEAN, b, t, head)[0], row(table, DEVIATION, b, t, head)[0]
                weight, grad_weight = row(table, WEIGHT), row(table, GRAD_WEIGHT, piece)
                gate, grad_gate = row(table, GATE, b, t), row(table, GRAD_GATE, b, t)
                grad_y = row(table, GRAD_Y, b, t)
                total, along = ZERO, ZERO
                if given(table, SKIP):
                    skip, skipped = row(table, SKIP), row(table, SKIPPED, b, t)
                    grad_skip, grad_skipped = row(table, GRAD_SKIP, piece), row(table, GRAD_SKIPPED, b, t)
                    for d in range(width):
                        c = begin + d
                        open_ = sigmoid(gate[c])
                        gated = gate[c] * open_
                        normed = (h[d] - mean) * deviation
                        grad_inner = grad_y[c] * gated
                        inner = normed * weight[c] + skip[c] * skipped[c]
                        grad_gate[c] = (open_ + gated * (ONE - open_)) * inner * grad_y[c]
                        grad_weight[c] += grad_inner * normed
                        grad_skip[c] += grad_inner * skipped[c]
                        grad_skipped[c] = grad_inner * skip[c]
                        through = grad_inner * weight[c]
                        grad_h[d] = through
                        total += through
                        along += through * normed
                else:
                    for d in range(width):
                        c = begin + d
                        open_ = sigmoid(gate[c])
                        gated = gate[c] * open_
                        normed = (h[d] - mean) * deviation
                        grad_inner = grad_y[c] * gated
                        grad_gate[c] = (open_ + gated * (ONE - open_)) * normed * weight[c] * grad_y[c]
                        grad_weight[c] += grad_inner * normed
                        through = grad_inner * weight[c]
                        grad_h[d] = through
                        total += through
                        along += through * normed
                total /= f32(width)
                along /= f32(width)
                for d in range(width):
                    grad_h[d] = (grad_h[d] - total - (h[d] - mean) * deviation * along) * deviation


def forward(
    h: Tensor, weight: Tensor, gate: Tensor, skipped: Tensor | None, skip: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The result; mean and reciprocal deviation of each head, (batch, time, heads, 1)."""
    batch, time, heads, head_dim = h.shape
    y = gate.new_empty(gate.shape)
    mean, deviation = (h.new_empty(batch, time, heads, 1) for _ in range(2))
    seen, scale = (None if t is None else rows(t) for t in (skipped, skip))
    run(
        _forward, PIECES, batch * time, time, heads, head_dim,
        rows(h), rows(weight), rows(gate), seen, scale, mean, deviation, float(eps), y,
    )  # fmt: skip
    return y, mean, deviation


def backward(
    grad_y: Tensor,
    h: Tensor,
    weight: Tensor,
    gate: Tensor,
    skipped: Tensor | None,
    skip: Tensor | None,
    mean: Tensor,
    deviation: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of h, weight, gate, skipped and skip; the last two are empty without a skip."""
    batch, time, heads, head_dim = h.shape
    grad_h, grad_gate = h.new_empty(h.shape), gate.new_empty(gate.shape)
    grad_skipped = gate.new_empty(0) if skipped is None else skipped.new_empty(skipped.shape)
    grad_weight, grad_skip = (weight.new_zeros(PIECES, weight.shape[0]) for _ in range(2))
    seen, scale = (None if t is None else rows(t) for t in (skipped, skip))
    run(
        _backward, PIECES, batch * time, time, heads, head_dim,
        rows(h), rows(weight), rows(gate), seen, scale, mean, deviation,
        rows(grad_y), grad_h, grad_gate, grad_skipped, grad_weight, grad_skip,
    )  # fmt: skip
    return (
        grad_h,
        grad_weight.sum(0),
        grad_gate,
        grad_skipped,
        grad_skip.sum(0) if skip is not None else grad_skip[0, :0],
    )
