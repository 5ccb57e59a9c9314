"""Block-diagonal maps of blocks of four for CPUs: a row is read once, its blocks side by side in vector registers."""

# mypy: disable-error-code="no-untyped-def"

import torch
from torch import Tensor

from kernels.block_diagonal import CPU_WIDTH
from kernels.cpu import PIECES, by_row, kernel, run
from kernels.cpu.functions import inlined, row
from kernels.cpu.table import Rows


@inlined
def multiply(y, x, w, blocks):
    """y[n, o] = sum_i w[o, i, n] x[n, i] for one token; the weights' planes lie one behind the other."""
    n = blocks
    for b in range(blocks):
        x0, x1, x2, x3 = x[4 * b], x[4 * b + 1], x[4 * b + 2], x[4 * b + 3]
        y0 = w[b] * x0 + w[n + b] * x1 + w[2 * n + b] * x2 + w[3 * n + b] * x3
        y1 = w[4 * n + b] * x0 + w[5 * n + b] * x1 + w[6 * n + b] * x2 + w[7 * n + b] * x3
        y2 = w[8 * n + b] * x0 + w[9 * n + b] * x1 + w[10 * n + b] * x2 + w[11 * n + b] * x3
        y3 = w[12 * n + b] * x0 + w[13 * n + b] * x1 + w[14 * n + b] * x2 + w[15 * n + b] * x3
        y[4 * b], y[4 * b + 1], y[4 * b + 2], y[4 * b + 3] = y0, y1, y2, y3


@inlined
def split(parts, x, blocks):
    """A token's channels, four of each block, as four planes."""
    n = blocks
    for b in range(blocks):
        x0, x1, x2, x3 = x[4 * b], x[4 * b + 1], x[4 * b + 2], x[4 * b + 3]
        parts[b], parts[n + b], parts[2 * n + b], parts[3 * n + b] = x0, x1, x2, x3


@inlined
def join(x, parts, blocks):
    """Four planes as a token's channels."""
    n = blocks
    for b in range(blocks):
        x[4 * b], x[4 * b + 1], x[4 * b + 2], x[4 * b + 3] = parts[b], parts[n + b], parts[2 * n + b], parts[3 * n + b]


@inlined
def multiply_planes_transposed(x, y, w, blocks):
    """x[i, n] += sum_o w[o, i, n] y[o, n] for one token, in planes."""
    n = blocks
    for i in range(CPU_WIDTH):
        for b in range(blocks):
            x[i * n + b] += (
                w[i * n + b] * y[b]
                + w[(4 + i) * n + b] * y[n + b]
                + w[(8 + i) * n + b] * y[2 * n + b]
                + w[(12 + i) * n + b] * y[3 * n + b]
            )


@inlined
def add_weight_gradient_of_planes(grad_w, grad_y, x, blocks):
    """grad_w[o, i, n] += grad_y[o, n] x[i, n] for one token, in planes."""
    n = blocks
    for out in range(CPU_WIDTH):
        for i in range(CPU_WIDTH):
            at = (4 * out + i) * n
            for b in range(blocks):
                grad_w[at + b] += grad_y[out * n + b] * x[i * n + b]


@inlined
def multiply_transposed(x, y, w, blocks):
    """x[n, i] = sum_o w[o, i, n] y[n, o] for one token."""
    n = blocks
    for b in range(blocks):
        y0, y1, y2, y3 = y[4 * b], y[4 * b + 1], y[4 * b + 2], y[4 * b + 3]
        x0 = w[b] * y0 + w[4 * n + b] * y1 + w[8 * n + b] * y2 + w[12 * n + b] * y3
        x1 = w[n + b] * y0 + w[5 * n + b] * y1 + w[9 * n + b] * y2 + w[13 * n + b] * y3
        x2 = w[2 * n + b] * y0 + w[6 * n + b] * y1 + w[10 * n + b] * y2 + w[14 * n + b] * y3
        x3 = w[3 * n + b] * y0 + w[7 * n + b] * y1 + w[11 * n + b] * y2 + w[15 * n + b] * y3
        x[4 * b], x[4 * b + 1], x[4 * b + 2], x[4 * b + 3] = x0, x1, x2, x3


@inlined
def add_weight_gradient(grad_w, grad_y, x, blocks):
    """grad_w[o, i, n] += grad_y[n, o] x[n, i] for one token."""
    for out in range(CPU_WIDTH):
        at = 4 * out * blocks
        for b in range(blocks):
            g = grad_y[4 * b + out]
            grad_w[at + b] += g * x[4 * b]
            grad_w[at + blocks + b] += g * x[4 * b + 1]
            grad_w[at + 2 * blocks + b] += g * x[4 * b + 2]
            grad_w[at + 3 * blocks + b] += g * x[4 * b + 3]


@kernel
def _forward(first, last, tokens: int, blocks: int, xs: Rows, weight: Rows, ys: Rows):
    """Tensors are (tokens, channels), but `weight` (out * in, blocks)."""
    for token in range(tokens * first // PIECES, tokens * last // PIECES):
        multiply(row(ys, token), row(xs, token), row(weight), blocks)


@kernel
def _backward(
    first, last, tokens: int, blocks: int, xs: Rows, weight: Rows, grad_ys: Rows, grad_xs: Rows, grad_weights: Rows,
):  # fmt: skip
    """As `_forward`; `grad_weights` (pieces, out * in, blocks)."""
    for piece in range(first, last):
        for token in range(tokens * piece // PIECES, tokens * (piece + 1) // PIECES):
            grad_y = row(grad_ys, token)
            multiply_transposed(row(grad_xs, token), grad_y, row(weight), blocks)
            add_weight_gradient(row(grad_weights, piece), grad_y, row(xs, token), blocks)


def planes(weight: Tensor) -> Tensor:
    """(blocks, out, in) as (out * in, blocks)."""
    return weight.flatten(1).t().contiguous()


def by_block(planes: Tensor) -> Tensor:
    """(out * in, blocks) as (blocks, out, in)."""
    return planes.t().clone(memory_format=torch.contiguous_format).unflatten(1, (CPU_WIDTH, CPU_WIDTH))


def forward(x: Tensor, weight: Tensor) -> Tensor:
    """As the reference."""
    y, tokens = x.new_empty(x.shape), by_row(x)
    sizes = {"tokens": tokens.shape[0], "blocks": weight.shape[0]}
    run(_forward, PIECES, **sizes, xs=tokens, weight=planes(weight), ys=by_row(y))
    return y


def backward(grad_y: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the weight."""
    grad_x, tokens = x.new_empty(x.shape), by_row(x)
    parts = weight.new_zeros(PIECES, CPU_WIDTH * CPU_WIDTH, weight.shape[0])
    run(
        _backward, PIECES, tokens=tokens.shape[0], blocks=weight.shape[0], xs=tokens, weight=planes(weight),
        grad_ys=by_row(grad_y), grad_xs=by_row(grad_x), grad_weights=parts,
    )  # fmt: skip
    return grad_x, by_block(parts.sum(0))
