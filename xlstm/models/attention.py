"""What Transformers share: where their tokens stand (positions, documents), and the keys and values of the past.

A document starts where `resets` is true; its tokens see one another only, and its positions count from 0. So a document
gets the same logits packed after others as alone.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.attention import Mask, attention, mask_for
from xlstm.models.dropout import Dropout
from xlstm.models.history import positions_of
from xlstm.models.initialization import INITIAL_STD, initialize_normal
from xlstm.models.language_model import LanguageModel


@dataclass
class _Room:
    """Buffers for more tokens than there are; whose tokens reach to `taken` may go on there, others copy."""

    keys: Tensor
    values: Tensor
    taken: int


class KeysAndValues:
    """What attention remembers of one block: `keys` and `values`, each (batch, heads, past, head_dim).

    One that was made never changes. A token is appended where the buffer of those before it goes on, which is copied
    only when it is full, to twice its size; or when another continuation of the same past stands there already. No
    tuple or dataclass: FSDP makes new ones of those.
    """

    def __init__(self, keys: Tensor, values: Tensor, room: _Room | None = None) -> None:
        self.keys, self.values, self._room = keys, values, room

    def __len__(self) -> int:
        return self.keys.shape[2]

    def and_then(self, keys: Tensor, values: Tensor) -> "KeysAndValues":
        """These and further ones (batch, heads, time, head_dim). Where gradients flow, all are copied."""
        if torch.is_grad_enabled():
            return KeysAndValues(torch.cat((self.keys, keys), dim=2), torch.cat((self.values, values), dim=2))
        before, total = len(self), len(self) + keys.shape[2]
        room = self._room
        if room is None or room.taken != before or room.keys.shape[2] < total:
            size = max(2 * before, total)
            room = _Room(_roomy(self.keys, size), _roomy(self.values, size), before)
        room.keys[:, :, before:total], room.values[:, :, before:total] = keys, values
        room.taken = total
        return KeysAndValues(room.keys[:, :, :total], room.values[:, :, :total], room)


def _roomy(x: Tensor, size: int) -> Tensor:
    """A copy of `x` (batch, heads, time, head_dim) with room for `size` tokens."""
    batch, heads, time, head_dim = x.shape
    buffer = x.new_empty(batch, heads, size, head_dim)
    buffer[:, :, :time] = x
    return buffer


@dataclass(frozen=True)
class Past:
    """What attention remembers: keys and values of every block, and how far the present document has come."""

    blocks: tuple[KeysAndValues, ...]
    next_position: Tensor  # (batch,), int64: position of the next token in its document
    is_one_document: bool  # whether no document began after the first token


@dataclass(frozen=True)
class Layout:
    """Where the tokens of one forward pass stand."""

    positions: Tensor  # (time,), or (batch, time) where documents differ
    begins: Tensor | None  # (batch, time), int32: the first key of each token's document; None: the first there is
    mask: Mask | None  # what each token sees, where attention asks for it
    num_keys: int  # tokens so far, these included
    next_position: Tensor  # (batch,)

    def past(self, blocks: list[KeysAndValues]) -> Past:
        """The cache after this pass, from each block's keys and values."""
        return Past(tuple(blocks), self.next_position, self.begins is None)


def lay_out(x: Tensor, past: Past | None, resets: Tensor | None) -> Layout:
    """Where embedded tokens `x` (batch, time, d) stand after `past`; `resets` (batch, time) opens documents."""
    batch, time, _ = x.shape
    steps = torch.arange(time, device=x.device)
    if past is None and resets is None:
        return Layout(steps, None, None, time, steps.new_full((batch,), time))
    before = 0 if past is None else len(past.blocks[0])
    positions = positions_of(x, past.next_position if past else None, resets)
    is_one_document = resets is None and (past is None or past.is_one_document)
    begins = None if is_one_document else (before + steps - positions).to(torch.int32)
    mask = mask_for(x, time, before + time, begins)
    return Layout(positions, begins, mask, before + time, positions[:, -1] + 1)


def attend(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, past: KeysAndValues | None
) -> tuple[Tensor, KeysAndValues]:
    """What tokens (batch, heads, time, head_dim) read, (batch, time, d), and the keys and values so far."""
    seen = KeysAndValues(key, value) if past is None else past.and_then(key, value)
    attended = attention(query, seen.keys, seen.values, begins=layout.begins, mask=layout.mask)
    return attended.transpose(1, 2).flatten(2), seen


class Transformer(LanguageModel):
    """Language model whose blocks attend to the keys and values of the past: its state is a `Past`."""

    def locate(self, x: Tensor, layout: Layout) -> tuple[Tensor, tuple[Any, ...]]:
        """`x` (batch, time, d) told of its positions, and what else every block is called with for their sake."""
        raise NotImplementedError

    def apply_blocks(
        self, x: Tensor, state: Past | None, resets: Tensor | None, keep_state: bool, dropout: Dropout | None
    ) -> tuple[Tensor, Past | None]:
        """`x` (batch, time, d) after the last block, and the keys and values so far, None unless they are kept."""
        layout = lay_out(x, state, resets)
        x, others = self.locate(x, layout)
        pasts = (state.blocks[index] if state else None for index in range(len(self.blocks)))
        x, cache = self.run_blocks(x, ((layout, past, keep_state, *others) for past in pasts), keep_state, dropout)
        return x, layout.past(cache) if keep_state else None

    def initialize_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """N(0, 0.02²); projections into the residual stream scaled by 1/sqrt(2 · blocks); biases zero, norms one."""
        into_residual = name.endswith(("out.weight", "down.weight"))
        depth = math.sqrt(2 * self.config.num_blocks) if into_residual else 1.0
        initialize_normal(name, parameter, generator, INITIAL_STD / depth)
