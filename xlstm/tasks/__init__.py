"""Tasks whose sequences are generated, or read as they are: what goes in, what comes out, how answers are judged.

`settings` holds what a sweep may say of each, `contract` what training and evaluation ask of it. Imports without torch.
"""

from collections.abc import Callable
from typing import Any

from xlstm.tasks.contract import Examples, Task
from xlstm.tasks.formal_languages import FormalLanguageTask
from xlstm.tasks.listops import ListOpsTask
from xlstm.tasks.long_range import BytesTask, PathfinderTask, PixelsTask, RetrievalTask
from xlstm.tasks.mqar import RecallTask
from xlstm.tasks.nearest_neighbor import NearestNeighborTask
from xlstm.tasks.settings import FormalLanguage, Recall, TaskSettings
from xlstm.tasks.small_pathfinder import SmallPathfinderTask

__all__ = ["Examples", "Task", "task_of"]

_TASKS: dict[str, Callable[[Any], Task]] = {
    "nearest-neighbor": NearestNeighborTask,
    "listops": ListOpsTask,
    "pixels": PixelsTask,
    "color-pixels": PixelsTask,
    "pathfinder": PathfinderTask,
    "bytes": BytesTask,
    "retrieval": RetrievalTask,
    "small-pathfinder": SmallPathfinderTask,
}
"""The tasks that are neither formal languages nor `mqar`."""


def task_of(settings: TaskSettings, context_length: int) -> Task:
    """The task of its settings; `context_length` is that of the data, which `mqar` alone is free to choose."""
    if isinstance(settings, FormalLanguage):
        return FormalLanguageTask(settings)
    if isinstance(settings, Recall):
        return RecallTask(settings, context_length)
    return _TASKS[settings.name](settings)
