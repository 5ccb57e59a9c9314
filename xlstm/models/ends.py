"""What all configurations share: their two ends, and how they refuse what is wrong. Imports no torch, no pydantic."""

from dataclasses import dataclass


def round_up(value: float, multiple: int) -> int:
    """Smallest multiple of `multiple` that is at least `value` (1.3 * 1024 = 1331.2 -> 1344 for 64)."""
    return -int(-value // multiple) * multiple


def require(condition: bool, message: str) -> None:
    """Raise ValueError with the message unless the condition holds."""
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
