"""The fifteen formal languages of the xLSTM paper (arXiv 2405.04517, appendix D.1; after Delétang et al. 2023).

Vocabularies and chance levels are the paper's. Token 0 is the empty cell: padding, and where answers are read. What the
paper leaves open is settled in docs/tasks.md.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xlstm.randomness import Draws
from xlstm.tasks.contract import TEST, TRAINING, Examples, Task, laid_out
from xlstm.tasks.expressions import expressions
from xlstm.tasks.settings import SHORTEST, FormalLanguage

Tokens = NDArray[np.int64]

MODULUS = 5
"""Positions of the cycle, and numbers of the arithmetic."""

PLUS, MINUS, TIMES, EQUALS, OPEN, CLOSE, UNKNOWN = range(1, 8)
"""Tokens of the arithmetic languages; digits follow the last that a language has."""


@dataclass(frozen=True)
class Strings:
    """Prompts and answers `(sequences, widest)`, each with its lengths `(sequences,)`."""

    prompt: Tokens
    prompt_lengths: Tokens
    answers: Tokens
    answer_lengths: Tokens


Generator = Callable[["Language", Draws, Tokens, int], Strings]
"""Of the language, random numbers, the lengths of the inputs `(sequences,)`, and the greatest that there may be."""


@dataclass(frozen=True)
class Language:
    """A language: `first` is the first token that stands for a symbol, those before are special."""

    generate: Generator
    vocabulary: int
    first: int
    chance: float
    answer: Callable[[int], int] = lambda length: 1
    """The most tokens of an answer to so many symbols."""
    sign: int = 0
    """The token after the symbols, at which the answer begins; 0 where it begins at the last symbol."""

    @property
    def symbols(self) -> int:
        return self.vocabulary - self.first

    def signed(self, symbols: Tokens, lengths: Tokens) -> tuple[Tokens, Tokens]:
        """Prompts and their lengths: symbols and the sign that ends them."""
        if not self.sign:
            return symbols, lengths
        prompt = np.pad(symbols, ((0, 0), (0, 1)))
        prompt[np.arange(len(prompt)), lengths] = self.sign
        return prompt, lengths + 1

    def one(self, symbols: Tokens, lengths: Tokens, answer: Tokens) -> Strings:
        """Strings that are answered by one token `(sequences,)`."""
        return Strings(*self.signed(symbols, lengths), answer[:, None], np.ones_like(lengths))

    def drawn(self, draws: Draws, width: int) -> Tokens:
        return self.first + draws.below(self.symbols, width)


def _held(lengths: Tokens, width: int) -> NDArray[np.bool_]:
    held: NDArray[np.bool_] = np.arange(width) < lengths[:, None]
    return held


def _last(symbols: Tokens, lengths: Tokens) -> Tokens:
    last: Tokens = symbols[np.arange(len(symbols)), lengths - 1]
    return last


def _parity(language: Language, draws: Draws, lengths: Tokens, width: int) -> Strings:
    """b where the number of b is odd."""
    symbols = language.drawn(draws, width)
    ones = ((symbols - language.first) * _held(lengths, width)).sum(axis=1)
    return language.one(symbols, lengths, language.first + ones % 2)


def _even_pairs(language: Language, draws: Draws, lengths: Tokens, width: int) -> Strings:
    """Whether there are evenly many ab and ba, which is whether the first symbol is the last: a if so."""
    symbols = language.drawn(draws, width)
    return language.one(symbols, lengths, language.first + (symbols[:, 0] != _last(symbols, lengths)))


def _cycle_navigation(language: Language, draws: Draws, lengths: Tokens, width: int) -> Strings:
    """Where on a cycle of five the moves 1 (stay), 2 (forth) and 3 (back) lead from 0."""
    moves = draws.below(3, width)
    steps = np.array([0, 1, -1])[moves] * _held(lengths, width)
    return language.one(1 + moves, lengths, language.first + steps.sum(axis=1) % MODULUS)


def _counts(language: Language, symbols: Tokens, lengths: Tokens) -> Tokens:
    """How often each symbol occurs, `(sequences, symbols)`."""
    rows, columns = np.nonzero(_held(lengths, symbols.shape[1]))
    flat = rows * language.symbols + symbols[rows, columns] - language.first
    return np.bincount(flat, minlength=len(symbols) * language.symbols).reshape(len(symbols), -1)


def _majority(language: Language, draws: Draws, lengths: Tokens, width: int) -> Strings:
    """The symbol that occurs most often; the first in the alphabet of several."""
    symbols = language.drawn(draws, width)
    return language.one(symbols, lengths, language.first + _counts(language, symbols, lengths).argmax(axis=1))


def _majority_count(language: Language, draws: Draws, lengths: Tokens, width: int) -> Strings:
    """How often that symbol occurs, as the symbol of this number; the last for all greater numbers."""
    symbols = language.drawn(draws, width)
    most = _counts(language, symbols, lengths).max(axis=1)
    return language.one(symbols, lengths, language.first - 1 + np.minimum(most, language.symbols))


def _missing_duplicate(language: Language, draws: Draws, lengths: Tokens, width: int) -> Strings:
    """A string twice, one symbol of the second hidden: that symbol. Of an odd length, one symbol less."""
    half = lengths // 2
    word, rows = language.drawn(draws, width), np.arange(len(lengths))
    symbols = np.take_along_axis(word, np.arange(width) % half[:, None], axis=1)
    hidden = half + (draws.uniform(1)[:, 0] * half).astype(np.int64)
    answer = symbols[rows, hidden]
    symbols[rows, hidden] = 1
    return language.one(symbols, 2 * half, answer)


def _modular_arithmetic(language: Language, draws: Draws, lengths: Tokens, width: int) -> Strings:
    """The value of numbers with + - *, products first. Of an even length, one symbol less."""
    lengths = lengths - (lengths % 2 == 0)
    digits, operators = draws.below(MODULUS, width), PLUS + draws.below(3, width)
    total, term = np.zeros_like(lengths), digits[:, 0]
    for column in range(2, width, 2):
        operator, digit = operators[:, column - 1], digits[:, column]
        closed = np.where(operator == TIMES, 0, term)
        begun = np.where(operator == TIMES, term * digit % MODULUS, np.where(operator == MINUS, -digit, digit))
        held = column < lengths
        total, term = np.where(held, total + closed, total), np.where(held, begun, term)
    symbols = np.where(np.arange(width) % 2 == 0, language.first + digits, operators)
    return language.one(symbols, lengths, language.first + (total + term) % MODULUS)


def _modular_arithmetic_brackets(language: Language, draws: Draws, lengths: Tokens, width: int) -> Strings:
    """The value of a bracketed expression."""
    symbols, value = expressions(draws, lengths, width, language.first, (PLUS, MINUS, TIMES), MODULUS)
    return language.one(symbols, lengths, language.first + value)


def _solve_equation(language: Language, draws: Draws, lengths: Tokens, width: int) -> Strings:
    """The number that x stands for, in an expression of + and - alone, where it is one only."""
    inner, rows = lengths - 2, np.arange(len(lengths))
    symbols, value = expressions(draws, inner, width, language.first, (PLUS, MINUS), MODULUS)
    digits = (symbols >= language.first) & _held(inner, width)
    hidden = np.where(digits, draws.uniform(width), -1.0).argmax(axis=1)
    answer = symbols[rows, hidden]
    symbols[rows, hidden], symbols[rows, inner], symbols[rows, inner + 1] = UNKNOWN, EQUALS, language.first + value
    return language.one(symbols, lengths, answer)


def _reordered(language: Language, symbols: Tokens, lengths: Tokens, order: Tokens) -> Strings:
    answers = np.take_along_axis(symbols, np.clip(order, 0, symbols.shape[1] - 1), axis=1)
    return Strings(*language.signed(symbols, lengths), answers, lengths)


def _repetition(language: Language, draws: Draws, lengths: Tokens, width: int) -> Strings:
    """The string again."""
    symbols = language.drawn(draws, width)
    return Strings(*language.signed(symbols, lengths), symbols, lengths)


def _reverse(language: Language, draws: Draws, lengths: Tokens, width: int) -> Strings:
    """The string backwards."""
    return _reordered(language, language.drawn(draws, width), lengths, lengths[:, None] - 1 - np.arange(width))


def _odds_first(language: Language, draws: Draws, lengths: Tokens, width: int) -> Strings:
    """The first, third, fifth … symbol, then the second, fourth …"""
    odd, place = (lengths[:, None] + 1) // 2, np.arange(width)
    order = np.where(place < odd, 2 * place, 2 * (place - odd) + 1)
    return _reordered(language, language.drawn(draws, width), lengths, order)


def _bucket_sort(language: Language, draws: Draws, lengths: Tokens, width: int) -> Strings:
    """The symbols in the order of the alphabet."""
    symbols = language.drawn(draws, width)
    answers = np.sort(np.where(_held(lengths, width), symbols, language.vocabulary), axis=1)
    return Strings(symbols, lengths, answers, lengths)


def _ended(language: Language, prompt: Tokens, lengths: Tokens, answers: Tokens, answer_lengths: Tokens) -> Strings:
    """Strings whose answers have a length of their own, which the sign ends."""
    answers = np.pad(answers, ((0, 0), (0, 1)))
    answers[np.arange(len(answers)), answer_lengths] = language.sign
    return Strings(*language.signed(prompt, lengths), answers, answer_lengths + 1)


def _set(language: Language, draws: Draws, lengths: Tokens, width: int) -> Strings:
    """Every symbol once, as they first occur."""
    symbols = language.drawn(draws, width)
    order = np.argsort(symbols, axis=1, kind="stable")
    ordered = np.take_along_axis(symbols, order, axis=1)
    new = np.ones_like(symbols, dtype=bool)
    np.put_along_axis(new, order[:, 1:], ordered[:, 1:] != ordered[:, :-1], axis=1)
    new &= _held(lengths, width)
    answers = np.take_along_axis(symbols, np.argsort(~new, axis=1, kind="stable"), axis=1)
    return _ended(language, symbols, lengths, answers, new.sum(axis=1))


def _stack_manipulation(language: Language, draws: Draws, lengths: Tokens, width: int) -> Strings:
    """A stack, then what is pushed and popped: the stack from its top. An empty one stays empty when it is popped."""
    kinds, pop, rows = language.symbols // 2, language.first - 1, np.arange(len(lengths))
    given = 1 + (draws.uniform(1) * lengths[:, None]).astype(np.int64)
    contents, actions = draws.below(kinds, width), draws.below(kinds + 1, width)
    pushes = language.first + kinds - 1 + actions
    symbols = np.where(np.arange(width) < given, language.first + contents, np.where(actions == 0, pop, pushes))
    stack, depth = np.zeros((len(symbols), width + 1), dtype=np.int64), np.zeros_like(lengths)
    for column in range(width):
        symbol = symbols[:, column]
        stack[rows, depth] = np.where(symbol >= language.first + kinds, symbol - kinds, symbol)  # above the top
        change = np.where(symbol == pop, -1, 1)
        depth = np.where(column < lengths, np.maximum(depth + change, 0), depth)
    order = np.maximum(depth[:, None] - 1 - np.arange(width), 0)
    return _ended(language, symbols, lengths, np.take_along_axis(stack, order, axis=1), depth)


_ACT = 1
"""The sign after which a string is answered, in languages whose answers are strings."""


def _string(generate: Generator, vocabulary: int, first: int, *, longer: int = 0, chance: float = 0) -> Language:
    chance = chance or 1 / (vocabulary - first)
    return Language(generate, vocabulary, first, chance, lambda length: length + longer, _ACT)


LANGUAGES = {
    "bucket-sort": Language(_bucket_sort, 11, 1, 1 / 10, lambda length: length),
    "cycle-navigation": Language(_cycle_navigation, 9, 4, 1 / 5),
    "even-pairs": Language(_even_pairs, 3, 1, 1 / 2),
    "majority": Language(_majority, 64, 1, 1 / 63),
    "majority-count": Language(_majority_count, 64, 1, 1 / 63),
    "missing-duplicate": Language(_missing_duplicate, 11, 2, 1 / 9),
    "modular-arithmetic": Language(_modular_arithmetic, 10, 5, 1 / 5, sign=EQUALS),
    "modular-arithmetic-brackets": Language(_modular_arithmetic_brackets, 12, 7, 1 / 5, sign=EQUALS),
    "odds-first": _string(_odds_first, 12, 2),
    "parity": Language(_parity, 3, 1, 1 / 2),
    "repetition": _string(_repetition, 12, 2),
    "reverse": _string(_reverse, 12, 2),
    "set": _string(_set, 128, 2, longer=1),
    "solve-equation": Language(_solve_equation, 14, 9, 1 / 5, sign=8),
    "stack-manipulation": _string(_stack_manipulation, 11, 3, longer=1, chance=1 / 4),
}


class FormalLanguageTask(Task):
    """One of the languages with its lengths; a length is that of the input, its sign and the answer left out."""

    tested = 2048
    different = None

    def __init__(self, settings: FormalLanguage) -> None:
        self.settings, self.language = settings, LANGUAGES[settings.name]
        self.vocabulary, self.chance = self.language.vocabulary, self.language.chance
        self.longest = settings.longest
        self.context_length = self.positions(settings.longest)

    def training(self, seed: int, numbers: Tokens) -> Examples:
        draws = Draws(seed, TRAINING, numbers)
        span = self.settings.longest - self.settings.shortest + 1
        return self._examples(draws, self.settings.shortest + draws.below(span, 1)[:, 0], self.settings.longest)

    def test(self, length: int, numbers: Tokens) -> Examples:
        return self._examples(Draws(length, TEST, numbers), np.full(len(numbers), length), length)

    def lengths(self) -> range:
        return range(self.longest + 1, max(256, 2 * self.longest) + 1)

    def check(self, length: int) -> None:
        least = SHORTEST.get(self.settings.name, 1)
        if length < least:
            raise ValueError(f"{self.settings.name} has no string of {length}, its shortest has {least}")

    def positions(self, length: int) -> int:
        return length + (1 if self.language.sign else 0) + self.language.answer(length) - 1

    def _examples(self, draws: Draws, lengths: Tokens, width: int) -> Examples:
        strings = self.language.generate(self.language, draws, lengths, width)
        return laid_out(
            strings.prompt, strings.prompt_lengths, strings.answers, strings.answer_lengths, self.positions(width)
        )
