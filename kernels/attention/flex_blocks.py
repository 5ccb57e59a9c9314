"""Attention within documents on a GPU: FlexAttention (Dong et al. 2024, arXiv 2412.05496) over blocks of 128 tokens.

Blocks of keys that no query of a block sees are neither read nor multiplied, and those that all of them see are not
masked: a step costs what its documents do, where a mask of every pair costs the square of the length. Which they are
follows from where documents begin, on the device: nothing of the size of the pairs is made, and nothing is waited for.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

BLOCK = 128
"""Queries and keys of a block, as FlexAttention's kernels have them."""


def block_mask(queries: int, keys: int, begins: Tensor) -> BlockMask:
    """Of the last `queries` of so many keys, what each sees: keys up to its own, from `begins` (batch, queries) on."""
    before = keys - queries
    at = torch.arange(0, queries, BLOCK, device=begins.device)  # the first query of each block
    last = (at + BLOCK - 1).clamp(max=queries - 1)
    key = torch.arange(-(-keys // BLOCK), device=begins.device)
    earliest, latest = begins[:, at, None], begins[:, last, None]  # (batch, blocks, 1): documents only move on
    seen = (key >= earliest // BLOCK) & (key <= ((before + last) // BLOCK)[:, None])
    whole = (key * BLOCK >= latest) & ((key + 1) * BLOCK <= (before + at + 1)[:, None])

    def listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
        """How many blocks of keys, (batch, 1, blocks), and their numbers, these first: (…, blocks of keys)."""
        order = blocks.to(torch.int32).argsort(dim=-1, descending=True, stable=True)
        return blocks.sum(-1, dtype=torch.int32)[:, None], order.to(torch.int32)[:, None]

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query + before) & (key >= begins[batch, query])

    of_part, of_whole = listed(seen & ~whole), listed(seen & whole)
    return BlockMask.from_kv_blocks(*of_part, *of_whole, BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(queries, keys))


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(flex_attention)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask) -> Tensor:
    """As `kernels.attention.attention`. On a GPU it is compiled where it is first called, in some ten seconds."""
    run: Callable[..., Tensor] = _compiled() if query.is_cuda else flex_attention  # type: ignore[assignment]
    return run(query, key, value, block_mask=mask)
