"""The trees of ListOps, one after the other, compiled: most that are drawn do not fit, and are given up at once.

Imported when the first sequence is made: Numba takes half a second.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

MINIMUM, MAXIMUM, MEDIAN, SUM = range(4)
DIGIT, OPEN, CLOSE = 1, 11, 15
_NESTED = 0.25
"""Probability of an argument to be a list."""
_DEPTH, _ARGUMENTS = 10, 10
"""The most lists within each other, and the most arguments of one; each has at least two."""


@njit(cache=True)
def _mixed(value: Any) -> Any:
    """`xlstm.randomness.mix` of one word."""
    z = value + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(cache=True)
def _uniform(key: Any, place: int) -> Any:
    """The number of [0, 1) at a place, as `xlstm.randomness.Draws.uniform` draws it."""
    return np.float64(_mixed(key ^ _mixed(np.uint64(place))) >> np.uint64(11)) * 2.0**-53


@njit(cache=True)
def _grow(key: Any, longest: int, arguments: NDArray[np.int64]) -> tuple[int, int]:
    """Draw the numbers of arguments, 0 for a digit, of a tree's nodes, level by level; their number and the tokens.

    A tree is given up, with 0 nodes, as soon as it has more than `longest` tokens. The numbers drawn for node n lie at
    3 n: whether it is a list, its content, its arguments.
    """
    begin, end, tokens = 0, 1, 1
    for depth in range(_DEPTH + 1):
        nodes = end
        for node in range(begin, end):
            arguments[node] = 0
            if depth < _DEPTH and (depth == 0 or _uniform(key, 3 * node) < _NESTED):
                count = 2 + int(_uniform(key, 3 * node + 2) * (_ARGUMENTS - 1))
                arguments[node] = count
                nodes += count
                tokens += count + 1
                if tokens > longest:
                    return 0, tokens
        begin, end = end, nodes
        if begin == end:
            break
    return end, tokens


@njit(cache=True)
def _write(key: Any, arguments: Any, count: int, size: Any, start: Any, value: Any, tokens: Any) -> Any:
    """Write the tree of `count` nodes, and give its value. `size`, `start` and `value` are room for a number a node."""
    first = count
    for node in range(count - 1, -1, -1):
        content = np.int64(_uniform(key, 3 * node + 1) * (4 if arguments[node] else 10))
        size[node], value[node] = 1, content
        if arguments[node]:
            last = first
            first -= arguments[node]
            size[node] = 2 + size[first:last].sum()
            inner = np.sort(value[first:last])
            if content == MINIMUM:
                value[node] = inner[0]
            elif content == MAXIMUM:
                value[node] = inner[-1]
            elif content == MEDIAN:
                value[node] = (inner[(len(inner) - 1) // 2] + inner[len(inner) // 2]) // 2
            else:
                value[node] = inner.sum() % 10
    start[0], child = 0, 1
    for node in range(count):
        content = np.int64(_uniform(key, 3 * node + 1) * (4 if arguments[node] else 10))
        tokens[start[node]] = content + (OPEN if arguments[node] else DIGIT)
        if arguments[node]:
            tokens[start[node] + size[node] - 1] = CLOSE
            place = start[node] + 1
            for _ in range(arguments[node]):
                start[child] = place
                place += size[child]
                child += 1
    return value[0]


@njit(cache=True)
def write_lists(
    stream: Any, numbers: NDArray[np.int64], shortest: int, longest: int, tokens: Any, values: Any, sizes: Any
) -> None:
    """Write the list of each number into `tokens` `(sequences, longest)`, its value and its tokens into the others.

    `stream` is `xlstm.randomness.stream` of what is drawn for. A list is the first of its number's trees that fits.
    """
    arguments, size, start, value = np.empty((4, longest + 1), dtype=np.int64)
    for row in range(len(numbers)):
        attempt = np.int64(0)
        while True:
            # Between the numbers of one sequence's trees lie more than there are sequences.
            key = _mixed(stream + np.uint64(numbers[row] + (attempt << np.int64(40))))
            count, size_of_all = _grow(key, longest, arguments)
            if count and size_of_all >= shortest:
                break
            attempt += 1
        values[row] = _write(key, arguments, count, size, start, value, tokens[row])
        sizes[row] = size_of_all
