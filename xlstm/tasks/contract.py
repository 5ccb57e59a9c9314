"""What training and evaluation ask of a task whose sequences are generated.

Sequences are pure functions of their numbers. Those of training come from the run's seed, those of a test are the same
for every run, and the two share no random numbers.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from xlstm.models import IGNORED

TRAINING, TEST = 1, 2
"""Purposes of random numbers."""


@dataclass(frozen=True)
class Examples:
    """Some sequences, int64 `(sequences, positions)`; `targets` is IGNORED where no answer is read.

    The answer at a position is what the model says after the token there: nothing is left to be shifted. Tasks with
    real numbers have float32 tokens `(sequences, positions, numbers)`, and those whose answer is one float32 targets.
    """

    tokens: NDArray[Any]
    targets: NDArray[Any]


class Task(ABC):
    """A task whose sequences are generated."""

    vocabulary: int
    """Tokens in and out are below this number."""
    inputs: int = 0
    """Real numbers that go in at each position, instead of tokens; 0 for tokens."""
    classes: int = 0
    """Among how many classes an answer is, where it is no token; 0 where it is one."""
    regression: ClassVar[bool] = False
    """Whether an answer is a number, which squared errors judge."""
    reads: ClassVar[bool] = False
    """Whether the sequences are read from files, and not generated."""
    chance: float
    """Accuracy of a guess among the answers there are, as the xLSTM paper counts them."""
    context_length: int
    """Positions of a training sequence, padded to the longest."""
    longest: int
    """The greatest length in training: of the input for formal languages, of the whole sequence for mqar."""
    different: int | None
    """Number of different training sequences; None where there is no end of them."""
    tested: int
    """Sequences of a test, where the evaluation names no number."""
    test_sequences: int | None = None
    """How many there are to be tested on; None where there is no end of them."""

    @property
    def ends(self) -> Mapping[str, Any]:
        """What goes into a model and what comes out, as `xlstm.models.configs.Ends` calls it."""
        outputs = 1 if self.regression else self.classes
        return {"num_inputs": self.inputs, "num_outputs": outputs, "regression": self.regression}

    def opened(self, paths: Sequence[str], revision: str) -> "Task":
        """The task with its sequences at hand: this one, where they are generated."""
        return self

    @abstractmethod
    def training(self, seed: int, numbers: NDArray[np.int64]) -> Examples:
        """The training sequences of these numbers, each `context_length` positions."""

    @abstractmethod
    def test(self, length: int, numbers: NDArray[np.int64]) -> Examples:
        """The test sequences of these numbers, all of one length."""

    def lengths(self) -> range:
        """The lengths that are tested where the evaluation names none: that of training."""
        return range(self.longest, self.longest + 1)

    @abstractmethod
    def check(self, length: int) -> None:
        """ValueError where there is no sequence of this length."""

    def tests(self, shortest: int | None, longest: int | None, step: int | None) -> range:
        """The lengths to be tested, those left open as `lengths` has them."""
        own = self.lengths()
        first = shortest or own[0]
        return range(first, (longest or max(own[-1], first)) + 1, step or 1)

    def check_tests(self, lengths: range, places: int | None) -> None:
        """ValueError where there is no test of one of these lengths, or it is shorter than what was trained on.

        `places` is the number of positions that a model has, where they have an end.
        """
        if not lengths:
            raise ValueError(f"test lengths: there is none from {lengths.start} to {lengths.stop - 1}")
        if lengths[0] < self.longest:
            raise ValueError(f"test length {lengths[0]} is below the longest of training, {self.longest}")
        for length in lengths:
            try:
                self.check(length)
            except ValueError as error:
                raise ValueError(f"test length {length}: {error}") from None
        taken = self.positions(lengths[-1])
        if places is not None and taken > places:
            raise ValueError(
                f"test length {lengths[-1]} takes {taken} positions, and the model has no more than {places}"
            )

    def positions(self, length: int) -> int:
        """Positions that a sequence of this length takes: as many, where nothing stands beside it."""
        return length


class GeneratedTask(Task):
    """A task whose sequences of training and of the test are drawn alike, each from random numbers of its own."""

    @abstractmethod
    def examples(self, seed: int, purpose: int, numbers: NDArray[np.int64], length: int) -> Examples:
        """The sequences of these numbers and this length, from the random numbers of a seed and a purpose."""

    def training(self, seed: int, numbers: NDArray[np.int64]) -> Examples:
        return self.examples(seed, TRAINING, numbers, self.longest)

    def test(self, length: int, numbers: NDArray[np.int64]) -> Examples:
        return self.examples(length, TEST, numbers, length)

    def check(self, length: int) -> None:
        """Longer sequences than those of training are a test, too."""


def laid_out(
    prompt: NDArray[np.int64],
    prompt_lengths: NDArray[np.int64],
    answers: NDArray[np.int64],
    answer_lengths: NDArray[np.int64],
    positions: int,
) -> Examples:
    """Prompts, then empty cells in which the answers are read; the first answer is read after the prompt's last token.

    Arrays are `(sequences, widest)`, what lies past the lengths `(sequences,)` is left out. Cells are token 0.
    """
    rows = np.arange(len(prompt))[:, None]
    tokens = np.zeros((len(prompt), positions), dtype=np.int64)
    targets = np.full_like(tokens, IGNORED)
    held = np.arange(prompt.shape[1]) < prompt_lengths[:, None]
    width = min(prompt.shape[1], positions)
    tokens[:, :width] = np.where(held, prompt, 0)[:, :width]
    places = prompt_lengths[:, None] - 1 + np.arange(answers.shape[1])
    asked = np.arange(answers.shape[1]) < answer_lengths[:, None]
    targets[np.broadcast_to(rows, places.shape)[asked], places[asked]] = answers[asked]
    return Examples(tokens, targets)
