"""Causal attention within documents, with a cache of the past: what the Transformers share.

A document starts where `resets` is true; its tokens see one another only, and its positions count from 0. So a document
gets the same logits packed after others as alone.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Past:
    """What attention remembers: keys and values of every block, and which document each position belongs to."""

    keys: tuple[Tensor, ...]  # of each block: (batch, heads, past, head_dim)
    values: tuple[Tensor, ...]  # of each block: (batch, heads, past, head_dim)
    documents: Tensor  # (batch, past), int64: a counter that rises with every document
    next_position: Tensor  # (batch,), int64: position of the next token in its document
    is_one_document: bool  # whether no document began after the first token


@dataclass(frozen=True)
class Layout:
    """Where the tokens of one forward pass stand."""

    positions: Tensor  # (time,), or (batch, time) where documents differ
    documents: Tensor  # (batch, past + time)
    mask: Tensor | None  # (batch or 1, 1, time, past + time), true where attended; None: causal, or one query sees all
    next_position: Tensor  # (batch,)
    is_one_document: bool

    def past(self, keys_and_values: list[tuple[Tensor, Tensor]]) -> Past:
        """The cache after this pass, from each block's keys and values."""
        keys, values = zip(*keys_and_values, strict=True)
        return Past(keys, values, self.documents, self.next_position, self.is_one_document)


def lay_out(tokens: Tensor, past: Past | None, resets: Tensor | None) -> Layout:
    """Positions, documents and mask of `tokens` (batch, time) after `past`; `resets` (batch, time) opens documents."""
    batch, time = tokens.shape
    device = tokens.device
    steps = torch.arange(time, device=device)
    is_one_document = resets is None and (past is None or past.is_one_document)
    if past is None:
        next_position, earlier = torch.zeros(batch, dtype=torch.int64, device=device), None
    else:
        next_position, earlier = past.next_position, past.documents
    length = 0 if earlier is None else earlier.shape[1]

    if resets is None:
        positions = next_position[:, None] + steps
        documents = torch.zeros(batch, time, dtype=torch.int64, device=device)
    else:
        positions = next_position[:, None] + steps
        starts = torch.where(resets, positions, 0).cummax(dim=1).values
        positions = positions - starts
        documents = resets.to(torch.int64).cumsum(dim=1)
    after = positions[:, -1] + 1
    if earlier is not None:
        documents = torch.cat((earlier, documents + earlier[:, -1:]), dim=1)

    mask = None
    if not (is_one_document and (length == 0 or time == 1)):
        mask = (torch.arange(length + time, device=device) <= steps[:, None] + length)[None, None]
        if not is_one_document:
            mask = mask & (documents[:, None, length:, None] == documents[:, None, None, :])
    if is_one_document and past is None:
        positions = steps
    return Layout(positions, documents, mask, after, is_one_document)


def attend(query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> Tensor:
    """Softmax attention. `query` (batch, heads, time, head_dim); `key`, `value` with past + time; result as `query`."""
    causal = layout.mask is None and query.shape[2] > 1
    return F.scaled_dot_product_attention(query, key, value, attn_mask=layout.mask, is_causal=causal)
