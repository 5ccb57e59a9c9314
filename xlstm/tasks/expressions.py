"""Random arithmetic expressions with brackets, and their values; whole batches at a time.

An expression of length 1 is a digit d, of 2 -d, of 3 (d), of 4 (-d); a longer one is (left operator right), the length
of its left part uniform among those there are (Delétang et al. 2023, arXiv 2207.02098).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from xlstm.randomness import Draws

Tokens = NDArray[np.int64]

_PLUS, _MINUS, _OPEN, _CLOSE = 1, 2, 5, 6


def expressions(
    draws: Draws, lengths: Tokens, width: int, first_digit: int, operators: Sequence[int], modulus: int
) -> tuple[Tokens, Tokens]:
    """Expressions of `lengths` `(sequences,)` as tokens `(sequences, width)`, and their values `(sequences,)`.

    Those of one depth are written together, from the whole to its digits, and their values taken on the way back. What
    is drawn for an expression is drawn for the column where it begins.
    """
    cuts = draws.uniform(width)
    digits = draws.below(modulus, width)
    chosen = np.array(operators)[draws.below(len(operators), width)]
    tokens, value = (np.zeros((len(lengths), width), dtype=np.int64) for _ in range(2))
    rows, starts, sizes = np.arange(len(lengths)), np.zeros_like(lengths), lengths
    levels = []
    while len(rows):
        bracketed = sizes >= 3
        tokens[rows[bracketed], starts[bracketed]] = _OPEN
        tokens[rows[bracketed], (starts + sizes - 1)[bracketed]] = _CLOSE
        whole = sizes >= 5
        _write_digits(tokens, value, digits, first_digit, rows[~whole], starts[~whole], sizes[~whole])
        rows, starts, sizes = rows[whole], starts[whole], sizes[whole]
        left = 1 + (cuts[rows, starts] * (sizes - 4)).astype(np.int64)
        operator, second = chosen[rows, starts], starts + left + 2
        tokens[rows, second - 1] = operator
        levels.append((rows, starts, second, operator))
        rows, starts = np.concatenate([rows, rows]), np.concatenate([starts + 1, second])
        sizes = np.concatenate([left, sizes - 3 - left])
    for rows, starts, second, operator in reversed(levels):
        one, other = value[rows, starts + 1], value[rows, second]
        result = np.where(operator == _PLUS, one + other, np.where(operator == _MINUS, one - other, one * other))
        value[rows, starts] = result % modulus
    return tokens, value[:, 0] % modulus


def _write_digits(
    tokens: Tokens, value: Tokens, digits: Tokens, first_digit: int, rows: Tokens, starts: Tokens, sizes: Tokens
) -> None:
    """Write the expressions of a single digit, with the sign that some have."""
    negative = sizes % 2 == 0
    columns = starts + (sizes - 1 + negative) // 2
    tokens[rows[negative], columns[negative] - 1] = _MINUS
    digit = digits[rows, columns]
    tokens[rows, columns] = first_digit + digit
    value[rows, starts] = np.where(negative, -digit, digit)
