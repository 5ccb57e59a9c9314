"""The causal convolution with SiLU for CPUs: a row is read once per tap while it lies in the cache, nothing is formed.

A piece of work is a block of channels of one sequence, so that the backward, in which a token adds to the gradients of
those before it, needs no agreement between threads.
"""

# mypy: disable-error-code="no-untyped-def"

import torch
from torch import Tensor

from kernels.cpu import kernel, pieces_of, rows, run
from kernels.cpu.functions import ONE, copy_row, given, own_channels, row, sigmoid
from kernels.cpu.table import Argument, Integers, Rows

CHANNELS_AT_ONCE = 128


@kernel
def _forward(
    first, last, time: int, channels: int, taps: int, xs: Rows, weights: Rows, past: Rows, documents: Integers | None,
    pres: Rows, ys: Rows,
):  # fmt: skip
    """Tensors are (batch, time, channels), but `weights` (taps + 1, channels), the bias last."""
    for piece in range(first, last):
        sequence, begin, end = own_channels(piece, channels, CHANNELS_AT_ONCE)
        bias = row(weights, taps)
        for t in range(time):
            pre, y = row(pres, sequence, t), row(ys, sequence, t)
            copy_row(pre, bias, begin, end)
            for lag in range(taps):
                if lag <= t:
                    seen = row(xs, sequence, t - lag)
                    document = row(documents, sequence)[t - lag] if given(documents) else 0
                else:
                    seen, document = row(past, sequence, taps - 1 + t - lag), 0
                if given(documents) and row(documents, sequence)[t] != document:
                    continue
                weight = row(weights, taps - 1 - lag)
                for d in range(begin, end):
                    pre[d] += weight[d] * seen[d]
            for d in range(begin, end):
                y[d] = pre[d] * sigmoid(pre[d])


@kernel
def _backward(
    first, last, time: int, channels: int, taps: int, xs: Rows, weights: Rows, past: Rows, documents: Integers | None,
    pres: Rows, grad_ys: Rows, grad_xs: Rows, grad_weights: Rows, grad_past: Rows,
):  # fmt: skip
    """As `_forward`; `grad_weights` (batch, taps + 1, channels)."""
    for piece in range(first, last):
        sequence, begin, end = own_channels(piece, channels, CHANNELS_AT_ONCE)
        grad_bias = row(grad_weights, sequence, taps)
        for t in range(time):
            pre, grad_y = row(pres, sequence, t), row(grad_ys, sequence, t)
            grad = row(grad_xs, sequence, t)
            for d in range(begin, end):
                open_ = sigmoid(pre[d])
                grad[d] = grad_y[d] * open_ * (ONE + pre[d] * (ONE - open_))  # of the sum before the SiLU
                grad_bias[d] += grad[d]
            for lag in range(taps - 1, -1, -1):  # the token's own row, which still holds that gradient, comes last
                if lag <= t:
                    seen, into = row(xs, sequence, t - lag), row(grad_xs, sequence, t - lag)
                    document = row(documents, sequence)[t - lag] if given(documents) else 0
                else:
                    place = taps - 1 + t - lag
                    seen, into = row(past, sequence, place), row(grad_past, sequence, place)
                    document = 0
                if given(documents) and row(documents, sequence)[t] != document:
                    continue
                weight, grad_weight = (
                    row(weights, taps - 1 - lag),
                    row(grad_weights, sequence, taps - 1 - lag),
                )
                if lag == 0:
                    for d in range(begin, end):
                        grad_weight[d] += grad[d] * seen[d]
                        grad[d] *= weight[d]
                else:
                    for d in range(begin, end):
                        grad_weight[d] += grad[d] * seen[d]
                        into[d] += weight[d] * grad[d]


def _shared(
    x: Tensor, weight: Tensor, bias: Tensor, past: Tensor, documents: Tensor | None, pre: Tensor
) -> dict[str, Argument]:
    by_tap = torch.cat((weight.t(), bias[None]))
    numbers = None if documents is None else rows(documents)
    sizes = {"time": x.shape[1], "channels": x.shape[2], "taps": weight.shape[1]}
    return {**sizes, "xs": rows(x), "weights": by_tap, "past": rows(past), "documents": numbers, "pres": pre}


def forward(x: Tensor, weight: Tensor, bias: Tensor, past: Tensor, documents: Tensor | None) -> tuple[Tensor, Tensor]:
    """y, and the sum before the SiLU, which the backward starts from."""
    y, pre = x.new_empty(x.shape), x.new_empty(x.shape)
    run(_forward, pieces_of(x, CHANNELS_AT_ONCE), **_shared(x, weight, bias, past, documents, pre), ys=y)
    return y, pre


def backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, past: Tensor, documents: Tensor | None, pre: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias and past."""
    batch, _, channels = x.shape
    grad_x, grad_past = x.new_empty(x.shape), past.new_zeros(past.shape)
    by_tap = x.new_zeros(batch, weight.shape[1] + 1, channels)
    shared = _shared(x, weight, bias, past, documents, pre)
    run(
        _backward,
        pieces_of(x, CHANNELS_AT_ONCE),
        **shared,
        grad_ys=rows(grad_y),
        grad_xs=grad_x,
        grad_weights=by_tap,
        grad_past=grad_past,
    )
    *grad_weight, grad_bias = by_tap.sum(0)
    return grad_x, torch.stack(grad_weight, dim=1), grad_bias, grad_past
