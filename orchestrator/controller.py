"""From a plan to finished runs: launch what is missing, retry what is worth it, and tell whoever watches.

The controller keeps nothing that the run directories and the engine do not hold: killed at any moment, the next one
reads them, adopts the jobs that live on, and goes on. Completed runs are not touched. A run that another launcher holds
is left to it and watched: what the other completes is complete, what it lets go of is taken on. Failures are retried a
few times (the same traceback twice ends it); preemptions and lost machines are free; divergence is final.
"""

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.executor import Executor, Handle, Job, JobState
from xlstm.run.outcome import adopt
from xlstm.run.records import Fork, Result, State, Status
from xlstm.run.spec import RunSpec

MAXIMUM_FAILURES = 3
"""Failed attempts of one run, within one submission, after which it is set aside."""
POLL_SECONDS = 0.5
"""States without a result in which a submission leaves a run that ended under it."""


class Happening(StrEnum):
    """What may happen to a run."""

    ALREADY_COMPLETE = "already complete"
    SUBMITTED = "submitted"
    STARTED = "started"
    RETRIED = "retried"
    HELD = "held by another launcher"
    ADOPTED = "adopted"
    ENDED = "ended"


@dataclass(frozen=True)
class Event:
    """Something that happened to a run, for progress displays and logs."""

    run: RunDirectory
    what: Happening
    status: Status


@dataclass(frozen=True)
class PlannedRun:
    """A run as the controller takes it: its specification, where it forks from, and who forks from it."""

    spec: RunSpec
    fork: Fork | None = None
    checkpoint_at: tuple[int, ...] = ()

    @property
    def run_id(self) -> str:
        return self.spec.run_id


@dataclass
class _Progress:
    planned: PlannedRun
    run: RunDirectory
    handle: Handle | None = None
    started: bool = False
    attempts_before: int = 0
    """Attempts of the run when its job was submitted: a later one of another token is another launcher's."""
    held: bool = False
    """Whether another launcher was seen to hold the run, and is waited for."""
    failures: list[str] = field(default_factory=list)
    finished: bool = False


@dataclass
class Controller:
    """Carries out runs of one sweep on one executor.

    `watch` is called for every event; `tick` about twice a second, for a display and for the shipping of metrics.
    """

    workspace: Workspace
    executor: Executor
    runs: Sequence[PlannedRun]
    watch: Callable[[Event], None] = lambda event: None
    tick: Callable[[], None] = lambda: None
    maximum_failures: int = MAXIMUM_FAILURES

    def __post_init__(self) -> None:
        self._progress = {
            planned.run_id: _Progress(planned, self.workspace.run(planned.run_id)) for planned in self.runs
        }

    def __call__(self) -> dict[str, Status]:
        """Run until nothing is left to do; returns the status of every run.

        On KeyboardInterrupt the trainers write checkpoints, everything ends, and the interrupt goes on.
        """
        for progress in self._progress.values():
            self._admit(progress)
        self._adopt()
        ticked = -POLL_SECONDS
        try:
            while any(not progress.finished for progress in self._progress.values()):
                self._cancel_requested()
                self._submit_ready()
                self._poll()
                if time.monotonic() - ticked >= POLL_SECONDS:
                    self.tick()
                    ticked = time.monotonic()
                self.executor.rest(POLL_SECONDS)
        except BaseException:
            self.executor.cancel(list(self._handles()))
            raise
        finally:
            self.tick()
        return {run_id: progress.run.status() for run_id, progress in self._progress.items()}

    def _admit(self, progress: _Progress) -> None:
        progress.run.create(progress.planned.spec)
        progress.run.withdraw_cancel()
        if not progress.run.is_held():
            adopt(progress.run, progress.planned.spec)
        if progress.run.is_complete(progress.planned.spec):
            self._finish_complete(progress, Happening.ALREADY_COMPLETE)

    def _adopt(self) -> None:
        """Take on the jobs of an earlier controller that live on, and end those that nobody needs any more."""
        superfluous = []
        for handle in self.executor.adopt([progress.run for progress in self._progress.values()]):
            progress = self._progress[handle.run.run_id]
            if progress.finished or progress.handle is not None:
                superfluous.append(handle)
            else:
                progress.handle, progress.attempts_before = handle, progress.run.status().attempt
                self._tell(progress, Happening.ADOPTED)
        self.executor.cancel(superfluous)

    def _submit_ready(self) -> None:
        ready = [
            progress
            for progress in self._progress.values()
            if not progress.finished
            and progress.handle is None
            and self._may_start(progress.planned)
            and not self._leave_to_another(progress)
        ]
        jobs = [
            Job(
                run=progress.run,
                spec=progress.planned.spec,
                token=uuid.uuid4().hex,
                fork=self._fork(progress.planned),
                checkpoint_at=progress.planned.checkpoint_at,
            )
            for progress in ready
        ]
        for progress in ready:
            progress.run.queue(f"waiting for {self.executor.name}")
            progress.attempts_before = progress.run.status().attempt
        for progress, handle in zip(ready, self.executor.submit(jobs), strict=True):
            progress.handle, progress.started = handle, False
            self._tell(progress, Happening.SUBMITTED)

    def _leave_to_another(self, progress: _Progress) -> bool:
        """Whether another launcher holds the run, or has settled it meanwhile."""
        if progress.run.is_held():
            if not progress.held:
                progress.held = True
                self._tell(progress, Happening.HELD)
            return True
        if progress.held:
            progress.held = False
            if progress.run.is_complete(progress.planned.spec):
                self._finish_complete(progress, Happening.ENDED)
            elif progress.run.status().state.final:
                self._finish(progress, Happening.ENDED)
        return progress.finished

    def _may_start(self, planned: PlannedRun) -> bool:
        """A fork waits for the checkpoint it starts from, or for its trunk to end without one."""
        if planned.fork is None:
            return True
        trunk = self._progress.get(planned.fork.run_id)
        if trunk is None or trunk.finished:
            return True
        return trunk.run.has_checkpoint(planned.fork.step)

    def _fork(self, planned: PlannedRun) -> Fork | None:
        """Where the run forks off; None, so that it trains alone, if its trunk ended without that checkpoint."""
        fork = planned.fork
        return fork if fork and self.workspace.run(fork.run_id).has_checkpoint(fork.step) else None

    def _cancel_requested(self) -> None:
        """End the runs whose cancellation somebody asked for; those that wait for a trunk are never submitted."""
        asked = [one for one in self._progress.values() if not one.finished and one.run.cancel_requested()]
        self.executor.cancel([one.handle for one in asked if one.handle is not None])
        for progress in asked:
            progress.run.set_state(State.CANCELLED, "cancelled; submit it again to continue")
            self._finish(progress, Happening.ENDED)

    def _poll(self) -> None:
        waiting = [progress for progress in self._progress.values() if progress.handle is not None]
        states = self.executor.poll([progress.handle for progress in waiting if progress.handle is not None])
        for progress, state in zip(waiting, states, strict=True):
            if state is JobState.RUNNING and not progress.started:
                progress.started = True
                self._tell(progress, Happening.STARTED)
            elif state in (JobState.ENDED, JobState.LOST):
                self._judge(progress, machine_lost=state is JobState.LOST)

    def _judge(self, progress: _Progress, *, machine_lost: bool) -> None:
        """Decide, from the run directory, what the end of a job means."""
        assert progress.handle is not None
        status = progress.run.status()
        launch = progress.run.launch(status.attempt)
        ours = {status.lease.token if status.lease else None, launch.token if launch else None}
        if progress.run.is_complete(progress.planned.spec):
            self._finish_complete(progress, Happening.ENDED)
        elif progress.handle.token not in ours and (status.attempt > progress.attempts_before or status.lease):
            # Another launcher was first: its attempt is not ours to judge.
            progress.handle, progress.held = None, True
            self._tell(progress, Happening.HELD)
        elif status.state is State.COMPLETED or status.state.final:
            self._finish(progress, Happening.ENDED)
        elif machine_lost:
            # Ranks that were left alone may have called it a failure. It was the machine's, not the run's.
            progress.run.set_state(State.PREEMPTED, "a machine was lost")
            self._again(progress)
        elif status.state is State.PREEMPTED:
            self._again(progress)
        else:
            if progress.handle.token not in ours:
                log = progress.run.supervisor_log
                progress.run.set_state(State.FAILED, f"the supervisor ended before it began; see {log}")
            elif status.state is not State.FAILED:
                # Whoever was to write the verdict is gone: killed between two lines.
                progress.run.set_state(State.FAILED, "the supervisor ended without a verdict")
            self._judge_failure(progress, progress.run.status())

    def _judge_failure(self, progress: _Progress, status: Status) -> None:
        verdict = progress.run.verdict(status.attempt)
        cause = verdict.traceback if verdict and verdict.traceback else ""
        repeated = bool(cause) and cause in progress.failures
        progress.failures.append(cause)
        if repeated or len(progress.failures) >= self.maximum_failures:
            why = "the same error twice" if repeated else f"{len(progress.failures)} failed attempts"
            progress.run.set_state(State.FAILED, f"set aside after {why}: {status.reason}")
            self._finish(progress, Happening.ENDED)
        else:
            self._again(progress)

    def _again(self, progress: _Progress) -> None:
        self._tell(progress, Happening.RETRIED)
        progress.handle = None

    def _finish_complete(self, progress: _Progress, what: Happening) -> None:
        if progress.run.status().state is not State.COMPLETED and not progress.run.is_held():
            # Killed after the result and before the verdict: there is nothing left to do.
            progress.run.set_state(State.COMPLETED)
        self._finish(progress, what)

    def _finish(self, progress: _Progress, what: Happening) -> None:
        progress.finished, progress.handle = True, None
        self._tell(progress, what)

    def _tell(self, progress: _Progress, what: Happening) -> None:
        self.watch(Event(progress.run, what, progress.run.status()))

    def _handles(self) -> Iterator[Handle]:
        return (progress.handle for progress in self._progress.values() if progress.handle is not None)


def answers(result: Result | None, spec: RunSpec) -> bool:
    """Whether a result is there and measured as the specification asks."""
    return result is not None and result.answers(spec)
