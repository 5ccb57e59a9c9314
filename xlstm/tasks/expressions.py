"""Random arithmetic expressions with brackets, and their values; whole batches at a time.

An expression of length 1 is a digit d, of 2 -d, of 3 (d), of 4 (-d); a longer one is (left operator right), the length
of its left part uniform among those there are (Delétang et al. 2023, arXiv 2207.02098).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from xlstm.randomness import Draws

Tokens = NDArray[np.int64]

_DIGIT = -1
_PLUS, _MINUS, _TIMES, _OPEN, _CLOSE = 1, 2, 3, 5, 6


def expressions(draws: Draws, lengths: Tokens, width: int, first_digit: int, operators: Sequence[int]) -> Tokens:
    """Expressions of `lengths` `(sequences,)`, as tokens `(sequences, width)`, 0 past their ends."""
    cuts = draws.uniform(width)
    digits = first_digit + draws.below(5, width)
    chosen = np.array(operators)[draws.below(len(operators), width)]
    tokens = np.zeros((len(lengths), width), dtype=np.int64)
    # What is still to be written, its beginning on top: tokens, or the negative length of an expression.
    stack = np.zeros((len(lengths), width + 8), dtype=np.int64)
    stack[:, 0], depth = -lengths, np.ones_like(lengths)
    for column in range(width):
        rows = np.flatnonzero(column < lengths)
        depth[rows] -= 1
        item = stack[rows, depth[rows]]
        length = -item
        written = np.select(
            [item > 0, length == 1, length == 2], [item, digits[rows, column], np.full_like(item, _MINUS)], _OPEN
        )
        tokens[rows, column] = written
        left = 1 + (cuts[rows, column] * (length - 4)).astype(np.int64)
        whole = length >= 5
        for part in (
            np.where(length >= 3, _CLOSE, 0),
            np.where(whole, left + 3 - length, np.where(length >= 2, _DIGIT, 0)),
            np.where(whole, chosen[rows, column], np.where(length == 4, _MINUS, 0)),
            np.where(whole, -left, 0),
        ):
            pushed = rows[part != 0]
            stack[pushed, depth[pushed]] = part[part != 0]
            depth[pushed] += 1
    return tokens


def values(tokens: Tokens, lengths: Tokens, first_digit: int, modulus: int) -> Tokens:
    """The values `(sequences,)` of expressions, modulo `modulus`. Each bracket holds one operation at most."""
    rows = np.arange(len(tokens))
    value = np.zeros((len(tokens), tokens.shape[1] // 2 + 2), dtype=np.int64)
    operator, level, negative = np.zeros_like(value), np.zeros_like(lengths), np.zeros(len(tokens), dtype=bool)
    begun = np.zeros_like(value, dtype=bool)
    for column in range(tokens.shape[1]):
        held = column < lengths
        token = np.where(held, tokens[:, column], 0)
        opens, closes, digit = token == _OPEN, token == _CLOSE, token >= first_digit
        operand = np.where(negative, first_digit - token, token - first_digit)
        operand = np.where(closes, value[rows, level], operand)
        level = level + opens - closes
        begun[rows[opens], level[opens]] = operator[rows[opens], level[opens]] = 0
        before, pending = value[rows, level], operator[rows, level]
        combined = np.select(
            [pending == _PLUS, pending == _MINUS, pending == _TIMES],
            [before + operand, before - operand, before * operand],
            operand,
        )
        ended = digit | closes
        value[rows, level] = np.where(ended, combined % modulus, before)
        is_operator = (token >= _PLUS) & (token <= _TIMES)
        unary = is_operator & ~(begun[rows, level] & (pending == 0))
        operator[rows, level] = np.where(is_operator & ~unary, token, pending)
        negative = np.where(ended, False, negative | unary)
        begun[rows, level] |= ended
    return value[:, 0]
