"""The order of training sequences: a pure function of (seed, global sequence index).

A Feistel network permutes the indices of each epoch, so the order needs no table, a checkpoint stores one integer, and
neither ranks nor restarts can change it (format-preserving encryption with cycle walking; Black & Rogaway 2002).
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 4
"""Luby & Rackoff 1988: four rounds make a strong pseudo-random permutation of a pseudo-random round function."""

Indices = NDArray[np.uint64]


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
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    result = _feistel(positions, half_bits, keys)
    # The network permutes 4**half_bits >= size values; those outside walk on until they fall inside.
    while (outside := np.flatnonzero(result >= size)).size:
        result[outside] = _feistel(result[outside], half_bits, keys[:, outside] if keys.shape[1] > 1 else keys)
    return result.astype(np.int64).reshape(indices.shape)


def _keys(seed: int, epochs: Indices) -> Indices:
    """Round keys `(rounds, indices)` of each index's epoch; `(rounds, 1)` where all are of one epoch."""
    distinct, member = np.unique(epochs, return_inverse=True)
    streams = _mix(_mix(np.array([seed % 2**64], dtype=np.uint64)) ^ distinct)
    keys = _mix(np.arange(_ROUNDS, dtype=np.uint64)[:, None] + streams)
    return keys if len(distinct) == 1 else keys[:, member]


def _feistel(values: Indices, half_bits: int, keys: Indices) -> Indices:
    mask, shift = np.uint64((1 << half_bits) - 1), np.uint64(half_bits)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & mask)
    return (left << shift) | right


def _mix(values: Indices) -> Indices:
    """SplitMix64's finaliser (Steele, Lea & Flood 2014): every output bit depends on every input bit."""
    with np.errstate(over="ignore"):
        z = values + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
