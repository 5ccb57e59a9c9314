"""Associative recall against a dictionary, and what its generator has to keep apart."""

from collections import Counter

import numpy as np
import pytest

from xlstm.models import IGNORED
from xlstm.randomness import Draws
from xlstm.tasks import task_of
from xlstm.tasks.settings import Recall


@pytest.mark.parametrize(
    ("length", "pairs", "symbols", "fill"), [(64, 4, 8192, True), (16, 4, 18, False), (256, 64, 300, True)]
)
def test_each_key_is_asked_once_and_answered_by_its_value(length: int, pairs: int, symbols: int, fill: bool) -> None:
    task = task_of(Recall(name="mqar", pairs=pairs, symbols=symbols, fill_blanks=fill), length)
    for examples in (task.training(1, np.arange(100)), task.test(length, np.arange(100)), task.test(512, np.arange(9))):
        for tokens, targets in zip(examples.tokens.tolist(), examples.targets.tolist(), strict=True):
            known = dict(zip(tokens[: 2 * pairs : 2], tokens[1 : 2 * pairs : 2], strict=True))
            assert len(known) == len(set(known.values())) == pairs
            assert all(0 < key < symbols // 2 <= value < symbols for key, value in known.items())
            asked = [place for place, target in enumerate(targets) if target != IGNORED]
            assert all(place >= 2 * pairs and place % 2 == 0 for place in asked)
            assert sorted(tokens[place] for place in asked) == sorted(known), "slots are drawn without replacement"
            assert all(targets[place] == known[tokens[place]] for place in asked)
            blanks = [token for place, token in enumerate(tokens) if place >= 2 * pairs and place not in asked]
            assert fill or not any(blanks)


def test_queries_lie_near_or_anywhere_as_the_power_says() -> None:
    def first_slots(power: float) -> list[float]:
        task = task_of(Recall(name="mqar", pairs=1, slot_power=power), 34)
        places = np.nonzero(task.training(0, np.arange(20000)).targets != IGNORED)[1]
        counts = Counter(((places - 2) // 2).tolist())
        return [counts[slot] / 20000 for slot in range(16)]

    weights = np.arange(1, 17) ** (0.1 - 1)
    assert np.allclose(first_slots(0.1), weights / weights.sum(), atol=0.015)
    assert np.allclose(first_slots(1.0), 1 / 16, atol=0.01)


def test_filled_blanks_are_any_symbol_and_the_same_for_the_same_seed() -> None:
    task = task_of(Recall(name="mqar", pairs=1, symbols=64), 32)
    examples = task.training(7, np.arange(500))
    assert set(examples.tokens[:, 2:].flatten().tolist()) == set(range(64))
    assert np.array_equal(task.training(7, np.arange(100, 120)).tokens, examples.tokens[100:120])
    assert not np.array_equal(task.test(32, np.arange(500)).tokens, examples.tokens)


@pytest.mark.parametrize(
    ("length", "pairs", "symbols", "said"),
    [(63, 4, 8192, "is odd"), (64, 17, 8192, "do not fit"), (64, 4, 8, "hold 3 keys")],
)
def test_what_does_not_fit_is_said(length: int, pairs: int, symbols: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        task_of(Recall(name="mqar", pairs=pairs, symbols=symbols), length)


@pytest.mark.parametrize("bound", [2, 31, 32, 200, 256])
def test_few_symbols_are_drawn_as_many_are(bound: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small permutations are looked up as wholes, and are those that are computed value by value."""
    count = min(bound, 12)
    looked_up = Draws(3, 1, np.arange(50)).distinct(bound, count)
    monkeypatch.setattr("xlstm.randomness._SMALL", 0)
    assert np.array_equal(looked_up, Draws(3, 1, np.arange(50)).distinct(bound, count))
