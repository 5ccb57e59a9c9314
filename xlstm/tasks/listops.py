"""ListOps (Nangia & Bowman 2018) at the lengths of the Long Range Arena (Tay et al. 2021): nested lists, one digit out.

Tokens: 1 to 10 are the digits, 11 to 14 open a list with its operator (minimum, maximum, median, sum modulo 10), 15
closes one. Trees are drawn as there, and anew until their length fits (`listops_trees`); the median of evenly many is
rounded down.
"""

import numpy as np
from numpy.typing import NDArray

from xlstm.models import IGNORED
from xlstm.randomness import stream
from xlstm.tasks.contract import TEST, TRAINING, Examples, Task
from xlstm.tasks.settings import ListOps

Ints = NDArray[np.int64]


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
        from xlstm.tasks.listops_trees import DIGIT, write_lists

        tokens = np.zeros((len(numbers), longest), dtype=np.int64)
        targets = np.full_like(tokens, IGNORED)
        values, sizes = np.empty((2, len(numbers)), dtype=np.int64)
        write_lists(stream(seed, purpose)[0], numbers, self.settings.shortest, longest, tokens, values, sizes)
        targets[np.arange(len(numbers)), sizes - 1] = DIGIT + values
        return Examples(tokens, targets)
