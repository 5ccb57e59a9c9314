"""The order of sequences from several sources: a pure function of the seed and the global index, as that of one is.

Sequences are drawn in blocks of BLOCK, of which every source has its share by weight, to a whole number; where in a
block its sequences stand is a permutation of the block's own. Within a source they come in the order of
`xlstm.data.order`, each once before any comes again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from xlstm.data.order import permuted

BLOCK = 1 << 12
"""Sequences in which shares are whole numbers: a weight is met to one in 4,096."""


@dataclass(frozen=True)
class MixedOrder:
    """The order of sequences numbered from `firsts[s]` on, `sizes[s]` of each source s, drawn by `weights[s]`.

    ValueError for a weight too small to have one sequence of a block.
    """

    firsts: tuple[int, ...]
    sizes: tuple[int, ...]
    weights: tuple[float, ...]
    seed: int

    @cached_property
    def quotas(self) -> NDArray[np.int64]:
        """Sequences of each source in a block: the largest remainders are rounded up."""
        exact = BLOCK * np.array(self.weights) / sum(self.weights)
        counts = np.floor(exact).astype(np.int64)
        counts[np.argsort(counts - exact, kind="stable")[: BLOCK - int(counts.sum())]] += 1
        if not counts.all():
            raise ValueError(f"a weight below one in {BLOCK:,} of all is none: leave the source out")
        return counts

    @property
    def different(self) -> int:
        """Sequences of the run before one of some source comes again, by its share."""
        return int(min(size * BLOCK // quota for size, quota in zip(self.sizes, self.quotas.tolist(), strict=True)))

    def take(self, first: int, count: int) -> NDArray[np.int64]:
        """Sequences read at the global indices [first, first + count), int64."""
        if count == 0:
            return np.empty(0, dtype=np.int64)
        blocks = range(first // BLOCK, (first + count - 1) // BLOCK + 1)
        drawn = np.concatenate([_block(self, number) for number in blocks])
        return drawn[first - blocks.start * BLOCK :][:count]


@lru_cache(maxsize=4)
def _block(order: MixedOrder, number: int) -> NDArray[np.int64]:
    """The sequences of one block."""
    # Each block is an epoch of its places, and which source has a place follows from it.
    places = permuted(np.arange(number * BLOCK, (number + 1) * BLOCK), BLOCK, order.seed)
    source = np.searchsorted(np.cumsum(order.quotas), places, side="right")
    numbers = np.empty(BLOCK, dtype=np.int64)
    for which, (offset, size, quota) in enumerate(zip(order.firsts, order.sizes, order.quotas.tolist(), strict=True)):
        drawn = np.arange(number * quota, (number + 1) * quota)
        numbers[source == which] = offset + permuted(drawn, size, _seed_of(order.seed, which))
    return numbers


def windows_of_sources(ends: Sequence[int], context_length: int) -> list[tuple[int, int]]:
    """The first window that lies whole within each source with its last target, and how many there are.

    `ends` are the places in the stream at which the sources end, one after the other.
    """
    ranges = []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        first = -(-start // context_length)
        ranges.append((first, max(0, (end - 1) // context_length - first)))
    return ranges


def _seed_of(seed: int, source: int) -> int:
    """A seed of each source's own, other than that of the blocks."""
    return (seed + (source + 1) * 0x9E3779B97F4A7C15) % 2**64
