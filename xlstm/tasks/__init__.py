"""Tasks whose sequences are generated: what goes in, what comes out, and how an answer is judged.

`settings` holds what a sweep may say of each, `contract` what training and evaluation ask of it. Imports without torch.
"""

from xlstm.tasks.contract import Examples, Task
from xlstm.tasks.formal_languages import FormalLanguageTask
from xlstm.tasks.listops import ListOpsTask
from xlstm.tasks.mqar import RecallTask
from xlstm.tasks.nearest_neighbor import NearestNeighborTask
from xlstm.tasks.settings import FormalLanguage, ListOps, NearestNeighbor, TaskSettings

__all__ = ["Examples", "Task", "task_of"]


def task_of(settings: TaskSettings, context_length: int) -> Task:
    """The task of its settings; `context_length` is that of the data, which `mqar` alone is free to choose."""
    if isinstance(settings, FormalLanguage):
        return FormalLanguageTask(settings)
    if isinstance(settings, ListOps):
        return ListOpsTask(settings)
    if isinstance(settings, NearestNeighbor):
        return NearestNeighborTask(settings)
    return RecallTask(settings, context_length)
