"""The tokens of a document before these: how many they are, and as convolutions see them, zeros beyond."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Positioned(NamedTuple):
    """What a model remembers that counts the positions of its tokens."""

    blocks: tuple[Any, ...]
    next_position: Tensor  # (batch,), int64: position of the next token in its document


def joined(past: Tensor | None, x: Tensor, resets: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """`past` (batch, before, channels) and `x` (batch, time, channels) in a row, with resets for both."""
    if past is None:
        return x, resets
    return torch.cat((past, x), dim=1), None if resets is None else F.pad(resets, (past.shape[1], 0))


def latest(x: Tensor, resets: Tensor | None, count: int) -> Tensor:
    """The last tokens of `x` (batch, time, channels), `count` of them or all; zeros before the last document."""
    begin = max(0, x.shape[1] - count)
    x = x[:, begin:]
    if resets is None:
        return x
    document = resets.cumsum(1)
    return x.masked_fill((document[:, begin:] != document[:, -1:])[..., None], 0.0)


def positions_of(x: Tensor, begin: Tensor | None, resets: Tensor | None) -> Tensor:
    """The position of each token of `x` (batch, time, …) in its document, (batch, time), int64.

    `begin` (batch,) is that of the first token where its document goes on, 0 where absent.
    """
    positions = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
    if begin is not None:
        positions = positions + begin[:, None]
    return positions if resets is None else positions - torch.where(resets, positions, 0).cummax(dim=1).values


def check_room(positions: Tensor, tokens: int, limit: int, whose: str) -> None:
    """ValueError for a document longer than `limit`, of the `tokens` so far, whose last have these `positions`.

    Only where all tokens exceed the limit are the positions of their documents looked at (a device's wait).
    """
    if tokens > limit and int(positions.max()) >= limit:
        raise ValueError(f"a document of {int(positions.max()) + 1} tokens exceeds the {limit} positions of {whose}")
