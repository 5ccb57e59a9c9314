"""The mLSTM's inputs for CPUs: a token's channels are read once and give queries, keys and values; backward likewise.

The gates' products are the library's, but for the gradient that they pass to queries, keys and values, which is added
where that of the cell is read.
"""

# mypy: disable-error-code="no-untyped-def"

import torch
from torch import Tensor

from kernels.block_diagonal import CPU_WIDTH
from kernels.block_diagonal.numba_blocks import (
    add_weight_gradient_of_planes,
    by_block,
    join,
    multiply,
    multiply_planes_transposed,
    planes,
    split,
)
from kernels.cpu import PIECES, by_row, kernel, run
from kernels.cpu.functions import ZERO, add_rows, row
from kernels.cpu.table import Rows


@kernel
def _forward(
    first, last, tokens: int, blocks: int, convolved_rows: Rows, inner_rows: Rows, weights: Rows, qs: Rows, ks: Rows,
    vs: Rows,
):  # fmt: skip
    """Tensors are (tokens, channels), but `weights` (3, out * in, blocks)."""
    for token in range(tokens * first // PIECES, tokens * last // PIECES):
        convolved, inner = row(convolved_rows, token), row(inner_rows, token)
        multiply(row(qs, token), convolved, row(weights, 0), blocks)
        multiply(row(ks, token), convolved, row(weights, 1), blocks)
        multiply(row(vs, token), inner, row(weights, 2), blocks)


@kernel
def _backward(
    first, last, tokens: int, blocks: int, convolved_rows: Rows, inner_rows: Rows, weights: Rows, num_gates: int,
    gates: Rows, grad_gates: Rows, grad_qs: Rows, grad_ks: Rows, grad_vs: Rows, grad_convolved: Rows, grad_inner: Rows,
    grad_weights: Rows, total: Rows,
):  # fmt: skip
    """As `_forward`; `gates` (gates, 3 * channels), `grad_gates` (tokens, gates).

    `grad_weights` (pieces, 3, out * in, blocks); `total` (pieces, 10, channels): the gradient of a token's queries,
    keys and values; these, the inputs and their gradients in planes (`numba_blocks.split`).
    """
    channels = CPU_WIDTH * blocks
    for piece in range(first, last):
        q, k, v = row(total, piece, 0), row(total, piece, 1), row(total, piece, 2)
        for token in range(tokens * piece // PIECES, tokens * (piece + 1) // PIECES):
            grad_q, grad_k, grad_v = row(grad_qs, token), row(grad_ks, token), row(grad_vs, token)
            for d in range(channels):
                q[d], k[d], v[d] = grad_q[d], grad_k[d], grad_v[d]
            add_rows(q, 3 * channels, row(grad_gates, token), 0, num_gates, row(gates), 3 * channels)
            convolved, inner = row(total, piece, 6), row(total, piece, 7)
            to_convolved, to_inner = row(total, piece, 8), row(total, piece, 9)
            split(convolved, row(convolved_rows, token), blocks)
            split(inner, row(inner_rows, token), blocks)
            for d in range(channels):
                to_convolved[d], to_inner[d] = ZERO, ZERO
            for part in range(3):
                grad, x, to_x = row(total, piece, 3 + part), convolved, to_convolved
                if part == 2:
                    x, to_x = inner, to_inner
                split(grad, row(total, piece, part), blocks)
                multiply_planes_transposed(to_x, grad, row(weights, part), blocks)
                add_weight_gradient_of_planes(row(grad_weights, piece, part), grad, x, blocks)
            join(row(grad_convolved, token), to_convolved, blocks)
            join(row(grad_inner, token), to_inner, blocks)


def forward(
    convolved: Tensor, inner: Tensor, query: Tensor, key: Tensor, value: Tensor, gates: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, values (batch, time, channels) and pre-activations (batch, time, gates)."""
    q, k, v = (inner.new_empty(inner.shape) for _ in range(3))
    weights = torch.stack([planes(t) for t in (query, key, value)])
    outputs = [by_row(t) for t in (q, k, v)]
    run(
        _forward, PIECES, tokens=outputs[0].shape[0], blocks=query.shape[0], convolved_rows=by_row(convolved),
        inner_rows=by_row(inner), weights=weights, qs=outputs[0], ks=outputs[1], vs=outputs[2],
    )  # fmt: skip
    total = torch.addmm(bias, outputs[0], gates[:, : q.shape[-1]].t())
    for part, columns in zip(outputs[1:], gates.split(q.shape[-1], dim=1)[1:], strict=True):
        total.addmm_(part, columns.t())
    return q, k, v, total.view(*inner.shape[:-1], bias.shape[0])


def backward(
    grads: list[Tensor], convolved: Tensor, inner: Tensor, weights: list[Tensor], gates: Tensor, outputs: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the inputs, of the three maps, of the gates' weights and of their bias."""
    grad_convolved, grad_inner = convolved.new_empty(convolved.shape), inner.new_empty(inner.shape)
    grad_q, grad_k, grad_v, of_gates = (by_row(t) for t in grads)
    blocks = weights[0].shape[0]
    parts = gates.new_zeros(PIECES, 3, CPU_WIDTH * CPU_WIDTH, blocks)
    run(
        _backward, PIECES, tokens=of_gates.shape[0], blocks=blocks, convolved_rows=by_row(convolved),
        inner_rows=by_row(inner), weights=torch.stack([planes(t) for t in weights]), num_gates=gates.shape[0],
        gates=gates.contiguous(), grad_gates=of_gates, grad_qs=grad_q, grad_ks=grad_k, grad_vs=grad_v,
        grad_convolved=by_row(grad_convolved), grad_inner=by_row(grad_inner), grad_weights=parts,
        total=gates.new_empty(PIECES, 10, CPU_WIDTH * blocks),
    )  # fmt: skip
    query, key, value = (by_block(part) for part in parts.sum(0))
    grad_gates = torch.cat([of_gates.t() @ by_row(t) for t in outputs], dim=1)
    return grad_convolved, grad_inner, query, key, value, grad_gates, of_gates.sum(0)
