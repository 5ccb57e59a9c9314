"""Every formal language against what a person would do by hand, and the traps of those who wrote them before."""

import re
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from xlstm.models import IGNORED
from xlstm.tasks import task_of
from xlstm.tasks.contract import Examples
from xlstm.tasks.formal_languages import LANGUAGES
from xlstm.tasks.settings import SHORTEST, FormalLanguage

ARITHMETIC = {1: "+", 2: "-", 3: "*", 4: "=", 5: "(", 6: ")", 7: "x"}
LONG = 60


def calculated(text: str) -> int:
    assert re.fullmatch(r"[0-4()+*-]+", text)
    value: int = eval(text)  # of digits and operators alone
    return value % 5


def arithmetic(prompt: list[int], first: int) -> str:
    return "".join(str(token - first) if token >= first else ARITHMETIC[token] for token in prompt)


def value_before_equals(first: int) -> Callable[[list[int]], list[int]]:
    def answer(prompt: list[int]) -> list[int]:
        text = arithmetic(prompt, first)
        assert text.endswith("=")
        return [first + calculated(text[:-1])]

    return answer


def solved(prompt: list[int]) -> list[int]:
    assert prompt[-1] == 8
    left, right = arithmetic(prompt[:-1], 9).split("=")
    assert "*" not in left
    assert left.count("x") == 1
    (solution,) = [x for x in range(5) if calculated(left.replace("x", str(x))) == int(right)]
    return [9 + solution]


def without_sign(prompt: list[int]) -> list[int]:
    assert prompt[-1] == 1
    return prompt[:-1]


def majority(prompt: list[int]) -> list[int]:
    most = max(Counter(prompt).values())
    return [min(token for token, count in Counter(prompt).items() if count == most)]


def missing(prompt: list[int]) -> list[int]:
    half = len(prompt) // 2
    assert len(prompt) == 2 * half
    assert prompt.index(1) >= half
    hidden = prompt.index(1) - half
    assert [*prompt[:half], *prompt[:half]] == [*prompt[: half + hidden], prompt[hidden], *prompt[half + hidden + 1 :]]
    return [prompt[hidden]]


def stack(prompt: list[int]) -> list[int]:
    content: list[int] = []
    for number, token in enumerate(without_sign(prompt)):
        assert number > 0 or 3 <= token < 7, "something lies on the stack at first"
        if token == 2:
            content = content[:-1]
        else:
            content.append(token if token < 7 else token - 4)
    return [*reversed(content), 1]


BY_HAND: dict[str, Callable[[list[int]], list[int]]] = {
    "bucket-sort": sorted,
    "cycle-navigation": lambda moves: [4 + sum({1: 0, 2: 1, 3: -1}[move] for move in moves) % 5],
    "even-pairs": lambda word: [1 + sum(a != b for a, b in pairwise(word)) % 2],
    "majority": majority,
    "majority-count": lambda word: [min(63, max(Counter(word).values()))],
    "missing-duplicate": missing,
    "modular-arithmetic": value_before_equals(5),
    "modular-arithmetic-brackets": value_before_equals(7),
    "odds-first": lambda prompt: without_sign(prompt)[::2] + without_sign(prompt)[1::2],
    "parity": lambda word: [1 + word.count(2) % 2],
    "repetition": without_sign,
    "reverse": lambda prompt: without_sign(prompt)[::-1],
    "set": lambda prompt: [*dict.fromkeys(without_sign(prompt)), 1],
    "solve-equation": solved,
    "stack-manipulation": stack,
}


def strings(examples: Examples) -> list[tuple[list[int], list[int]]]:
    """The prompt and the answer of each sequence; answers stand together, and nothing is read or written elsewhere."""
    found = []
    for tokens, targets in zip(examples.tokens.tolist(), examples.targets.tolist(), strict=True):
        asked = [place for place, target in enumerate(targets) if target != IGNORED]
        assert asked == list(range(asked[0], asked[-1] + 1))
        assert not any(tokens[asked[0] + 1 :]), "the answer itself is never read"
        found.append((tokens[: asked[0] + 1], [targets[place] for place in asked]))
    return found


def inputs(language: str, prompt: list[int]) -> int:
    """Symbols of a prompt."""
    return len(prompt) - (1 if LANGUAGES[language].sign else 0)


@pytest.mark.parametrize("language", BY_HAND)
def test_a_language_is_answered_as_by_hand(language: str) -> None:
    task = task_of(FormalLanguage(name=language, longest=LONG), 1)  # type: ignore[arg-type]
    least = SHORTEST.get(language, 1)
    drawn = [task.training(3, np.arange(400))]
    drawn += [task.test(length, np.arange(60)) for length in (*range(least, 13), 99, 100)]
    for examples in drawn:
        assert examples.tokens.min() >= 0
        assert max(examples.tokens.max(), examples.targets.max()) < task.vocabulary
        for prompt, answer in strings(examples):
            assert 0 not in prompt
            assert answer == BY_HAND[language](prompt)


@pytest.mark.parametrize("language", BY_HAND)
def test_lengths_are_those_asked_for_the_first_and_the_last_among_them(language: str) -> None:
    task = task_of(FormalLanguage(name=language, shortest=4, longest=9), 1)  # type: ignore[arg-type]
    odd, even = language == "modular-arithmetic", language == "missing-duplicate"

    def real(length: int) -> int:
        """One symbol less where there is no string of this length."""
        return length - ((odd and length % 2 == 0) or (even and length % 2 == 1))

    drawn = {inputs(language, prompt) for prompt, _ in strings(task.training(0, np.arange(300)))}
    assert drawn == {real(length) for length in range(4, 10)}
    for length in (8, 9):
        assert {inputs(language, prompt) for prompt, _ in strings(task.test(length, np.arange(9)))} == {real(length)}
    assert task.lengths()[0] == 10, "the first length that was not trained on"


@pytest.mark.parametrize("language", BY_HAND)
def test_a_sequence_is_the_same_whatever_is_drawn_with_it(language: str) -> None:
    task = task_of(FormalLanguage(name=language), 1)  # type: ignore[arg-type]
    whole, part = task.training(5, np.arange(64)), task.training(5, np.arange(40, 50))
    assert np.array_equal(part.tokens, whole.tokens[40:50])
    assert np.array_equal(part.targets, whole.targets[40:50])
    assert not np.array_equal(whole.tokens, task.training(6, np.arange(64)).tokens)
    assert len({tuple(row) for row in whole.tokens.tolist()}) > 50


def test_operators_are_drawn_at_every_length() -> None:
    task = task_of(FormalLanguage(name="modular-arithmetic"), 1)
    for length in (5, 7, 5):
        tokens = task.test(length, np.arange(40)).tokens
        assert {1, 2, 3, 4} <= set(tokens.flatten().tolist())


def test_a_stack_and_a_set_are_judged_up_to_the_sign_that_ends_them() -> None:
    for language in ("stack-manipulation", "set"):
        task = task_of(FormalLanguage(name=language), 1)  # type: ignore[arg-type]
        answers = [answer for _, answer in strings(task.training(0, np.arange(200)))]
        assert all(answer[-1] == 1 and 1 not in answer[:-1] for answer in answers)
    stacks = task_of(FormalLanguage(name="stack-manipulation"), 1).test(3, np.arange(400))
    assert [1] in [answer for _, answer in strings(stacks)], "an empty stack has an answer, too"


def test_guessing_is_as_good_as_the_chance_that_is_stated() -> None:
    """The most frequent answer is about as frequent as chance, where there is no better guess."""
    for language in ("parity", "even-pairs", "cycle-navigation", "solve-equation", "missing-duplicate"):
        task = task_of(FormalLanguage(name=language), 1)  # type: ignore[arg-type]
        targets = task.test(21, np.arange(4000)).targets
        counts = Counter(targets[targets != IGNORED].tolist())
        assert abs(counts.most_common(1)[0][1] / counts.total() - task.chance) < 0.03, language
