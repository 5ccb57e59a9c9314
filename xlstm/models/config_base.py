"""What configurations of all families have in common. Imports neither torch nor pydantic."""

from dataclasses import dataclass
from typing import ClassVar


def round_up(value: float, multiple: int) -> int:
    """Smallest multiple of `multiple` that is at least `value` (1.3 * 1024 = 1331.2 -> 1344 for 64)."""
    return -int(-value // multiple) * multiple


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


CLOSED = {"extra": "forbid"}
"""Pydantic's setting for a class that refuses unknown keys, as a plain value."""


@dataclass(frozen=True, kw_only=True)
class Ends:
    """What goes into a model of any family and what comes out of it: its task says so, and no size."""

    vocab_size: int
    num_inputs: int = 0
    """Real numbers per position, which a linear map reads in the place of tokens; 0 for tokens."""
    num_outputs: int = 0
    """Classes that the head tells apart, or 1 for a number; 0 for the vocabulary."""
    regression: bool = False
    """Whether the head says a number, whose squared error is the loss."""


@dataclass(frozen=True, kw_only=True)
class Blocks(Ends):
    """What every family has: blocks over a residual stream. A class of it that is a family's refuses unknown fields."""

    __pydantic_config__: ClassVar = CLOSED

    embedding_dim: int
    num_blocks: int


def swiglu_width(embedding_dim: int, ratio: int) -> int:
    """Width of the feed-forward layer of flash-linear-attention's models: 2/3 of `ratio` d, up to a multiple of 256."""
    return round_up(2 * ratio * embedding_dim // 3, 256)
