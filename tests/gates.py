"""Gates at which trainers wait: a test then acts on a run where it stands, whatever the pace of the machine.

A gate is a file of the workspace. Trainers look for it before each step, where `install` was called in their process:
by `gated/sitecustomize.py`, or by the tests that start ranks themselves.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from xlstm.run.directory import RunDirectory, Workspace


def _gate(place: Workspace | RunDirectory, step: int) -> Path:
    if isinstance(place, RunDirectory):
        return place.workspace.root / "gates" / place.run_id / str(step)
    return place.root / "gates" / str(step)


@contextmanager
def held_at(place: Workspace | RunDirectory, *steps: int) -> Iterator[None]:
    """Until the end, a run, or each of a workspace, waits when it has made one of these numbers of steps.

    One that is asked to stop does not, nor one that goes on from there.
    """
    for step in steps:
        _gate(place, step).parent.mkdir(parents=True, exist_ok=True)
        _gate(place, step).touch()
    try:
        yield
    finally:
        for step in steps:
            _gate(place, step).unlink(missing_ok=True)


def install() -> None:
    """Have this process, a trainer or one that forks trainers, wait at the gates."""
    from xlstm.training.attempt import _Attempt

    at_boundary = _Attempt._at_boundary

    def gated(attempt: Any) -> bool:
        step = attempt.trainer.step
        gate = _gate(attempt.run.workspace, step)
        while (
            step > attempt.began
            and gate.exists()
            and attempt.stop_signal is None
            and not attempt.watch.lease_lost.is_set()
        ):
            time.sleep(0.02)
        return at_boundary(attempt)

    _Attempt._at_boundary = gated  # type: ignore[method-assign]
