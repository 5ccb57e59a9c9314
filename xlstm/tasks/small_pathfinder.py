"""Pathfinder (Linsley et al. 2018; Long Range Arena) at a size of one's own: whether a line joins two dots.

Two lines that bend little and come nowhere near each other, and two dots: at both ends of one, or at one end of each.
Read row by row; 0 is the ground, 1 a line, 2 a dot. Either class has as many cells of each kind.
"""

import numpy as np
from numpy.typing import NDArray

from xlstm.models import IGNORED
from xlstm.randomness import Draws
from xlstm.tasks.contract import Examples, GeneratedTask
from xlstm.tasks.settings import SmallPathfinder

_STEPS = np.array([[0, 1], [1, 1], [1, 0], [1, -1], [0, -1], [-1, -1], [-1, 0], [-1, 1]])
"""Row and column of a step in each of eight directions, in their circle."""
_ATTEMPT = 1 << 40
"""Between the numbers of one sequence's attempts: there are fewer sequences."""

_TOGETHER = 8
"""Attempts drawn at a time: one in two to five fits at usual sizes."""


class SmallPathfinderTask(GeneratedTask):
    """`small-pathfinder` with its settings; the only length is that of a whole picture."""

    vocabulary, classes, chance, tested = 3, 2, 1 / 2, 2000

    def __init__(self, settings: SmallPathfinder) -> None:
        self.width, self.contour = settings.width, settings.contour
        self.context_length = self.longest = settings.width**2
        self.different = settings.examples

    def check(self, length: int) -> None:
        if length != self.longest:
            raise ValueError(f"pictures have {self.longest} cells, and no other number of them")

    def examples(self, seed: int, purpose: int, numbers: NDArray[np.int64], length: int) -> Examples:
        count = len(numbers)
        lines = np.zeros((count, 2, self.contour, 2), dtype=np.int64)
        joined = np.zeros(count, dtype=np.int64)
        wanted, attempt = np.arange(count), 0
        while len(wanted):
            # Of several attempts at a time the first that fits, as if they came one by one.
            numbered = numbers[wanted, None] + (attempt + np.arange(_TOGETHER)) * _ATTEMPT
            draws = Draws(seed, purpose, numbered.reshape(-1))
            drawn = self._lines(draws)
            fits = self._fits(drawn).reshape(-1, _TOGETHER)
            found = fits.any(axis=1)
            first = (np.arange(len(wanted)) * _TOGETHER + fits.argmax(axis=1))[found]
            lines[wanted[found]], joined[wanted[found]] = drawn[first], draws.below(2, 1)[first, 0]
            wanted, attempt = wanted[~found], attempt + _TOGETHER
        places = lines[..., 0] * self.width + lines[..., 1]  # (sequences, line, cell)
        rows = np.arange(count)[:, None]
        tokens = np.zeros((count, self.context_length), dtype=np.int64)
        tokens[rows, places.reshape(count, -1)] = 1
        tokens[np.arange(count), places[:, 0, 0]] = 2
        tokens[np.arange(count), np.where(joined, places[:, 0, -1], places[:, 1, 0])] = 2
        targets = np.full_like(tokens, IGNORED)
        targets[:, -1] = joined
        return Examples(tokens, targets)

    def _lines(self, draws: Draws) -> NDArray[np.int64]:
        """Row and column of each cell of two lines, `(sequences, 2, cells, 2)`; a step turns by 45 degrees at most.

        A line of any shape lies anywhere in the picture.
        """
        turns = draws.below(3, 2 * (self.contour - 1)).reshape(-1, 2, self.contour - 1) - 1
        turns[..., 0] += draws.below(8, 2)
        cells = np.zeros((len(turns), 2, self.contour, 2), dtype=np.int64)
        cells[:, :, 1:] = np.cumsum(_STEPS[np.cumsum(turns, axis=-1) % 8], axis=2)
        low, high = cells.min(axis=2, keepdims=True), cells.max(axis=2, keepdims=True)
        corner = draws.uniform(4).reshape(low.shape) * (self.width - (high - low))
        cells += corner.astype(np.int64) - low
        return cells

    def _fits(self, lines: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether lines meet neither themselves nor, with a cell between, each other."""
        places = np.sort(lines[..., 0] * self.width + lines[..., 1], axis=-1)
        apart = np.abs(lines[:, 0, :, None] - lines[:, 1, None]).max(axis=-1).min(axis=(1, 2)) > 1
        fits: NDArray[np.bool_] = (np.diff(places, axis=-1) > 0).all(axis=(1, 2)) & apart
        return fits
