"""The mLSTM's inputs as Triton kernels: a token's channels are read once and give q, k, v and what they give the gates.

Tiles are mapped as in `block_diagonal`. Going back, the gradient that the gates pass to q, k and v is added where
that of the cell is read; maps' gradients are summed over stretches of tokens, whose partial sums are added in a fixed
order.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.block_diagonal.triton_blocks import load_blocks, mapped, outer_products, store_blocks
from kernels.strides import by_row

RUN_TIME = ["rows"]
"""Arguments whose divisibility must not compile a kernel anew."""
FORWARD_TILE = {"BT": 16, "BC": 128}
"""Tokens and channels at once; a program takes its tokens through all channels, for the gates."""
BACKWARD_TILE = {"BT": 16, "BC": 64}
ROWS_PER_SUM = 256
"""Tokens of one program in the backward."""
LARGEST_BLOCK = 16


def shape_obstacle(width: int) -> str | None:
    """Why the kernels refuse blocks of this width, or None."""
    if width > LARGEST_BLOCK or width & (width - 1):
        return f"blocks of {width} channels are no power of two up to {LARGEST_BLOCK}"
    return None


@triton.jit
def _one_forward(
    x, weight, gates, out, at, c, start, inside, channels, num_gates, W, BT, BC: tl.constexpr, G, PRECISION
):
    """One of q, k, v of a tile, stored; and its part of the gates, (BT, G)."""
    y = mapped(x, load_blocks(weight, start, channels, W, BC, False), W, BT, BC).to(out.dtype.element_ty)
    tl.store(out + at, y, mask=inside)
    g = tl.arange(0, G)
    seen = tl.load(
        gates + g[None, :] * 3 * channels + c[:, None],
        mask=(g < num_gates)[None, :] & (c < channels)[:, None],
        other=0.0,
    )
    return tl.dot(y.to(tl.float32), seen.to(y.dtype).to(tl.float32), input_precision=PRECISION)


@triton.jit(do_not_specialize=RUN_TIME)
def forward_kernel(
    convolved, inner, query, key, value, gates, bias, q, k, v, total, convolved_r, inner_r, rows, channels, num_gates,
    W: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, G: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """q, k, v (rows, channels) and total (rows, num_gates) of BT tokens."""
    t = (tl.program_id(0) * BT + tl.arange(0, BT)).to(tl.int64)
    g = tl.arange(0, G)
    sums = tl.zeros((BT, G), tl.float32)
    sums += tl.load(bias + g, mask=g < num_gates, other=0.0).to(tl.float32)[None, :]
    for start in range(0, channels, BC):
        c = start + tl.arange(0, BC)
        inside = (t < rows)[:, None] & (c < channels)[None, :]
        at = t[:, None] * channels + c[None, :]
        x = tl.load(convolved + t[:, None] * convolved_r + c[None, :], mask=inside, other=0.0).to(tl.float32)
        sums += _one_forward(x, query, gates, q, at, c, start, inside, channels, num_gates, W, BT, BC, G, P)
        sums += _one_forward(x, key, gates + channels, k, at, c, start, inside, channels, num_gates, W, BT, BC, G, P)
        x = tl.load(inner + t[:, None] * inner_r + c[None, :], mask=inside, other=0.0).to(tl.float32)
        sums += _one_forward(
            x, value, gates + 2 * channels, v, at, c, start, inside, channels, num_gates, W, BT, BC, G, P
        )
    own = (t < rows)[:, None] & (g < num_gates)[None, :]
    tl.store(total + t[:, None] * num_gates + g[None, :], sums, mask=own)


@triton.jit
def _gates_of(gates, c, channels, num_gates, G: tl.constexpr):
    """The columns of `gates` of these channels, (G, BC)."""
    g = tl.arange(0, G)[:, None]
    inside = (g < num_gates) & (c < channels)[None, :]
    return tl.load(gates + g * 3 * channels + c[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=RUN_TIME)
def backward_kernel(
    grad_q, grad_k, grad_v, grad_total, convolved, inner, query, key, value, gates, grad_convolved, grad_inner, parts,
    q_r, k_r, v_r, convolved_r, inner_r, rows, channels, num_gates,
    W: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, G: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Gradients of both inputs (rows, channels), and parts (stretches, 3, channels, W) of those of the three maps."""
    start = tl.program_id(1) * BC
    c = start + tl.arange(0, BC)
    g = tl.arange(0, G)
    of_q = _gates_of(gates, c, channels, num_gates, G)
    of_k = _gates_of(gates + channels, c, channels, num_gates, G)
    of_v = _gates_of(gates + 2 * channels, c, channels, num_gates, G)
    query_t = load_blocks(query, start, channels, W, BC, True)
    key_t = load_blocks(key, start, channels, W, BC, True)
    value_t = load_blocks(value, start, channels, W, BC, True)
    sum_q = tl.zeros((BC // W, W, W), tl.float32)
    sum_k = tl.zeros((BC // W, W, W), tl.float32)
    sum_v = tl.zeros((BC // W, W, W), tl.float32)
    for first in range(0, tl.minimum(ROWS, rows - tl.program_id(0) * ROWS), BT):
        t = (tl.program_id(0) * ROWS + first + tl.arange(0, BT)).to(tl.int64)[:, None]
        inside = (t < rows) & (c < channels)[None, :]
        d = tl.load(grad_total + t * num_gates + g[None, :], mask=(t < rows) & (g < num_gates)[None, :], other=0.0)
        d = d.to(gates.dtype.element_ty).to(tl.float32)
        gq = tl.load(grad_q + t * q_r + c[None, :], mask=inside, other=0.0).to(tl.float32)
        gk = tl.load(grad_k + t * k_r + c[None, :], mask=inside, other=0.0).to(tl.float32)
        gv = tl.load(grad_v + t * v_r + c[None, :], mask=inside, other=0.0).to(tl.float32)
        gq += tl.dot(d, of_q, input_precision=P)
        gk += tl.dot(d, of_k, input_precision=P)
        gv += tl.dot(d, of_v, input_precision=P)
        at = t * channels + c[None, :]
        into = mapped(gq, query_t, W, BT, BC) + mapped(gk, key_t, W, BT, BC)
        tl.store(grad_convolved + at, into.to(grad_convolved.dtype.element_ty), mask=inside)
        tl.store(grad_inner + at, mapped(gv, value_t, W, BT, BC).to(grad_inner.dtype.element_ty), mask=inside)
        x = tl.load(convolved + t * convolved_r + c[None, :], mask=inside, other=0.0).to(tl.float32)
        sum_q += outer_products(gq, x, W, BT, BC)
        sum_k += outer_products(gk, x, W, BT, BC)
        x = tl.load(inner + t * inner_r + c[None, :], mask=inside, other=0.0).to(tl.float32)
        sum_v += outer_products(gv, x, W, BT, BC)
    at_part = parts + tl.program_id(0).to(tl.int64) * 3 * channels * W
    store_blocks(at_part, sum_q, start, channels, W, BC)
    store_blocks(at_part + channels * W, sum_k, start, channels, W, BC)
    store_blocks(at_part + 2 * channels * W, sum_v, start, channels, W, BC)


def _sizes(width: int, gates: Tensor) -> dict[str, Any]:
    """Of the blocks, of the gates as a matrix product takes them, and of its digits: of halves, tf32 has them all."""
    precision = "tf32" if gates.dtype.itemsize == 2 else "ieee"
    return {"W": width, "G": max(16, triton.next_power_of_2(gates.shape[0])), "P": precision}


def forward(
    convolved: Tensor, inner: Tensor, query: Tensor, key: Tensor, value: Tensor, gates: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `mlstm_inputs`."""
    seen, plain = by_row(convolved), by_row(inner)
    q, k, v = (inner.new_empty(inner.shape) for _ in range(3))
    total = inner.new_empty(*inner.shape[:-1], bias.shape[0], dtype=torch.float32)
    weights = (weight.contiguous() for weight in (query, key, value, gates, bias))
    forward_kernel[(triton.cdiv(seen.shape[0], FORWARD_TILE["BT"]),)](
        seen, plain, *weights, q, k, v, total, seen.stride(0), plain.stride(0), *seen.shape, bias.shape[0],
        **_sizes(query.shape[-1], gates), **FORWARD_TILE,
    )  # fmt: skip
    return q, k, v, total


def backward(
    grads: list[Tensor], convolved: Tensor, inner: Tensor, weights: list[Tensor], gates: Tensor, outputs: list[Tensor]
) -> tuple[Tensor, ...]:
    """Gradients of all that `forward` takes, in its order; those of `gates` are the library's products."""
    *grads_qkv, grad_total = (by_row(grad) for grad in grads)
    grad_total = grad_total.contiguous()
    seen, plain = by_row(convolved), by_row(inner)
    rows, channels = seen.shape
    num_gates, width = gates.shape[0], weights[0].shape[-1]
    stretches = triton.cdiv(rows, ROWS_PER_SUM)
    grad_convolved, grad_inner = convolved.new_empty(convolved.shape), inner.new_empty(inner.shape)
    parts = inner.new_empty(stretches, 3, *weights[0].shape, dtype=torch.float32)
    backward_kernel[(stretches, triton.cdiv(channels, BACKWARD_TILE["BC"]))](
        *grads_qkv, grad_total, seen, plain, *(weight.contiguous() for weight in weights), gates.contiguous(),
        grad_convolved, grad_inner, parts,
        *(grad.stride(0) for grad in grads_qkv), seen.stride(0), plain.stride(0), rows, channels, num_gates,
        **_sizes(width, gates), ROWS=ROWS_PER_SUM, **BACKWARD_TILE,
    )  # fmt: skip
    grad_gates = gates.new_empty(gates.shape)
    rounded = grad_total.to(gates.dtype).t()
    for part, y in enumerate(outputs):
        torch.mm(rounded, by_row(y).to(gates.dtype), out=grad_gates[:, part * channels : (part + 1) * channels])
    maps = (part.sum(0).to(weights[0].dtype) for part in parts.unbind(1))  # results of an operator share no memory
    return grad_convolved, grad_inner, *maps, grad_gates, grad_total.sum(0).to(gates.dtype)
