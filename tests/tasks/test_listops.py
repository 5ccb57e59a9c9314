"""ListOps against a parser that reads one token after the other."""

import hashlib
from statistics import median

import numpy as np
import pytest

from xlstm.models import IGNORED
from xlstm.tasks import task_of
from xlstm.tasks.settings import ListOps

OPERATORS = [min, max, lambda values: int(median(values)), lambda values: sum(values) % 10]


def parsed(tokens: list[int]) -> tuple[int, int]:
    """The value and the depth of the lists, all tokens read."""
    stack: list[list[int]] = [[]]
    deepest = 0
    for token in tokens:
        if token <= 10:
            stack[-1].append(token - 1)
        elif token < 15:
            stack.append([token])
            deepest = max(deepest, len(stack) - 1)
        else:
            operator, *values = stack.pop()
            assert 2 <= len(values) <= 10
            stack[-1].append(OPERATORS[operator - 11](values))
    ((value,),) = stack
    return value, deepest


@pytest.mark.parametrize(("shortest", "longest"), [(4, 30), (30, 90), (501, 1999)])
def test_lists_have_the_value_of_a_parser_and_a_length_within_the_bounds(shortest: int, longest: int) -> None:
    task = task_of(ListOps(name="listops", shortest=shortest, longest=longest), 1)
    drawn = [task.training(1, np.arange(40)), task.test(longest, np.arange(40))]
    lengths, depths, operators = [], [], set()
    for examples in drawn:
        for tokens, targets in zip(examples.tokens.tolist(), examples.targets.tolist(), strict=True):
            (last,) = [place for place, target in enumerate(targets) if target != IGNORED]
            assert not any(tokens[last + 1 :])
            value, depth = parsed(tokens[: last + 1])
            assert targets[last] == 1 + value
            lengths.append(last + 1)
            depths.append(depth)
            operators |= {token for token in tokens if 11 <= token < 15}
    assert shortest <= min(lengths) <= max(lengths) <= longest
    assert max(depths) <= 10
    assert operators == {11, 12, 13, 14}
    assert np.array_equal(task.training(1, np.arange(10, 15)).tokens, drawn[0].tokens[10:15])
    assert not np.array_equal(drawn[0].tokens, drawn[1].tokens)


def test_lists_are_those_of_the_generator_that_made_whole_batches_in_numpy() -> None:
    """Digests were recorded with it: runs of its time go on with the sequences they began with."""
    recorded = {
        (4, 30, 300): "7a2320dc492de35b",
        (10, 120, 300): "5ee10d0a8021743c",
        (500, 2000, 12): "71bfe7aec155aff3",
    }
    for (shortest, longest, count), digest in recorded.items():
        task = task_of(ListOps(name="listops", shortest=shortest, longest=longest), 1)
        made = hashlib.sha256()
        for examples in (
            task.training(3, np.arange(count)),
            task.training(3, np.arange(count) + 10**6),
            task.test(2 * longest, np.arange(count)),
        ):
            made.update(examples.tokens.tobytes() + examples.targets.tobytes())
        assert made.hexdigest()[:16] == digest
