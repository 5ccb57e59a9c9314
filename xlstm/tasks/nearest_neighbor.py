"""Nearest-neighbour search (arXiv 2405.04517, figure 2 right and appendix D): revising what was stored.

At each position a unit vector of the plane with a value of [0, 1). The first vector is asked for: from the second
position on, the answer is the value of the vector so far that is nearest to it. The first one's own value is 0.
"""

import numpy as np
from numpy.typing import NDArray

from xlstm.models import IGNORED
from xlstm.randomness import Draws
from xlstm.tasks.contract import Examples, GeneratedTask
from xlstm.tasks.settings import NearestNeighbor


class NearestNeighborTask(GeneratedTask):
    """`nearest-neighbor` with its settings; a length counts all positions, the first among them."""

    vocabulary = 1
    inputs = 3
    regression = True
    chance = 0.0
    tested = 1024

    def __init__(self, settings: NearestNeighbor) -> None:
        self.context_length = self.longest = settings.longest
        self.different = settings.examples

    def examples(self, seed: int, purpose: int, numbers: NDArray[np.int64], length: int) -> Examples:
        draws = Draws(seed, purpose, numbers)
        angles, values = 2 * np.pi * draws.uniform(length), draws.uniform(length)
        values[:, 0] = 0
        likeness = np.cos(angles - angles[:, :1])
        likeness[:, 0] = -np.inf
        # Where the likeness rises above all before it, that place is the nearest so far; elsewhere the last such is.
        rises = likeness >= np.maximum.accumulate(likeness, axis=1)
        nearest = np.maximum.accumulate(np.where(rises, np.arange(length), 0), axis=1)
        targets = np.take_along_axis(values, nearest, axis=1).astype(np.float32)
        targets[:, 0] = IGNORED
        tokens = np.stack([np.cos(angles), np.sin(angles), values], axis=-1).astype(np.float32)
        return Examples(tokens, targets)
