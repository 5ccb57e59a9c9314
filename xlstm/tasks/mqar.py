"""Multi-query associative recall (Arora et al. 2023, arXiv 2312.04927).

k₁ v₁ k₂ v₂ … and then, far or near, each key once more: there the model must say its value, which is never written
again. Keys lie below half the number of symbols, values above; 0 is a blank.
"""

import numpy as np
from numpy.typing import NDArray

from xlstm.models import IGNORED
from xlstm.randomness import Draws
from xlstm.tasks.contract import Examples, GeneratedTask
from xlstm.tasks.settings import Recall


class RecallTask(GeneratedTask):
    """`mqar` with its settings; a length is that of the whole sequence."""

    tested = 3000

    def __init__(self, settings: Recall, context_length: int) -> None:
        """ValueError where sequences of this length cannot hold the pairs and their queries."""
        settings.check(context_length)
        self.settings = settings
        self.vocabulary = settings.symbols
        self.chance = 1 / (settings.symbols - settings.symbols // 2)
        self.context_length = self.longest = context_length
        self.different = settings.examples

    def check(self, length: int) -> None:
        self.settings.check(length)

    def examples(self, seed: int, purpose: int, numbers: NDArray[np.int64], length: int) -> Examples:
        draws, count = Draws(seed, purpose, numbers), len(numbers)
        pairs, half = self.settings.pairs, self.settings.symbols // 2
        keys = 1 + draws.distinct(half - 1, pairs)
        values = half + draws.distinct(self.settings.symbols - half, pairs)
        tokens = np.zeros((count, length), dtype=np.int64)
        tokens[:, : 2 * pairs : 2], tokens[:, 1 : 2 * pairs : 2] = keys, values
        places = 2 * pairs + 2 * _slots(draws, (length - 2 * pairs) // 2, pairs, self.settings.slot_power)
        rows = np.arange(count)[:, None]
        targets = np.full_like(tokens, IGNORED)
        tokens[rows, places], targets[rows, places] = keys, values
        if self.settings.fill_blanks:
            rest = tokens[:, 2 * pairs :]
            rest[...] = np.where(rest == 0, draws.below(self.settings.symbols, rest.shape[1]), rest)
        return Examples(tokens, targets)


def _slots(draws: Draws, slots: int, count: int, power: float) -> NDArray[np.int64]:
    """The slot of each query, int64 `(sequences, count)`: without replacement, slot i ≥ 1 in proportion to i^(a-1).

    The `count` largest of log-weights with Gumbel noise are such a draw, in its order (Vieira 2014).
    """
    weights = (power - 1) * np.log(np.arange(1, slots + 1))
    noise = -np.log(-np.log(draws.uniform(slots) + 2.0**-54))
    return np.argsort(-(weights + noise), axis=1)[:, :count]
