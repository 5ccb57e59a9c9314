"""From a plan to finished runs: launch what is missing, retry what is worth it, and tell whoever watches.

The controller keeps nothing that the run directories and the engine do not hold: killed at any moment, the next one
reads them, adopts the jobs that live on, and goes on. Completed runs are not touched. A run that another launcher holds
is left to it and watched: what the other completes is complete, what it lets go of is taken on. Divergence is final;
whatever else ends without a result is tried again as long as `xlstm.run.executor` finds that worth while.
"""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum

from xlstm.run.damage import set_aside
from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.executor import (
    Executor,
    Handle,
    Job,
    JobState,
    PlannedRun,
    current_submission,
    judge_from_outside,
    submission_of,
    why_set_aside,
)
from xlstm.run.json_files import DamagedFileError
from xlstm.run.outcome import adopt
from xlstm.run.records import Fork, State, Status
from xlstm.run.spec import RunSpec

POLL_SECONDS = 0.5
MOST_WAITING = 512
"""Jobs that wait at the engine at a time: the others are handed over as these start, so that a poll takes no longer
however many runs a sweep has."""
ALERT_SECONDS = 90.0
"""For so long after a request to cancel something, all runs are looked at: on a shared file system the request for one
may be seen later than that there was one."""


class Happening(StrEnum):
    """What may happen to a run."""

    ALREADY_COMPLETE = "already complete"
    SUBMITTED = "submitted"
    STARTED = "started"
    RETRIED = "retried"
    HELD = "held by another launcher"
    ADOPTED = "adopted"
    DAMAGED = "damaged"
    """A file of it was: the reason of the event's status says which, and what was done."""
    ENDED = "ended"


@dataclass(frozen=True)
class Event:
    """Something that happened to a run, for progress displays and logs."""

    run: RunDirectory
    what: Happening
    status: Status


@dataclass
class _Progress:
    planned: PlannedRun
    run: RunDirectory
    submission: str = ""
    """What the tokens of its jobs begin with."""
    handle: Handle | None = None
    started: bool = False
    attempts_before: int = 0
    """Attempts of the run when its job was submitted: a later one of another token is another launcher's."""
    held: bool = False
    """Whether another launcher was seen to hold the run, and is waited for."""
    never_began: list[str] = field(default_factory=list)
    """Why jobs ended before their supervisor took the run: its directory tells nothing of them."""
    finished: bool = False
    given_up: Status | None = None
    """How it stands where its directory cannot say so, damaged as it is."""


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
    more: Callable[[], Sequence[PlannedRun]] = lambda: ()
    """Asked for further runs whenever those before were submitted; none, when all have ended, ends it."""
    doomed: Callable[[], Mapping[str, str]] = dict
    """Asked between polls which runs are to be pruned, each with the reason."""

    def __post_init__(self) -> None:
        self._progress: dict[str, _Progress] = {}
        # A poll reads the files of what trains, however many runs wait or have ended.
        self._open: dict[str, _Progress] = {}
        self._ready: dict[str, _Progress] = {}
        self._behind: dict[str, list[_Progress]] = {}
        self._carried: dict[str, _Progress] = {}
        self._asked: int | None = None
        self._alert = 0.0

    def __call__(self) -> dict[str, Status]:
        """Run until nothing is left to do; returns the status of every run.

        On KeyboardInterrupt the trainers write checkpoints, everything ends, and the interrupt goes on.
        """
        self._take_on(self.runs)
        self._adopt()
        ticked = -POLL_SECONDS
        try:
            while True:
                self._cancel_requested()
                doomed = [(one, why) for name, why in self.doomed().items() if (one := self._open.get(name))]
                self._end(doomed, State.PRUNED)
                self._submit_ready()
                if self._take_on(self.more()):
                    self._submit_ready()
                if not self._open:
                    break
                self._poll()
                if time.monotonic() - ticked >= POLL_SECONDS:
                    self.tick()
                    ticked = time.monotonic()
                self.executor.rest(POLL_SECONDS)
        except BaseException:
            self.executor.cancel(self._handles())
            raise
        finally:
            self.tick()
        return {run_id: progress.given_up or progress.run.status() for run_id, progress in self._progress.items()}

    def _take_on(self, runs: Sequence[PlannedRun]) -> bool:
        """Have runs carried out that were not yet known; returns whether there were any."""
        new = {one.run_id: _Progress(one, self.workspace.run(one.run_id)) for one in runs}
        self._progress |= new
        self._open |= new
        for progress in new.values():
            with self._contained(progress):
                self._admit(progress)
        return bool(new)

    def _admit(self, progress: _Progress) -> None:
        """Look at a run for the first time: it is complete, ready, or behind its trunk."""

        def tell_damage(line: str) -> None:
            self.watch(Event(progress.run, Happening.DAMAGED, Status(reason=line)))

        progress.submission = current_submission(progress.run)
        if admit(progress.run, progress.planned.spec, tell_damage):
            self._finish_complete(progress, Happening.ALREADY_COMPLETE)
        elif (fork := progress.planned.fork) is not None and not self._may_start(progress.planned):
            progress.run.queue(f"waiting for step {fork.step} of {fork.run_id}")
            self._behind.setdefault(fork.run_id, []).append(progress)
        else:
            self._ready[progress.run.run_id] = progress

    def _adopt(self) -> None:
        """Take on the jobs of an earlier controller that live on, and end those that nobody needs any more."""
        superfluous = []
        for handle in self.executor.adopt([progress.run for progress in self._progress.values()]):
            progress = self._progress[handle.run.run_id]
            if progress.finished or progress.handle is not None:
                superfluous.append(handle)
            else:
                progress.attempts_before = progress.run.status().attempt
                progress.submission = submission_of(handle.token)
                self._carry(progress, handle)
                self._tell(progress, Happening.ADOPTED)
        self.executor.cancel(superfluous)

    def _submit_ready(self) -> None:
        self._look_behind()
        ready: list[_Progress] = []
        room = MOST_WAITING - sum(not progress.started for progress in self._carried.values())
        for progress in list(self._ready.values()) if room > 0 else ():
            if len(ready) == room:
                break
            with self._contained(progress):
                # A fork is asked to end before its trunk is, whose end makes it ready.
                if self._leave_to_another(progress) or progress.run.cancel_requested():
                    continue
                progress.run.create(progress.planned.spec)
                progress.run.queue(f"waiting for {self.executor.name}")
                progress.attempts_before = progress.run.status().attempt
                ready.append(progress)
        jobs = [
            Job(
                run=progress.run,
                spec=progress.planned.spec,
                token=f"{progress.submission}.{uuid.uuid4().hex}",
                fork=self._fork(progress.planned),
                checkpoint_at=progress.planned.checkpoint_at,
            )
            for progress in ready
        ]
        for progress, handle in zip(ready, self.executor.submit(jobs), strict=True):
            progress.started = False
            self._carry(progress, handle)
            self._tell(progress, Happening.SUBMITTED)

    def _look_behind(self) -> None:
        """Take up the forks whose trunk has left their checkpoint, or has ended."""
        for run_id, forks in list(self._behind.items()):
            trunk = self._progress[run_id]
            if not (trunk.finished or trunk.started or trunk.held):
                continue
            for fork in [fork for fork in forks if self._may_start(fork.planned)]:
                forks.remove(fork)
                if not fork.finished and fork.handle is None:
                    self._ready[fork.run.run_id] = fork
            if not forks:
                del self._behind[run_id]

    def _carry(self, progress: _Progress, handle: Handle) -> None:
        progress.handle = handle
        self._carried[progress.run.run_id] = progress
        self._ready.pop(progress.run.run_id, None)

    def _drop(self, progress: _Progress) -> None:
        """The run's job has ended, and the run has not."""
        progress.handle = None
        del self._carried[progress.run.run_id]
        self._ready[progress.run.run_id] = progress

    def _close(self, progress: _Progress) -> None:
        progress.finished, progress.handle = True, None
        for held in (self._open, self._ready, self._carried):
            held.pop(progress.run.run_id, None)

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
        before, self._asked = self._asked, self.workspace.cancel_requests()
        if before not in (None, self._asked):
            self._alert = time.monotonic() + ALERT_SECONDS
        if self._asked == before and time.monotonic() > self._alert:
            return
        asked = [one for one in self._open.values() if one.run.cancel_requested()]
        self._end([(one, "cancelled; submit it again to continue") for one in asked], State.CANCELLED)

    def _end(self, asked: Sequence[tuple[_Progress, str]], state: State) -> None:
        """End runs, each with its reason, but those that are complete meanwhile."""
        if handles := [one.handle for one, _ in asked if one.handle is not None]:
            self.executor.cancel(handles)
        for progress, why in asked:
            with self._contained(progress):
                if progress.run.is_complete(progress.planned.spec):
                    self._finish_complete(progress, Happening.ENDED)
                    continue
                progress.run.set_state(state, why)
                self._finish(progress, Happening.ENDED)

    def _poll(self) -> None:
        waiting = list(self._carried.values())
        states = self.executor.poll(self._handles())
        for progress, state in zip(waiting, states, strict=True):
            if state is JobState.RUNNING and not progress.started:
                progress.started = True
                self._tell(progress, Happening.STARTED)
            elif state in (JobState.ENDED, JobState.LOST):
                with self._contained(progress):
                    self._judge(progress, machine_lost=state is JobState.LOST)

    def _judge(self, progress: _Progress, *, machine_lost: bool) -> None:
        """Decide, from the run directory, what the end of a job means."""
        assert progress.handle is not None
        status = progress.run.status()
        launch, token = progress.run.launch(status.attempt), progress.handle.token
        began = launch is not None and launch.token == token
        ours = began or status.is_held_by(token)
        if progress.run.is_complete(progress.planned.spec):
            self._finish_complete(progress, Happening.ENDED)
            return
        if not ours and (status.attempt > progress.attempts_before or status.lease):
            # Another launcher was first: its attempt is not ours to judge.
            self._drop(progress)
            progress.held = True
            self._tell(progress, Happening.HELD)
            return
        if status.state is State.COMPLETED or status.state.final:
            self._finish(progress, Happening.ENDED)
            return
        if progress.run.cancel_requested():
            return  # it is ended as such
        if machine_lost:
            # Ranks that were left alone may have called it a failure. It was the machine's, not the run's.
            self._settle(progress, began, State.PREEMPTED, "a machine was lost")
        elif not ours and status.state is not State.PREEMPTED:
            reason = f"the supervisor ended before it began; see {progress.run.supervisor_log}"
            self._settle(progress, began, State.FAILED, reason)
        elif status.state not in (State.FAILED, State.PREEMPTED):
            # Whoever was to write the verdict is gone: killed between two lines.
            self._settle(progress, began, State.FAILED, "the supervisor ended without a verdict")
        self._again(progress)

    def _settle(self, progress: _Progress, began: bool, state: State, reason: str) -> None:
        """Leave in the run's directory how a job ended whose own verdict is missing or wrong."""
        if began:
            judge_from_outside(progress.run, state, reason)
            return
        progress.run.set_state(state, reason)
        if state is State.FAILED:
            progress.never_began.append(reason)

    def _again(self, progress: _Progress) -> None:
        """Try the run once more, unless that is not worth while any longer."""
        if why := why_set_aside(progress.run, progress.submission, progress.never_began):
            progress.run.set_state(State.FAILED, why)
            self._finish(progress, Happening.ENDED)
        else:
            self._tell(progress, Happening.RETRIED)
            self._drop(progress)

    def _finish_complete(self, progress: _Progress, what: Happening) -> None:
        if progress.run.status().state is not State.COMPLETED and not progress.run.is_held():
            # Killed after the result and before the verdict: there is nothing left to do.
            progress.run.set_state(State.COMPLETED)
        self._finish(progress, what)

    def _finish(self, progress: _Progress, what: Happening) -> None:
        self._close(progress)
        self._tell(progress, what)

    def _tell(self, progress: _Progress, what: Happening) -> None:
        self.watch(Event(progress.run, what, progress.run.status()))

    @contextmanager
    def _contained(self, progress: _Progress) -> Iterator[None]:
        """Give up one run whose files are damaged, and go on with the others. Raises where the workspace is gone."""
        try:
            yield
        except DamagedFileError as error:
            if not self.workspace.runs.is_dir():
                raise DamagedFileError(
                    self.workspace.root, "the workspace is gone", "submit again to begin anew"
                ) from None
            progress.given_up = Status(state=State.FAILED, reason=str(error))
            with suppress(DamagedFileError):
                progress.run.set_state(State.FAILED, str(error))
            self._close(progress)
            self.watch(Event(progress.run, Happening.ENDED, progress.given_up))

    def _handles(self) -> list[Handle]:
        return [progress.handle for progress in self._carried.values() if progress.handle is not None]


def admit(run: RunDirectory, spec: RunSpec, tell: Callable[[str], object]) -> bool:
    """Make a run ready to be carried out: its directory is there, and what is damaged in it is set aside and told.

    Returns whether there is nothing to carry out: an evaluation that was made earlier is taken up again.
    DamagedFileError where it cannot be made ready.
    """
    result = run.known_result()
    if not run.is_answered(result, spec) and not run.is_held():
        set_aside(run, tell)
    run.create(spec)
    if not run.is_held():
        adopt(run, spec)
    return run.is_complete(spec)
