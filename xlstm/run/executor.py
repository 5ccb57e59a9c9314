"""What the controller asks of an engine: submit, adopt, poll, cancel. Nothing of it is a verdict.

An executor carries jobs to machines and tells whether they still exist. How a run ended is read from its directory.

Whether a run is tried again is one policy for every engine. Failures are few, and the same traceback twice ends it.
Preemptions and lost machines are free while checkpoints advance; a run whose attempts leave no new one, several in a
row, is set aside, as it would be tried for ever. What is counted are the attempts of one submission, whose tokens all
begin with its own, and a dot: whoever goes on after the death of who submitted the run goes on counting, and submitting
a run that has ended counts anew.
"""

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from xlstm.run.directory import RunDirectory
from xlstm.run.records import Fork, Launch, State, Status, Verdict, write_json
from xlstm.run.spec import RunSpec

GRACE_SECONDS = 600.0
"""What trainers are left between SIGTERM and SIGKILL: time to write a checkpoint, on every engine."""
ENDING_SECONDS = GRACE_SECONDS + 60.0
"""What a supervisor is left: the grace of its trainers, and time to leave a verdict and give back the lease."""
MAXIMUM_FAILURES = 3
"""Failed attempts of one submission after which a run is set aside."""
MAXIMUM_STANDSTILLS = 5
"""Attempts in a row without a new checkpoint after which a run is set aside."""
SET_ASIDE = "set aside"
"""How the reason of a run begins for which no further attempt is made."""


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

    def has_room(self, spec: RunSpec) -> bool:
        """Whether a job of such a run would start at once, nothing else being waited for."""
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


def submission_of(token: str) -> str:
    """The submission to which a job or an attempt belongs, by its token."""
    return token.partition(".")[0]


def current_submission(run: RunDirectory) -> str:
    """The submission that carries the run, where it was submitted and has not ended; a new one otherwise."""
    launch = run.latest_launch() if run.status().state.open else None
    return submission_of(launch.token) if launch is not None else uuid.uuid4().hex


def why_set_aside(
    run: RunDirectory,
    submission: str,
    never_began: Sequence[str] = (),
    remedy: str = "checkpoint more often (`checkpoint_every`)",
) -> str | None:
    """Why no further attempt of a submission is made, or None where another one is worth it.

    `never_began` holds what became of supervisors that ended before they took the run, so that its directory tells
    nothing of them: failures as well. `remedy` is what a person can do about attempts that leave no checkpoint.
    """
    attempts = list(_attempts(run, submission))
    failures = [verdict for _, verdict in attempts if verdict is not None and verdict.state is State.FAILED]
    causes = [verdict.traceback for verdict in failures if verdict.traceback]
    reasons = [*never_began, *(verdict.reason for verdict in failures)]
    if len(set(causes)) < len(causes):
        return f"{SET_ASIDE} after the same error twice: {reasons[-1]}"
    if len(reasons) >= MAXIMUM_FAILURES:
        return f"{SET_ASIDE} after {len(reasons)} failed attempts: {reasons[-1]}"
    recent = attempts[-MAXIMUM_STANDSTILLS:]
    if len(recent) < MAXIMUM_STANDSTILLS:
        return None
    left = [*map(run.checkpoint_mark, run.checkpoint_steps()), *run.evaluations.glob("*")]
    saved = [path.stat().st_mtime for path in left if path.exists()]  # an evaluation, or sums of one that was begun
    if any(moment >= recent[0][0].started for moment in saved):
        return None
    return f"{SET_ASIDE} after {MAXIMUM_STANDSTILLS} attempts in a row without a new checkpoint; {remedy}"


def is_settled(status: Status) -> bool:
    """Whether another attempt would end as the last one did: the run diverged, was pruned, or was set aside."""
    return status.state in (State.DIVERGED, State.PRUNED) or (
        status.state is State.FAILED and status.reason.startswith(SET_ASIDE)
    )


def judge_from_outside(run: RunDirectory, state: State, reason: str) -> None:
    """Give the latest attempt the verdict that nobody left, or that ranks which were left alone got wrong.

    The state of the run follows. The time of a verdict that nobody left stays open: the attempt lasted until its last
    row of metrics.
    """
    attempt = run.status().attempt
    left = run.verdict(attempt)
    if left is None or left.state is not state:
        verdict = Verdict(state=state, reason=reason, time=left.time if left is not None else 0.0)
        if left is not None:
            verdict = verdict.model_copy(update={"seconds": left.seconds})
        write_json(run.verdict_file(attempt), verdict.model_dump(mode="json"))
    run.set_state(state, reason)


def _attempts(run: RunDirectory, submission: str) -> Iterator[tuple[Launch, Verdict | None]]:
    """The attempts of a submission, oldest first, with the verdicts of those that left one."""
    for number in range(1, run.status().attempt + 1):
        launch = run.launch(number)
        if launch is not None and f"{launch.token}.".startswith(f"{submission}."):
            yield launch, run.verdict(number)
