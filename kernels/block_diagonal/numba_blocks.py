"""Block-diagonal maps of blocks of four for CPUs: a row is read once, its blocks side by side in vector registers."""

# mypy: disable-error-code="no-untyped-def"

from torch import Tensor

from kernels.cpu import PIECES, by_row, kernel, run
from kernels.cpu_functions import count, row, share

WIDTH = 4

TOKENS, BLOCKS, X, WEIGHT = range(4)
"""Arguments of all kernels; `X` (tokens, channels), `WEIGHT` (out * in, blocks)."""
Y = 4
"""Of the product."""
GRAD_Y, GRAD_X, GRAD_WEIGHT = range(4, 7)
"""Of the backward; `GRAD_WEIGHT` (pieces, out * in, blocks)."""


@kernel
def _forward(table):
    first, last = share(table)
    tokens, blocks = count(table, TOKENS), count(table, BLOCKS)
    w00, w01, w02, w03 = row(table, WEIGHT, 0), row(table, WEIGHT, 1), row(table, WEIGHT, 2), row(table, WEIGHT, 3)
    w10, w11, w12, w13 = row(table, WEIGHT, 4), row(table, WEIGHT, 5), row(table, WEIGHT, 6), row(table, WEIGHT, 7)
    w20, w21, w22, w23 = row(table, WEIGHT, 8), row(table, WEIGHT, 9), row(table, WEIGHT, 10), row(table, WEIGHT, 11)
    w30, w31, w32, w33 = row(table, WEIGHT, 12), row(table, WEIGHT, 13), row(table, WEIGHT, 14), row(table, WEIGHT, 15)
    for token in range(tokens * first // PIECES, tokens * last // PIECES):
        x, y = row(table, X, token), row(table, Y, token)
        for b in range(blocks):
            x0, x1, x2, x3 = x[4 * b], x[4 * b + 1], x[4 * b + 2], x[4 * b + 3]
            y[4 * b] = w00[b] * x0 + w01[b] * x1 + w02[b] * x2 + w03[b] * x3
            y[4 * b + 1] = w10[b] * x0 + w11[b] * x1 + w12[b] * x2 + w13[b] * x3
            y[4 * b + 2] = w20[b] * x0 + w21[b] * x1 + w22[b] * x2 + w23[b] * x3
            y[4 * b + 3] = w30[b] * x0 + w31[b] * x1 + w32[b] * x2 + w33[b] * x3


@kernel
def _backward(table):
    first, last = share(table)
    tokens, blocks = count(table, TOKENS), count(table, BLOCKS)
    w00, w01, w02, w03 = row(table, WEIGHT, 0), row(table, WEIGHT, 1), row(table, WEIGHT, 2), row(table, WEIGHT, 3)
    w10, w11, w12, w13 = row(table, WEIGHT, 4), row(table, WEIGHT, 5), row(table, WEIGHT, 6), row(table, WEIGHT, 7)
    w20, w21, w22, w23 = row(table, WEIGHT, 8), row(table, WEIGHT, 9), row(table, WEIGHT, 10), row(table, WEIGHT, 11)
    w30, w31, w32, w33 = row(table, WEIGHT, 12), row(table, WEIGHT, 13), row(table, WEIGHT, 14), row(table, WEIGHT, 15)
    for piece in range(first, last):
        for token in range(tokens * piece // PIECES, tokens * (piece + 1) // PIECES):
            grad_y, x, grad_x = row(table, GRAD_Y, token), row(table, X, token), row(table, GRAD_X, token)
            for b in range(blocks):
                g0, g1, g2, g3 = grad_y[4 * b], grad_y[4 * b + 1], grad_y[4 * b + 2], grad_y[4 * b + 3]
                grad_x[4 * b] = w00[b] * g0 + w10[b] * g1 + w20[b] * g2 + w30[b] * g3
                grad_x[4 * b + 1] = w01[b] * g0 + w11[b] * g1 + w21[b] * g2 + w31[b] * g3
                grad_x[4 * b + 2] = w02[b] * g0 + w12[b] * g1 + w22[b] * g2 + w32[b] * g3
                grad_x[4 * b + 3] = w03[b] * g0 + w13[b] * g1 + w23[b] * g2 + w33[b] * g3
            for out in range(WIDTH):
                to0, to1 = row(table, GRAD_WEIGHT, piece, 4 * out), row(table, GRAD_WEIGHT, piece, 4 * out + 1)
                to2, to3 = row(table, GRAD_WEIGHT, piece, 4 * out + 2), row(table, GRAD_WEIGHT, piece, 4 * out + 3)
                for b in range(blocks):
                    g = grad_y[4 * b + out]
                    to0[b] += g * x[4 * b]
                    to1[b] += g * x[4 * b + 1]
                    to2[b] += g * x[4 * b + 2]
                    to3[b] += g * x[4 * b + 3]


def _planes(weight: Tensor) -> Tensor:
    """(blocks, out, in) as (out * in, blocks)."""
    return weight.flatten(1).t().contiguous()


def forward(x: Tensor, weight: Tensor) -> Tensor:
    """As the reference."""
    y, per_token = x.new_empty(x.shape), by_row(x)
    run(_forward, PIECES, per_token.shape[0], weight.shape[0], per_token, _planes(weight), by_row(y))
    return y


def backward(grad_y: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the weight."""
    grad_x, per_token = x.new_empty(x.shape), by_row(x)
    by_plane = weight.new_zeros(PIECES, WIDTH * WIDTH, weight.shape[0])
    run(
        _backward, PIECES, per_token.shape[0], weight.shape[0], per_token, _planes(weight),
        by_row(grad_y), by_row(grad_x), by_plane,
    )  # fmt: skip
    return grad_x, by_plane.sum(0).t().reshape(weight.shape)
