"""How a form is a special case of E + (A/N^alpha + B/D^beta)^gamma: which of the six are free, tied or fixed."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from analysis.laws.additive import Array

COORDINATES = ("A", "B", "E", "alpha", "beta", "gamma")


@dataclass(frozen=True)
class Structure:
    """How free coordinates enter the six of T: `matrix` (6, k) times free (k,) plus `constant` (6,)."""

    matrix: Array
    constant: Array

    @classmethod
    def of(cls, *free: str, tied: tuple[str, str] | None = None, **fixed: float) -> "Structure":
        """The free coordinates by name; `tied` = (follower, leader) makes one equal to another; the others fixed."""
        matrix, constant = np.zeros((6, len(free))), np.zeros(6)
        for column, name in enumerate(free):
            matrix[COORDINATES.index(name), column] = 1.0
        if tied is not None:
            matrix[COORDINATES.index(tied[0])] = matrix[COORDINATES.index(tied[1])]
        for name, value in ({"gamma": 1.0} | fixed).items():
            if name not in free:
                constant[COORDINATES.index(name)] = value
        return cls(matrix, constant)

    @cached_property
    def free(self) -> list[int]:
        """Which of the six coordinates the columns of `matrix` are."""
        return [int(np.argmax(column)) for column in self.matrix.T]

    @cached_property
    def coupled(self) -> bool:
        """Whether gamma is fitted; it is 1 otherwise."""
        return bool(self.matrix[5].any())

    def expand(self, free: Array) -> Array:
        """(problems, k) to (problems, 6)."""
        return np.asarray(free @ self.matrix.T + self.constant)
