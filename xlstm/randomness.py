"""Random numbers as pure functions of what they are for: no state, so neither ranks nor restarts can change them."""

import numpy as np
from numpy.typing import NDArray

ROUNDS = 4
"""Luby & Rackoff 1988: four rounds make a strong pseudo-random permutation of a pseudo-random round function."""

Words = NDArray[np.uint64]


def mix(values: Words) -> Words:
    """SplitMix64's finaliser (Steele, Lea & Flood 2014): every output bit depends on every input bit."""
    with np.errstate(over="ignore"):
        z = values + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def permute(positions: Words, size: int, keys: Words) -> NDArray[np.int64]:
    """Where a permutation of `size` numbers takes each position `(n,)`; `keys` `(rounds, n)` or `(rounds, 1)` name it.

    A Feistel network with cycle walking (Black & Rogaway 2002).
    """
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    result = _feistel(positions, half_bits, keys)
    # The network permutes 4**half_bits >= size values; those outside walk on until they fall inside.
    while (outside := np.flatnonzero(result >= size)).size:
        result[outside] = _feistel(result[outside], half_bits, keys[:, outside] if keys.shape[1] > 1 else keys)
    return result.astype(np.int64)


def _feistel(values: Words, half_bits: int, keys: Words) -> Words:
    mask, shift = np.uint64((1 << half_bits) - 1), np.uint64(half_bits)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (mix(right + key) & mask)
    return (left << shift) | right


def keys(seed: int, purpose: int, numbers: NDArray[np.int64]) -> Words:
    """A word for each of some numbered things. `purpose` keeps apart what one seed is used for."""
    name = mix(mix(np.array([seed % 2**64], dtype=np.uint64)) ^ np.uint64(purpose))
    return mix(name + numbers.astype(np.uint64))


class Draws:
    """Independent random numbers for each of some sequences, which nothing but its own number decides."""

    def __init__(self, seed: int, purpose: int, sequences: NDArray[np.int64]) -> None:
        """`purpose` keeps apart what one seed is used for, such as training and test."""
        self._keys = keys(seed, purpose, sequences)
        self._drawn = 0

    def _words(self, count: int) -> Words:
        places = np.arange(self._drawn, self._drawn + count, dtype=np.uint64)
        self._drawn += count
        return mix(self._keys[:, None] ^ mix(places))

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Numbers of [0, 1), float64 `(sequences, count)`."""
        words: NDArray[np.float64] = (self._words(count) >> np.uint64(11)).astype(np.float64)
        return words * 2.0**-53

    def uniform_at(self, sequences: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.float64]:
        """The numbers of [0, 1) at some places of some sequences, float64 `(n,)`, which are drawn in no order."""
        words = mix(self._keys[sequences] ^ mix(places.astype(np.uint64)))
        found: NDArray[np.float64] = (words >> np.uint64(11)).astype(np.float64)
        return found * 2.0**-53

    def below(self, bound: int, count: int) -> NDArray[np.int64]:
        """Whole numbers of [0, bound), int64 `(sequences, count)`."""
        return (self.uniform(count) * bound).astype(np.int64)

    def distinct(self, bound: int, count: int) -> NDArray[np.int64]:
        """As `below`, no number twice in a sequence."""
        keys = np.repeat(self._words(ROUNDS).T, count, axis=1)
        places = np.tile(np.arange(count, dtype=np.uint64), len(self._keys))
        return permute(places, bound, keys).reshape(-1, count)
