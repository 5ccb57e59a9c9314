"""Random numbers as pure functions of what they are for: no state, so neither ranks nor restarts can change them."""

import numpy as np
from numpy.typing import NDArray

ROUNDS = 4
"""Luby & Rackoff 1988: four rounds make a strong pseudo-random permutation of a pseudo-random round function."""

_SMALL = 256
"""The most numbers whose permutations are computed as wholes."""

Words = NDArray[np.uint64]


def mix(values: Words) -> Words:
    """SplitMix64's finaliser (Steele, Lea & Flood 2014): every output bit depends on every input bit."""
    z = values + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def permute(positions: Words, size: int, keys: Words) -> NDArray[np.int64]:
    """Where a permutation of `size` numbers takes each position `(n,)`; `keys` `(rounds, n)` or `(rounds, 1)` name it.

    A Feistel network with cycle walking (Black & Rogaway 2002).
    """
    half_bits = _half_bits(size)
    result = _feistel(positions, half_bits, keys)
    # The network permutes 4**half_bits >= size values; those outside walk on until they fall inside.
    while (outside := np.flatnonzero(result >= size)).size:
        result[outside] = _feistel(result[outside], half_bits, keys[:, outside] if keys.shape[1] > 1 else keys)
    return result.astype(np.int64)


def _half_bits(size: int) -> int:
    return max(1, ((size - 1).bit_length() + 1) // 2)


def _feistel(values: Words, half_bits: int, keys: Words) -> Words:
    mask, shift = np.uint64((1 << half_bits) - 1), np.uint64(half_bits)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (mix(right + key) & mask)
    return (left << shift) | right


def _first_of_permutations(count: int, size: int, keys: Words) -> NDArray[np.int64]:
    """What `permute` makes of the numbers below `count`, `(sequences, count)`; `keys` `(rounds, sequences)`.

    Of a small network all that the rounds can say is computed once, and looked up for all values it permutes: nearly
    half of them may have to walk on, again and again.
    """
    half_bits = _half_bits(size)
    half = 1 << half_bits
    said = (mix(np.arange(half, dtype=np.uint64) + keys[:, :, None]) & np.uint64(half - 1)).astype(np.int64)
    begins = np.arange(keys.shape[1])[:, None]
    left, right = np.divmod(np.arange(half * half)[None], half)
    for one in said:
        left, right = right, left ^ one.ravel()[begins * half + right]
    whole = (left << half_bits) | right
    result = whole[:, :count]
    while (outside := result >= size).any():
        result = np.where(outside, whole.ravel()[begins * half * half + result], result)
    return result


def stream(seed: int, purpose: int) -> Words:
    """What one seed is used for as a word, `(1,)`: `keys` of numbers are mixtures of their sums with it."""
    return mix(mix(np.array([seed % 2**64], dtype=np.uint64)) ^ np.uint64(purpose))


def keys(seed: int, purpose: int, numbers: NDArray[np.int64]) -> Words:
    """A word for each of some numbered things. `purpose` keeps apart what one seed is used for."""
    return mix(stream(seed, purpose) + numbers.astype(np.uint64))


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

    def below(self, bound: int, count: int) -> NDArray[np.int64]:
        """Whole numbers of [0, bound), int64 `(sequences, count)`."""
        return (self.uniform(count) * bound).astype(np.int64)

    def distinct(self, bound: int, count: int) -> NDArray[np.int64]:
        """As `below`, no number twice in a sequence."""
        words = self._words(ROUNDS).T
        if bound <= _SMALL:
            return _first_of_permutations(count, bound, words)
        keys = np.repeat(words, count, axis=1)
        places = np.tile(np.arange(count, dtype=np.uint64), len(self._keys))
        return permute(places, bound, keys).reshape(-1, count)
