"""The causal convolution with SiLU for CPUs: a row is read once per tap while it lies in the cache, nothing is formed.

A piece of work is a block of channels of one sequence, so that the backward, in which a token adds to the gradients of
those before it, needs no agreement between threads.
"""

# mypy: disable-error-code="no-untyped-def"

import torch
from torch import Tensor

from kernels.cpu import kernel, rows, run
from kernels.cpu_functions import ONE, count, given, integers, row, share, sigmoid

CHANNELS_AT_ONCE = 128

TIME, CHANNELS, TAPS, X, WEIGHT, PAST, DOCUMENTS, PRE = range(8)
"""Arguments of both kernels. `WEIGHT` (taps + 1, channels): the bias last."""
Y = 8
"""Of the forward."""
GRAD_Y, GRAD_X, GRAD_WEIGHT, GRAD_PAST = range(8, 12)
"""Of the backward. `GRAD_WEIGHT` (batch, taps + 1, channels)."""


@kernel
def _forward(table):
    first, last = share(table)
    time, channels, taps = count(table, TIME), count(table, CHANNELS), count(table, TAPS)
    blocks = (channels + CHANNELS_AT_ONCE - 1) // CHANNELS_AT_ONCE
    for piece in range(first, last):
        sequence, begin = piece // blocks, piece % blocks * CHANNELS_AT_ONCE
        end = min(begin + CHANNELS_AT_ONCE, channels)
        bias = row(table, WEIGHT, taps)
        for t in range(time):
            pre, y = row(table, PRE, sequence, t), row(table, Y, sequence, t)
            for d in range(begin, end):
                pre[d] = bias[d]
            for lag in range(taps):
                if lag <= t:
                    seen = row(table, X, sequence, t - lag)
                    document = integers(table, DOCUMENTS, sequence)[t - lag] if given(table, DOCUMENTS) else 0
                else:
                    seen, document = row(table, PAST, sequence, taps - 1 + t - lag), 0
                if given(table, DOCUMENTS) and integers(table, DOCUMENTS, sequence)[t] != document:
                    continue
                weight = row(table, WEIGHT, taps - 1 - lag)
                for d in range(begin, end):
                    pre[d] += weight[d] * seen[d]
            for d in range(begin, end):
                y[d] = pre[d] * sigmoid(pre[d])


@kernel
def _backward(table):
    first, last = share(table)
    time, channels, taps = count(table, TIME), count(table, CHANNELS), count(table, TAPS)
    blocks = (channels + CHANNELS_AT_ONCE - 1) // CHANNELS_AT_ONCE
    for piece in range(first, last):
        sequence, begin = piece // blocks, piece % blocks * CHANNELS_AT_ONCE
        end = min(begin + CHANNELS_AT_ONCE, channels)
        grad_bias = row(table, GRAD_WEIGHT, sequence, taps)
        for t in range(time):
            pre, grad_y = row(table, PRE, sequence, t), row(table, GRAD_Y, sequence, t)
            grad = row(table, GRAD_X, sequence, t)
            for d in range(begin, end):
                open_ = sigmoid(pre[d])
                grad[d] = grad_y[d] * open_ * (ONE + pre[d] * (ONE - open_))  # of the sum before the SiLU
                grad_bias[d] += grad[d]
            for lag in range(taps - 1, -1, -1):  # the token's own row, which still holds that gradient, comes last
                if lag <= t:
                    seen, into = row(table, X, sequence, t - lag), row(table, GRAD_X, sequence, t - lag)
                    document = integers(table, DOCUMENTS, sequence)[t - lag] if given(table, DOCUMENTS) else 0
                else:
                    place = taps - 1 + t - lag
                    seen, into = row(table, PAST, sequence, place), row(table, GRAD_PAST, sequence, place)
                    document = 0
                if given(table, DOCUMENTS) and integers(table, DOCUMENTS, sequence)[t] != document:
                    continue
                weight, grad_weight = (
                    row(table, WEIGHT, taps - 1 - lag),
                    row(table, GRAD_WEIGHT, sequence, taps - 1 - lag),
                )
                if lag == 0:
                    for d in range(begin, end):
                        grad_weight[d] += grad[d] * seen[d]
                        grad[d] *= weight[d]
                else:
                    for d in range(begin, end):
                        grad_weight[d] += grad[d] * seen[d]
                        into[d] += weight[d] * grad[d]


def _pieces(x: Tensor) -> int:
    return x.shape[0] * -(-x.shape[2] // CHANNELS_AT_ONCE)


def _shared(
    x: Tensor, weight: Tensor, bias: Tensor, past: Tensor, documents: Tensor | None, pre: Tensor
) -> tuple[int | Tensor | None, ...]:
    by_tap = torch.cat((weight.t(), bias[None]))
    numbers = None if documents is None else rows(documents)
    return (*x.shape[1:], weight.shape[1], rows(x), by_tap, rows(past), numbers, pre)


def forward(x: Tensor, weight: Tensor, bias: Tensor, past: Tensor, documents: Tensor | None) -> tuple[Tensor, Tensor]:
    """y, and the sum before the SiLU, which the backward starts from."""
    y, pre = x.new_empty(x.shape), x.new_empty(x.shape)
    run(_forward, _pieces(x), *_shared(x, weight, bias, past, documents, pre), y)
    return y, pre


def backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, past: Tensor, documents: Tensor | None, pre: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias and past."""
    batch, _, channels = x.shape
    grad_x, grad_past = x.new_empty(x.shape), past.new_zeros(past.shape)
    by_tap = x.new_zeros(batch, weight.shape[1] + 1, channels)
    shared = _shared(x, weight, bias, past, documents, pre)
    run(_backward, _pieces(x), *shared, rows(grad_y), grad_x, by_tap, grad_past)
    *grad_weight, grad_bias = by_tap.sum(0)
    return grad_x, torch.stack(grad_weight, dim=1), grad_bias, grad_past
