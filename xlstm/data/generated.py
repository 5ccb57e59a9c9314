"""Data of tasks: sequences that are generated, or read from files as they are. Nothing is prepared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from xlstm.data.batches import Batch
from xlstm.data.locations import located
from xlstm.run.identity import digest, without_later_defaults
from xlstm.run.spec import Data
from xlstm.tasks import Examples, Task, task_of
from xlstm.tasks.long_range import LongRangeTask, revision_of
from xlstm.tasks.settings import REVISION, AnyTask, TaskSettings

_SETTINGS: TypeAdapter[TaskSettings] = TypeAdapter(AnyTask)


def declare_task(
    name: str,
    fields: Mapping[str, Any],
    context_length: int | None,
    paths: Sequence[str] = (),
    revision: str | None = None,
) -> tuple[Data, int]:
    """The data ring of a task with some of its fields, and the model's vocabulary size.

    `context_length` is None for tasks whose lengths decide it. Of a task that reads files, the revision is that of the
    files in `paths`; where there are none, a stated one is taken at its word, so that no file is needed to plan.
    ValueError where there are no such sequences, or no such files.
    """
    settings = _SETTINGS.validate_python({"name": name, **fields})
    task = task_of(settings, context_length or 0)
    if task.reads and (paths or revision is None):
        revision = _revision(settings, tuple(map(located, paths)))
    data = Data(
        corpus=name,
        revision=revision if task.reads and revision else REVISION,
        tokenizer="symbols",
        context_length=task.context_length,
        generated=settings,
    )
    return data, task.vocabulary


@lru_cache(maxsize=64)
def _revision(settings: TaskSettings, paths: tuple[str, ...]) -> str:
    """Of the files of a task; computed once for the runs of a sweep."""
    task = task_of(settings, 0)
    assert isinstance(task, LongRangeTask)
    return revision_of(task.find(paths))


@dataclass(frozen=True)
class GeneratedData:
    """The sequences of a task, in the place of a corpus that was prepared."""

    task: Task
    fingerprint: str
    """Eight hex digits of the task, its fields and the version of the generators."""

    @classmethod
    def open(cls, data: Data, paths: Sequence[str] = ()) -> "GeneratedData":
        """ValueError for data that are no task's, and where the files of one that reads are not in `paths`."""
        if data.task is None:
            raise ValueError(f"{data.corpus} is a corpus, and not generated")
        task = data.task.opened(tuple(map(located, paths)), data.revision)
        return cls(task, digest(without_later_defaults(data, data.model_dump(mode="json"))))

    @property
    def path(self) -> str:
        """Where they lie, for people."""
        return "this program"

    @property
    def vocabulary(self) -> int:
        return self.task.vocabulary

    def training(self, seed: int, numbers: NDArray[np.int64]) -> Batch:
        """The training sequences of these numbers."""
        return _batch(self.task.training(seed, numbers))

    def test(self, length: int, numbers: NDArray[np.int64]) -> Batch:
        """The test sequences of these numbers, all of one length."""
        return _batch(self.task.test(length, numbers))


def _batch(examples: Examples) -> Batch:
    return Batch(examples.tokens, examples.targets, np.zeros(examples.targets.shape, dtype=bool))
