"""Block-diagonal maps as one batched matrix product, forward and backward: fast on any device.

Blocks of four channels are far below what a matrix product needs to be fast, and bringing the blocks to the front costs
copies. So neighbouring blocks are joined into diagonal blocks of up to 16 channels, mostly zeros: four times the
multiplications, of which a product of this width does more than four times as many per second, and the operands are
read and written where they lie.
"""

import torch
from torch import Tensor

JOINED_CHANNELS = 16
"""Channels of a joined block: at 8 the calls cost more than the zeros, from 32 on the zeros do."""


def blocks_joined(blocks: int, width: int) -> int:
    """How many neighbouring blocks make one: as many as divide their number and keep to JOINED_CHANNELS."""
    return max((g for g in range(1, blocks + 1) if blocks % g == 0 and g * width <= JOINED_CHANNELS), default=1)


def _joined(weight: Tensor) -> Tensor:
    """(blocks, out, in) as (joined blocks, in, out), what stands right of the rows of x."""
    blocks, width, _ = weight.shape
    group = blocks_joined(blocks, width)
    matrices = weight.new_zeros(blocks // group, group, width, group, width)
    matrices.diagonal(dim1=1, dim2=3).copy_(weight.view(-1, group, width, width).permute(0, 3, 2, 1))
    return matrices.view(blocks // group, group * width, group * width)


def _times(x: Tensor, matrices: Tensor) -> Tensor:
    """Rows of x (…, channels) times block-diagonal matrices (joined blocks, in, out)."""
    rows = x.reshape(-1, x.shape[-1])
    y = torch.empty_like(rows, memory_format=torch.contiguous_format)
    blocks = matrices.shape[0]
    torch.bmm(_by_block(rows, blocks), matrices, out=_by_block(y, blocks))
    return y.view(x.shape)


def _by_block(rows: Tensor, blocks: int) -> Tensor:
    return rows.unflatten(-1, (blocks, -1)).transpose(0, 1)


def forward(x: Tensor, weight: Tensor) -> Tensor:
    """As the reference."""
    return _times(x, _joined(weight))


def backward(grad_y: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the weight."""
    blocks, width, _ = weight.shape
    group = blocks_joined(blocks, width)
    grad_x = _times(grad_y, _joined(weight).mT)
    rows, grads = (_by_block(t.reshape(-1, t.shape[-1]), blocks // group) for t in (x, grad_y))
    products = torch.bmm(rows.mT, grads).view(-1, group, width, group, width)
    on_diagonal = products.diagonal(dim1=1, dim2=3)  # (joined blocks, in, out, group)
    return grad_x, on_diagonal.permute(0, 3, 2, 1).contiguous().view(weight.shape)
