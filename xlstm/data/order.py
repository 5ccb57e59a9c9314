"""The order of training sequences: a pure function of (seed, global sequence index).

A Feistel network permutes the indices of each epoch, so the order needs no table, a checkpoint stores one integer, and
neither ranks nor restarts can change it (format-preserving encryption with cycle walking; Black & Rogaway 2002).
"""

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 4
"""Luby & Rackoff 1988: four rounds make a strong pseudo-random permutation of a pseudo-random round function."""

Indices = NDArray[np.uint64]


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
    result = np.empty_like(positions)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        result[chosen] = _permute(positions[chosen], size, seed, int(epoch))
    return result.astype(np.int64).reshape(indices.shape)


def _permute(positions: Indices, size: int, seed: int, epoch: int) -> Indices:
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    stream = _mix(_mix(np.array([seed], dtype=np.uint64)) ^ np.uint64(epoch))
    keys = _mix(stream + np.arange(_ROUNDS, dtype=np.uint64))
    result = _feistel(positions, half_bits, keys)
    # The network permutes 4**half_bits >= size values; those outside walk on until they fall inside.
    outside = result >= size
    while outside.any():
        result[outside] = _feistel(result[outside], half_bits, keys)
        outside = result >= size
    return result


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
