"""Head-wise norm, skip and gate for CPUs: every tensor is read once and written once, each way."""

# mypy: disable-error-code="no-untyped-def"

import numpy as np
from torch import Tensor

from kernels.cpu import PIECES, kernel, rows, run
from kernels.cpu.functions import ONE, ZERO, f32, given, row, sigmoid
from kernels.cpu.table import Rows
from kernels.gated_head_norm.reference import Inputs


@kernel
def _forward(
    first, last, tokens: int, time: int, heads: int, width: int, hs: Rows, weights: Rows, gates: Rows,
    skipped_rows: Rows | None, skips: Rows | None, means: Rows, deviations: Rows, eps: float, ys: Rows,
):  # fmt: skip
    """`hs` (batch, time, heads, width); weights and skips (channels,); means and deviations (batch, time, heads, 1)."""
    for token in range(tokens * first // PIECES, tokens * last // PIECES):
        b, t = token // time, token % time
        for head in range(heads):
            h, begin = row(hs, b, t, head), head * width
            mean = ZERO
            for d in range(width):
                mean += h[d]
            mean /= f32(width)
            variance = ZERO
            for d in range(width):
                variance += (h[d] - mean) * (h[d] - mean)
            deviation = ONE / np.sqrt(variance / f32(width) + eps)
            row(means, b, t, head)[0] = mean
            row(deviations, b, t, head)[0] = deviation
            weight, gate, y = row(weights), row(gates, b, t), row(ys, b, t)
            if given(skips):
                skip, skipped = row(skips), row(skipped_rows, b, t)
                for d in range(width):
                    inner = (h[d] - mean) * deviation * weight[begin + d] + skip[begin + d] * skipped[begin + d]
                    y[begin + d] = inner * gate[begin + d] * sigmoid(gate[begin + d])
            else:
                for d in range(width):
                    inner = (h[d] - mean) * deviation * weight[begin + d]
                    y[begin + d] = inner * gate[begin + d] * sigmoid(gate[begin + d])


@kernel
def _backward(
    first, last, tokens: int, time: int, heads: int, width: int, hs: Rows, weights: Rows, gates: Rows,
    skipped_rows: Rows | None, skips: Rows | None, means: Rows, deviations: Rows, grad_ys: Rows, grad_hs: Rows,
    grad_gates: Rows, grad_skipped_rows: Rows, grad_weights: Rows, grad_skips: Rows,
):  # fmt: skip
    """As `_forward`; `grad_weights` and `grad_skips` (pieces, channels)."""
    for piece in range(first, last):
        for token in range(tokens * piece // PIECES, tokens * (piece + 1) // PIECES):
            b, t = token // time, token % time
            for head in range(heads):
                h, grad_h, begin = row(hs, b, t, head), row(grad_hs, b, t, head), head * width
                mean, deviation = row(means, b, t, head)[0], row(deviations, b, t, head)[0]
                weight, grad_weight = row(weights), row(grad_weights, piece)
                gate, grad_gate = row(gates, b, t), row(grad_gates, b, t)
                grad_y = row(grad_ys, b, t)
                total, along = ZERO, ZERO
                if given(skips):
                    skip, skipped = row(skips), row(skipped_rows, b, t)
                    grad_skip, grad_skipped = row(grad_skips, piece), row(grad_skipped_rows, b, t)
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


def forward(inputs: Inputs, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The result; mean and reciprocal deviation of each head, (batch, time, heads, 1)."""
    h, weight, gate, skipped, skip = inputs
    batch, time, heads, head_dim = h.shape
    y = gate.new_empty(gate.shape)
    mean, deviation = (h.new_empty(batch, time, heads, 1) for _ in range(2))
    seen, scale = (None if t is None else rows(t) for t in (skipped, skip))
    run(
        _forward, PIECES, tokens=batch * time, time=time, heads=heads, width=head_dim, hs=rows(h), weights=rows(weight),
        gates=rows(gate), skipped_rows=seen, skips=scale, means=mean, deviations=deviation, eps=float(eps), ys=y,
    )  # fmt: skip
    return y, mean, deviation


def backward(
    grad_y: Tensor, inputs: Inputs, mean: Tensor, deviation: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of h, weight, gate, skipped and skip; the last two are empty without a skip."""
    h, weight, gate, skipped, skip = inputs
    batch, time, heads, head_dim = h.shape
    grad_h, grad_gate = h.new_empty(h.shape), gate.new_empty(gate.shape)
    grad_skipped = h.new_empty(0) if skipped is None else skipped.new_empty(skipped.shape)
    grad_weight, grad_skip = (weight.new_zeros(PIECES, weight.shape[0]) for _ in range(2))
    seen, scale = (None if t is None else rows(t) for t in (skipped, skip))
    run(
        _backward, PIECES, tokens=batch * time, time=time, heads=heads, width=head_dim, hs=rows(h),
        weights=rows(weight), gates=rows(gate), skipped_rows=seen, skips=scale, means=mean, deviations=deviation,
        grad_ys=rows(grad_y), grad_hs=grad_h, grad_gates=grad_gate, grad_skipped_rows=grad_skipped,
        grad_weights=grad_weight, grad_skips=grad_skip,
    )  # fmt: skip
    return (
        grad_h,
        grad_weight.sum(0),
        grad_gate,
        grad_skipped,
        grad_skip.sum(0) if skip is not None else grad_skip[0, :0],
    )
