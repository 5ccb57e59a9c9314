"""The mLSTM's inputs for CPUs: a token's channels are read once and give queries, keys and values; backward likewise.

The gates' products are the library's, but for the gradient that they pass to queries, keys and values, which is added
where that of the cell is read.
"""

# mypy: disable-error-code="no-untyped-def"

import torch
from torch import Tensor

from kernels.block_diagonal import CPU_WIDTH
from kernels.block_diagonal.numba_blocks import add_weight_gradient, by_block, multiply, multiply_transposed, planes
from kernels.cpu import PIECES, by_row, kernel, run
from kernels.cpu_functions import add_rows, count, row, share

TOKENS, BLOCKS, CONVOLVED, INNER, WEIGHTS = range(5)
"""Arguments of both kernels: inputs (tokens, channels); `WEIGHTS` (3, out * in, blocks)."""
Q, K, V = range(5, 8)
"""Of the forward: (tokens, channels)."""
NUM_GATES, GATES, GRAD_GATES, GRAD_Q, GRAD_K, GRAD_V = range(5, 11)
GRAD_CONVOLVED, GRAD_INNER, GRAD_WEIGHTS, TOTAL = range(11, 15)
"""Of the backward: `GATES` (gates, 3 * channels), `GRAD_GATES` (tokens, gates), `GRAD_WEIGHTS` (pieces, 3, 16, blocks),
`TOTAL` (pieces, 3 * channels): the gradient of a token's queries, keys and values."""


@kernel
def _forward(table):
    first, last = share(table)
    tokens, blocks = count(table, TOKENS), count(table, BLOCKS)
    for token in range(tokens * first // PIECES, tokens * last // PIECES):
        convolved, inner = row(table, CONVOLVED, token), row(table, INNER, token)
        multiply(row(table, Q, token), convolved, row(table, WEIGHTS, 0), blocks, False)
        multiply(row(table, K, token), convolved, row(table, WEIGHTS, 1), blocks, False)
        multiply(row(table, V, token), inner, row(table, WEIGHTS, 2), blocks, False)


@kernel
def _backward(table):
    first, last = share(table)
    tokens, blocks, num_gates = count(table, TOKENS), count(table, BLOCKS), count(table, NUM_GATES)
    channels = CPU_WIDTH * blocks
    for piece in range(first, last):
        q, k, v = row(table, TOTAL, piece, 0), row(table, TOTAL, piece, 1), row(table, TOTAL, piece, 2)
        for token in range(tokens * piece // PIECES, tokens * (piece + 1) // PIECES):
            grad_q, grad_k, grad_v = row(table, GRAD_Q, token), row(table, GRAD_K, token), row(table, GRAD_V, token)
            for d in range(channels):
                q[d], k[d], v[d] = grad_q[d], grad_k[d], grad_v[d]
            add_rows(q, 3 * channels, row(table, GRAD_GATES, token), 0, num_gates, row(table, GATES), 3 * channels)
            convolved, inner = row(table, CONVOLVED, token), row(table, INNER, token)
            to_convolved = row(table, GRAD_CONVOLVED, token)
            multiply_transposed(to_convolved, q, row(table, WEIGHTS, 0), blocks, False)
            multiply_transposed(to_convolved, k, row(table, WEIGHTS, 1), blocks, True)
            multiply_transposed(row(table, GRAD_INNER, token), v, row(table, WEIGHTS, 2), blocks, False)
            add_weight_gradient(row(table, GRAD_WEIGHTS, piece, 0), q, convolved, blocks)
            add_weight_gradient(row(table, GRAD_WEIGHTS, piece, 1), k, convolved, blocks)
            add_weight_gradient(row(table, GRAD_WEIGHTS, piece, 2), v, inner, blocks)


def forward(
    convolved: Tensor, inner: Tensor, query: Tensor, key: Tensor, value: Tensor, gates: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, values (batch, time, channels) and pre-activations (batch, time, gates)."""
    q, k, v = (inner.new_empty(inner.shape) for _ in range(3))
    flat = [by_row(t) for t in (convolved, inner)]
    weights = torch.stack([planes(t) for t in (query, key, value)])
    outputs = [by_row(t) for t in (q, k, v)]
    run(_forward, PIECES, flat[0].shape[0], query.shape[0], *flat, weights, *outputs)
    total = torch.addmm(bias, outputs[0], gates[:, : q.shape[-1]].t())
    for part, columns in zip(outputs[1:], gates.split(q.shape[-1], dim=1)[1:], strict=True):
        total.addmm_(part, columns.t())
    return q, k, v, total.view(*inner.shape[:-1], bias.shape[0])


def backward(
    grads: list[Tensor], convolved: Tensor, inner: Tensor, weights: list[Tensor], gates: Tensor, outputs: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the inputs, of the three maps, of the gates' weights and of their bias."""
    grad_convolved, grad_inner = convolved.new_empty(convolved.shape), inner.new_empty(inner.shape)
    *of_outputs, of_gates = (by_row(t) for t in grads)
    blocks = weights[0].shape[0]
    parts = gates.new_zeros(PIECES, 3, CPU_WIDTH * CPU_WIDTH, blocks)
    run(
        _backward, PIECES, of_gates.shape[0], blocks, by_row(convolved), by_row(inner),
        torch.stack([planes(t) for t in weights]), gates.shape[0], gates.contiguous(), of_gates, *of_outputs,
        by_row(grad_convolved), by_row(grad_inner), parts, gates.new_empty(PIECES, 3, CPU_WIDTH * blocks),
    )  # fmt: skip
    query, key, value = (by_block(part) for part in parts.sum(0))
    grad_gates = torch.cat([of_gates.t() @ by_row(t) for t in outputs], dim=1)
    return grad_convolved, grad_inner, query, key, value, grad_gates, of_gates.sum(0)
