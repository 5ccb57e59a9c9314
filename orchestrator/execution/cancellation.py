"""Ends runs on request, whoever carries them out."""

import time
from collections.abc import Sequence

from orchestrator.errors import InputError
from xlstm.run.directory import RunDirectory
from xlstm.run.executor import ENDING_SECONDS
from xlstm.run.records import State

PATIENCE_SECONDS = ENDING_SECONDS + 60.0
"""For whoever holds the runs to see the request, and for the trainers to write their checkpoints."""


def cancel(runs: Sequence[RunDirectory], patience: float = PATIENCE_SECONDS) -> list[RunDirectory]:
    """Ask for the end of every run that waits or trains, and see it happen; returns the runs cancelled.

    A run that nobody holds is cancelled at once: a controller that has it in its queue sees the request before it
    starts it. InputError naming the runs that are still held when the patience is over.
    """
    asked = [run for run in runs if run.status().state.open]
    for run in asked:
        run.request_cancel()
    deadline = time.monotonic() + patience
    waiting = list(asked)
    while waiting and time.monotonic() < deadline:
        for run in [run for run in waiting if not run.is_held()]:
            if run.status().state.open:
                run.set_state(State.CANCELLED, "cancelled; submit it again to continue")
            waiting.remove(run)
        if waiting:
            time.sleep(0.2)
    if waiting:
        named = ", ".join(run.run_id for run in waiting)
        raise InputError(f"still held after {patience:.0f} s, look at their logs: {named}")
    return asked
