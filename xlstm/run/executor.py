"""What the controller asks of an engine: submit, adopt, poll, cancel. Nothing of it is a verdict.

An executor carries jobs to machines and tells whether they still exist. How a run ended is read from its directory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from xlstm.run.directory import RunDirectory
from xlstm.run.records import Fork
from xlstm.run.spec import RunSpec

GRACE_SECONDS = 600.0
"""What trainers are left between SIGTERM and SIGKILL: time to write a checkpoint, on every engine."""
ENDING_SECONDS = GRACE_SECONDS + 60.0
"""What a supervisor is left: the grace of its trainers, and time to leave a verdict and give back the lease."""


class JobState(StrEnum):
    """Where a job is, as its engine knows it."""

    WAITING = "WAITING"
    RUNNING = "RUNNING"
    ENDED = "ENDED"
    LOST = "LOST"
    """Ended with a machine that carried it: whatever its directory says, the run is not to blame."""


@dataclass(frozen=True)
class PlannedRun:
    """A run as a plan hands it to whoever carries it out: where it forks from, and where others fork from it."""

    spec: RunSpec
    fork: Fork | None = None
    checkpoint_at: tuple[int, ...] = ()

    @property
    def run_id(self) -> str:
        return self.spec.run_id


@dataclass(frozen=True)
class Job:
    """One attempt to carry out: a run, the token its lease will carry, and what the plan shares between runs."""

    run: RunDirectory
    spec: RunSpec
    token: str
    fork: Fork | None = None
    checkpoint_at: tuple[int, ...] = ()


@dataclass(frozen=True)
class Handle:
    """A submitted job: enough to find it again from another process."""

    run: RunDirectory
    token: str
    job: str


class Executor(Protocol):
    """One engine. Every call handles all its jobs at once: one query however many runs."""

    name: str

    def submit(self, jobs: Sequence[Job]) -> list[Handle]:
        """Queue jobs in order; returns one handle each, at once."""
        ...

    def adopt(self, runs: Sequence[RunDirectory]) -> list[Handle]:
        """Jobs of these runs that outlived the controller that submitted them."""
        ...

    def poll(self, handles: Sequence[Handle]) -> list[JobState]:
        """The state of each job."""
        ...

    def rest(self, seconds: float) -> None:
        """Wait so long, or until a job has ended, where the engine tells."""
        ...

    def cancel(self, handles: Sequence[Handle], *, grace_seconds: float = ENDING_SECONDS) -> None:
        """End the jobs: trainers are asked to write a checkpoint, and killed when the grace is over."""
        ...
