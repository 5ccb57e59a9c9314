"""The order of training sequences: a pure function of (seed, global sequence index).

A Feistel network permutes the indices of each epoch, so the order needs no table, a checkpoint stores one integer, and
neither ranks nor restarts can change it (format-preserving encryption with cycle walking; Black & Rogaway 2002).
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from xlstm.randomness import ROUNDS, Words, mix, permute

_BLOCK = 1 << 14
"""Indices permuted at a time: one at a time, numpy's overhead would be felt in steps of milliseconds."""


@dataclass
class Order:
    """The order of `size` sequences under a seed, epoch after epoch."""

    size: int
    seed: int
    _first: int = -1
    _block: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def take(self, first: int, count: int) -> NDArray[np.int64]:
        """Sequences read at the global indices [first, first + count), int64."""
        if not (0 <= self._first <= first and first + count <= self._first + len(self._block)):
            self._first, self._block = (
                first,
                permuted(np.arange(first, first + max(count, _BLOCK)), self.size, self.seed),
            )
        return self._block[first - self._first : first - self._first + count]


def permuted(indices: NDArray[np.integer], size: int, seed: int) -> NDArray[np.int64]:
    """Sequence read at each global index (int64, any shape): each epoch of `size` indices is a permutation of its own.

    ValueError for an empty corpus or a negative index.
    """
    if size <= 0:
        raise ValueError("an empty corpus has no order")
    if indices.size and int(indices.min()) < 0:
        raise ValueError("a sequence index is not negative")
    flat = indices.astype(np.uint64).reshape(-1)
    epochs, positions = flat // np.uint64(size), flat % np.uint64(size)
    keys = _keys(seed, epochs)
    return permute(positions, size, keys).reshape(indices.shape)


def _keys(seed: int, epochs: Words) -> Words:
    """Round keys `(rounds, indices)` of each index's epoch; `(rounds, 1)` where all are of one epoch."""
    distinct, member = np.unique(epochs, return_inverse=True)
    streams = mix(mix(np.array([seed % 2**64], dtype=np.uint64)) ^ distinct)
    keys = mix(np.arange(ROUNDS, dtype=np.uint64)[:, None] + streams)
    return keys if len(distinct) == 1 else keys[:, member]
