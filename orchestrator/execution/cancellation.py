"""Ends runs on request, whoever carries them out."""

import time
from collections.abc import Sequence

from orchestrator.errors import InputError
from xlstm.run.directory import RunDirectory
from xlstm.run.executor import ENDING_SECONDS
from xlstm.run.records import State

PATIENCE_SECONDS = ENDING_SECONDS + 60.0
"""For whoever holds the runs to see the request, and for the trainers to write their checkpoints."""


def cancel(
    runs: Sequence[RunDirectory], patience: float = PATIENCE_SECONDS, *, controlled: bool = False
) -> list[RunDirectory]:
    """Ask for the end of every run that waits or trains, and see it happen; returns the runs that it ended.

    `runs` are in the order in which they are asked: a run that starts when another has ended comes before that one, or
    its controller, which sees the other end, would start it. `controlled` says that a controller carries them out: then
    all are asked that are not complete, as it may try again what has failed, and start what it has not touched yet.

    A run that nobody holds is cancelled at once: a controller that has it in its queue sees the request before it
    starts it. InputError naming the runs that are still held when the patience is over.
    """
    states = {run: run.status().state for run in runs}
    # Somebody may have taken a run on and not yet started it, as forks wait for their trunk.
    planned = {run for run, one in states.items() if one is State.PLANNED and (controlled or run.spec_file.exists())}
    waiting = [run for run, state in states.items() if state.open or run in planned]
    for run, state in states.items():
        if run in waiting or (controlled and state is not State.COMPLETED):
            run.request_cancel()
    asked = list(waiting)
    deadline = time.monotonic() + patience
    while waiting and time.monotonic() < deadline:
        for run in [run for run in waiting if not run.is_held()]:
            state = run.status().state
            if run.spec_file.exists() and (state.open or state is State.PLANNED):
                run.set_state(State.CANCELLED, "cancelled; submit it again to continue")
            waiting.remove(run)
        if waiting:
            time.sleep(0.2)
    if waiting:
        named = ", ".join(run.run_id for run in waiting)
        raise InputError(f"still held after {patience:.0f} s, look at their logs: {named}")
    return [run for run in asked if run.status().state is not State.COMPLETED]
