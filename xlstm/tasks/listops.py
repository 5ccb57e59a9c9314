"""ListOps (Nangia & Bowman 2018) at the lengths of the Long Range Arena (Tay et al. 2021): nested lists, one digit out.

Tokens: 1 to 10 are the digits, 11 to 14 open a list with its operator (minimum, maximum, median, sum modulo 10), 15
closes one. Trees are drawn as there, and anew until their length fits; the median of evenly many is rounded down.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xlstm.models import IGNORED
from xlstm.randomness import Draws
from xlstm.tasks.contract import TEST, TRAINING, Examples, Task
from xlstm.tasks.settings import ListOps

Ints = NDArray[np.int64]

MINIMUM, MAXIMUM, MEDIAN, SUM = range(4)
_DIGIT, _OPEN, _CLOSE = 1, 11, 15
_NESTED = 0.25
"""Probability of an argument to be a list."""
_ATTEMPT = 1 << 40
"""Between the numbers of one sequence's trees: there are fewer sequences."""
_TOGETHER = 2048
"""The most tokens of the trees that are drawn for a sequence at a time: many do not fit."""
_DEPTH, _ARGUMENTS = 10, 10
"""The most lists within each other, and the most arguments of one; each has at least two."""


@dataclass(frozen=True)
class _Level:
    """The nodes of one depth, those of a sequence and those of a list side by side."""

    row: Ints
    place: Ints
    """Where among the random numbers of the sequence those of the node begin."""
    arguments: Ints
    """Their number; 0 for a digit."""

    def of(self, kept: NDArray[np.bool_]) -> "_Level":
        """The nodes of some of the sequences."""
        nodes = kept[self.row]
        return _Level(self.row[nodes], self.place[nodes], self.arguments[nodes])

    def content(self, draws: Draws) -> Ints:
        """The digit of each node, or the operator."""
        choice = draws.uniform_at(self.row, self.place + 1)
        return (choice * np.where(self.arguments > 0, 4, 10)).astype(np.int64)


class ListOpsTask(Task):
    """`listops` with its settings; a length is the greatest that a sequence may have."""

    vocabulary = 16
    chance = 1 / 10
    tested = 2000

    def __init__(self, settings: ListOps) -> None:
        self.settings = settings
        self.context_length = self.longest = settings.longest
        self.different = settings.examples

    def training(self, seed: int, numbers: Ints) -> Examples:
        return self._examples(seed, TRAINING, numbers, self.longest)

    def test(self, length: int, numbers: Ints) -> Examples:
        return self._examples(length, TEST, numbers, length)

    def lengths(self) -> range:
        return range(self.longest, self.longest + 1)

    def check(self, length: int) -> None:
        """Longer sequences than those of training are a test, too."""

    def positions(self, length: int) -> int:
        return length

    def _examples(self, seed: int, purpose: int, numbers: Ints, longest: int) -> Examples:
        tokens = np.zeros((len(numbers), longest), dtype=np.int64)
        targets = np.full_like(tokens, IGNORED)
        wanted, attempt, together = np.arange(len(numbers)), 0, 1
        while len(wanted):
            rows = np.repeat(wanted, together)
            attempts = np.tile(np.arange(attempt, attempt + together), len(wanted))
            draws = Draws(seed, purpose, numbers[rows] + attempts * _ATTEMPT)
            levels = _grown(draws, len(rows), longest)
            total = _sizes(levels)[0]
            found = ((total >= self.settings.shortest) & (total <= longest)).reshape(-1, together)
            first = found.argmax(axis=1)  # of several attempts the first that fits, as if they came one by one
            fits = np.zeros_like(found)
            fits[np.arange(len(found)), first] = found.any(axis=1)
            kept = fits.reshape(-1)
            levels = [part for level in levels if len((part := level.of(kept)).row)]
            contents = [level.content(draws) for level in levels]
            _write(tokens, levels, contents, rows)
            if levels:
                targets[rows[kept], total[kept] - 1] = _DIGIT + _values(levels, contents)
            wanted, attempt = wanted[~found.any(axis=1)], attempt + together
            together = max(together, min(2 * together, _TOGETHER // longest))
        return Examples(tokens, targets)


def _grown(draws: Draws, count: int, longest: int) -> list[_Level]:
    """A tree for each sequence. One that grows too long grows no further, and is too long for good."""
    levels: list[_Level] = []
    row, nested, drawn = np.arange(count), np.ones(count, dtype=bool), np.zeros(count, dtype=np.int64)
    while len(row):
        rank = np.arange(len(row)) - np.searchsorted(row, row)
        place = 3 * (drawn[row] + rank)
        drawn += np.bincount(row, minlength=count)
        if levels:
            nested = draws.uniform_at(row, place) < _NESTED
        nested &= (len(levels) < _DEPTH) & (drawn[row] <= longest)
        arguments = np.zeros_like(row)
        width = draws.uniform_at(row[nested], place[nested] + 2)
        arguments[nested] = 2 + (width * (_ARGUMENTS - 1)).astype(np.int64)
        levels.append(_Level(row, place, arguments))
        row = np.repeat(row, arguments)
        nested = np.zeros(len(row), dtype=bool)
    return levels


def _starts(arguments: Ints) -> Ints:
    """Where in the next level the arguments of each list begin."""
    starts: Ints = np.cumsum(arguments) - arguments
    return starts[arguments > 0]


def _sizes(levels: list[_Level]) -> list[Ints]:
    """Tokens of every node, by level."""
    sizes = [np.ones_like(levels[-1].row)]
    for level in reversed(levels[:-1]):
        size = np.ones_like(level.row)
        size[level.arguments > 0] = 2 + np.add.reduceat(sizes[0], _starts(level.arguments))
        sizes.insert(0, size)
    return sizes


def _write(tokens: Ints, levels: list[_Level], contents: list[Ints], rows: Ints) -> None:
    """Write trees, from the outermost list inwards."""
    if not levels:
        return
    sizes, start = _sizes(levels), np.zeros_like(levels[0].row)
    for depth, (level, size) in enumerate(zip(levels, sizes, strict=True)):
        lists, row = level.arguments > 0, rows[level.row]
        tokens[row, start] = np.where(lists, _OPEN, _DIGIT) + contents[depth]
        tokens[row[lists], (start + size - 1)[lists]] = _CLOSE
        if lists.any():
            inner, first = sizes[depth + 1], _starts(level.arguments)
            before = np.cumsum(inner) - inner  # tokens of the nodes before each, of whatever list
            start = before + np.repeat(start[lists] + 1 - before[first], level.arguments[lists])


def _values(levels: list[_Level], contents: list[Ints]) -> Ints:
    """The value of each sequence's whole list."""
    values = contents[-1]
    for level, content in zip(reversed(levels[:-1]), reversed(contents[:-1]), strict=True):
        lists = level.arguments > 0
        starts, count = _starts(level.arguments), level.arguments[lists]
        parents = np.repeat(np.arange(len(starts)), count)
        ordered = values[np.lexsort((values, parents))]
        median = (ordered[starts + (count - 1) // 2] + ordered[starts + count // 2]) // 2
        total = np.add.reduceat(values, starts) % 10
        values = content.copy()
        values[lists] = np.choose(content[lists], [ordered[starts], ordered[starts + count - 1], median, total])
    return values
