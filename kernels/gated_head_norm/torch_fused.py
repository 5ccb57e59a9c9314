"""Head-wise norm, skip and gate in tiles that stay in the processor's cache, with one backward for all three.

Each of the dozen element-wise steps is a pass over memory; over a tile it is a pass over the cache, and no temporary of
the whole batch is made. Only mean and reciprocal deviation are kept for the backward.
"""

from collections.abc import Iterator
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.dispatch import state_dtype
from kernels.gated_head_norm.reference import Inputs

TILE_NUMBERS = 2**19
"""Numbers of a tile of one tensor: 2 MiB in float32."""

Tile: TypeAlias = tuple[slice, slice]


def _tiles(h: Tensor) -> Iterator[Tile]:
    """Sequences and times of each tile: whole sequences where they fit; on other devices than CPUs, everything."""
    batch, time, heads, head_dim = h.shape
    tokens = max(1, TILE_NUMBERS // (heads * head_dim)) if h.device.type == "cpu" else batch * time
    sequences, tokens = max(1, tokens // time), min(tokens, time)
    for first in range(0, batch, sequences):
        for start in range(0, time, tokens):
            yield slice(first, first + sequences), slice(start, start + tokens)


def forward(inputs: Inputs, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The result in the gate's dtype; mean and reciprocal deviation of each head, (batch, time, heads, 1)."""
    h, weight, gate, skipped, skip = inputs
    dtype = state_dtype(h)
    y = gate.new_empty(gate.shape)
    mean, deviation = (h.new_empty(*h.shape[:-1], 1, dtype=dtype) for _ in range(2))
    weight = weight.to(dtype)
    for tile in _tiles(h):
        normed, mean[tile], deviation[tile] = torch.native_layer_norm(h[tile].to(dtype), h.shape[-1:], None, None, eps)
        inner = normed.flatten(-2).mul_(weight)
        if skipped is not None and skip is not None:
            inner.addcmul_(skipped[tile].to(dtype), skip.to(dtype))
        torch.mul(inner, F.silu(gate[tile].to(dtype)), out=y[tile])
    return y, mean, deviation


def backward(
    grad_y: Tensor, inputs: Inputs, mean: Tensor, deviation: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of h, weight, gate, skipped and skip; the last two are empty without a skip."""
    h, weight, gate, skipped, skip = inputs
    dtype = mean.dtype
    wide_weight = weight.to(dtype)
    grad_h, grad_gate = h.new_empty(h.shape), gate.new_empty(gate.shape)
    grad_weight, grad_skip = (torch.zeros_like(wide_weight) for _ in range(2))
    grad_skipped = h.new_empty(0) if skipped is None else skipped.new_empty(skipped.shape)
    for tile in _tiles(h):
        grad, z = grad_y[tile].to(dtype), gate[tile].to(dtype)
        wide_h = h[tile].to(dtype).contiguous()  # (sequences, tokens, heads, head_dim)
        normed = wide_h.sub(mean[tile]).mul_(deviation[tile])
        flat = normed.flatten(-2)
        open_ = torch.sigmoid(z)
        gated = z * open_
        grad_inner = grad * gated
        grad_weight += (grad_inner * flat).sum((0, 1))
        inner = flat * wide_weight
        if skipped is not None and skip is not None:
            seen, wide_skip = skipped[tile].to(dtype), skip.to(dtype)
            inner.addcmul_(seen, wide_skip)
            grad_skip += (grad_inner * seen).sum((0, 1))
            torch.mul(grad_inner, wide_skip, out=grad_skipped[tile])
        slope = torch.addcmul(open_, gated, 1.0 - open_)  # of the SiLU
        torch.mul(slope.mul_(inner), grad, out=grad_gate[tile])
        through = grad_inner.mul_(wide_weight).view(normed.shape)
        grad_h[tile] = torch.ops.aten.native_layer_norm_backward(
            through, wide_h, h.shape[-1:], mean[tile], deviation[tile], None, None, [True, False, False]
        )[0]
    grad_skip = grad_skip.to(weight.dtype) if skip is not None else h.new_empty(0)
    return grad_h, grad_weight.to(weight.dtype), grad_gate, grad_skipped, grad_skip
