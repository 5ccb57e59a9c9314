"""ListOps (Nangia & Bowman 2018) at the lengths of the Long Range Arena (Tay et al. 2021): nested lists, one digit out.

Tokens: 1 to 10 are the digits, 11 to 14 open a list with its operator (minimum, maximum, median, sum modulo 10), 15
closes one. Trees are drawn as there, and anew until their length fits (`listops_trees`); the median of evenly many is
rounded down.
"""

import numpy as np
from numpy.typing import NDArray

from xlstm.models import IGNORED
from xlstm.randomness import stream
from xlstm.tasks.contract import Examples, GeneratedTask
from xlstm.tasks.settings import ListOps


class ListOpsTask(GeneratedTask):
    """`listops` with its settings; a length is the greatest that a sequence may have."""

    vocabulary = 16
    chance = 1 / 10
    tested = 2000

    def __init__(self, settings: ListOps) -> None:
        self.settings = settings
        self.context_length = self.longest = settings.longest
        self.different = settings.examples

    def examples(self, seed: int, purpose: int, numbers: NDArray[np.int64], length: int) -> Examples:
        from xlstm.tasks.listops_trees import DIGIT, write_lists

        tokens = np.zeros((len(numbers), length), dtype=np.int64)
        targets = np.full_like(tokens, IGNORED)
        values, sizes = np.empty((2, len(numbers)), dtype=np.int64)
        write_lists(stream(seed, purpose)[0], numbers, self.settings.shortest, length, tokens, values, sizes)
        targets[np.arange(len(numbers)), sizes - 1] = DIGIT + values
        return Examples(tokens, targets)
