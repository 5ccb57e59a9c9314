"""Nearest-neighbour search against a loop that compares one vector after the other."""

import numpy as np

from xlstm.models import IGNORED
from xlstm.tasks import task_of
from xlstm.tasks.settings import NearestNeighbor


def test_the_answer_is_the_value_of_the_nearest_vector_so_far() -> None:
    task = task_of(NearestNeighbor(name="nearest-neighbor", longest=20), 0)
    for examples in (task.training(1, np.arange(50)), task.test(20, np.arange(50)), task.test(40, np.arange(9))):
        assert examples.tokens.dtype == examples.targets.dtype == np.float32
        assert np.allclose((examples.tokens[..., :2] ** 2).sum(-1), 1, atol=1e-6)
        for vectors, targets in zip(examples.tokens.astype(float), examples.targets, strict=True):
            assert (targets[0], vectors[0, 2]) == (IGNORED, 0)
            for place in range(1, len(targets)):
                distances = [np.hypot(*(vectors[i, :2] - vectors[0, :2])) for i in range(1, place + 1)]
                assert targets[place] == np.float32(vectors[1 + int(np.argmin(distances)), 2])
    alike = task.training(1, np.arange(50)).tokens[7] == task.training(1, np.array([7])).tokens[0]
    assert alike.all()
    assert not np.array_equal(task.training(1, np.arange(2)).tokens, task.training(2, np.arange(2)).tokens)
