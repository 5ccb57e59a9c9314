"""Where the tokens of a Transformer stand: positions, documents, and the keys and values of the past.

A document starts where `resets` is true; its tokens see one another only, and its positions count from 0. So a document
gets the same logits packed after others as alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.attention import mask_for


@dataclass(frozen=True)
class Past:
    """What attention remembers: keys and values of every block, and how far the present document has come."""

    keys: tuple[Tensor, ...]  # of each block: (batch, heads, past, head_dim)
    values: tuple[Tensor, ...]  # of each block: (batch, heads, past, head_dim)
    next_position: Tensor  # (batch,), int64: position of the next token in its document
    is_one_document: bool  # whether no document began after the first token


@dataclass(frozen=True)
class Layout:
    """Where the tokens of one forward pass stand."""

    positions: Tensor  # (time,), or (batch, time) where documents differ
    begins: Tensor | None  # (batch, time), int32: the first key of each token's document; None: the first there is
    mask: Tensor | None  # (batch or 1, 1, time, keys), true where seen; None where attention asks for none
    num_keys: int  # tokens so far, these included
    next_position: Tensor  # (batch,)

    def past(self, keys_and_values: list[tuple[Tensor, Tensor]]) -> Past:
        """The cache after this pass, from each block's keys and values."""
        keys, values = zip(*keys_and_values, strict=True)
        return Past(keys, values, self.next_position, self.begins is None)


def lay_out(x: Tensor, past: Past | None, resets: Tensor | None) -> Layout:
    """Where embedded tokens `x` (batch, time, d) stand after `past`; `resets` (batch, time) opens documents."""
    batch, time, _ = x.shape
    steps = torch.arange(time, device=x.device)
    if past is None and resets is None:
        return Layout(steps, None, None, time, steps.new_full((batch,), time))
    before = 0 if past is None else past.keys[0].shape[2]
    next_position = steps.new_zeros(batch) if past is None else past.next_position
    positions = next_position[:, None] + steps
    if resets is not None:
        positions = positions - torch.where(resets, positions, 0).cummax(dim=1).values
    is_one_document = resets is None and (past is None or past.is_one_document)
    begins = None if is_one_document else (before + steps - positions).to(torch.int32)
    mask = mask_for(x, time, before + time, begins)
    return Layout(positions, begins, mask, before + time, positions[:, -1] + 1)
