"""When a run is tried again: what its directory says, whoever reads it, and however many controllers it has had."""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orchestrator.execution.controller import Controller
from orchestrator.executors.local import LocalExecutor
from orchestrator.planning.plan import make_plan
from sweeps.sweep import Sweep
from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.executor import (
    ENDING_SECONDS,
    Executor,
    Handle,
    Job,
    JobState,
    PlannedRun,
    current_submission,
    submission_of,
    why_set_aside,
)
from xlstm.run.records import Launch, State, Verdict, write_json

WriteSweep = Callable[..., str]


@dataclass
class Ending:
    """How one attempt on the engine of a test ends."""

    verdict: Verdict | None = None
    job: JobState = JobState.ENDED
    begins: bool = True
    saves: bool = False
    interrupts: bool = False
    """Whether the controller dies when it looks at the attempt."""


PREEMPTED = Ending(Verdict(state=State.PREEMPTED, reason="stopped by SIGTERM"))
SAVED = Ending(PREEMPTED.verdict, saves=True)
LOST = Ending(Verdict(state=State.FAILED, reason="a peer is gone", traceback="a peer is gone"), job=JobState.LOST)
SILENT = Ending()
ABSENT = Ending(begins=False)


def failure(traceback: str) -> Ending:
    return Ending(Verdict(state=State.FAILED, reason=traceback, traceback=traceback))


@dataclass
class Scripted:
    """An engine whose attempts end one after another as it was told; the last ending goes on for ever."""

    endings: list[Ending]
    name: str = "scripted"
    tokens: list[str] = field(default_factory=list)

    def submit(self, jobs: Any) -> list[Handle]:
        return [self._carry_out(job) for job in jobs]

    def _carry_out(self, job: Job) -> Handle:
        ending, run = self._next(), job.run
        self.tokens.append(job.token)
        if ending.begins:
            lease = run.acquire(job.token)
            launch = Launch(
                run_id=run.run_id,
                attempt=lease.attempt,
                token=job.token,
                executor=self.name,
                execution=job.spec.execution,
                host="",
                rendezvous="",
                started=time.time(),
            )
            write_json(run.launch_file(lease.attempt), launch.model_dump(mode="json"))
            if ending.saves:
                mark = run.checkpoint_mark(lease.attempt)
                mark.parent.mkdir(parents=True)
                mark.touch()
                now = time.time()  # a file is stamped by a clock that runs some milliseconds behind
                os.utime(mark, (now, now))
            if ending.verdict is not None:
                write_json(run.verdict_file(lease.attempt), ending.verdict.model_dump(mode="json"))
            state = ending.verdict.state if ending.verdict else State.RUNNING
            lease.release(state, ending.verdict.reason if ending.verdict else "")
        return Handle(run, job.token, job.token)

    def _next(self) -> Ending:
        self.latest = self.endings.pop(0) if len(self.endings) > 1 else self.endings[0]
        return self.latest

    def adopt(self, runs: Any) -> list[Handle]:
        return []

    def poll(self, handles: Any) -> list[JobState]:
        if self.latest.interrupts:
            raise KeyboardInterrupt
        return [self.latest.job for _ in handles]

    def rest(self, seconds: float) -> None:
        pass

    def cancel(self, handles: Any, *, grace_seconds: float = ENDING_SECONDS) -> None:
        pass


@pytest.fixture
def planned(scaling: Any, write_sweep: WriteSweep) -> tuple[Workspace, PlannedRun]:
    workspace = Workspace(scaling.workspace)
    return workspace, make_plan(Sweep.load(write_sweep()), workspace).launches[0]


def carry_out(planned: tuple[Workspace, PlannedRun], *endings: Ending) -> RunDirectory:
    """The run after a submission whose attempts ended so."""
    workspace, run = planned
    engine: Executor = Scripted(list(endings))
    Controller(workspace, engine, [run])()
    return workspace.run(run.run_id)


@pytest.mark.parametrize(
    ("endings", "attempts", "reason"),
    [
        ([PREEMPTED], 5, "set aside after 5 attempts in a row without a new checkpoint; checkpoint more often"),
        ([SAVED] * 4 + [PREEMPTED], 9, "set aside after 5 attempts in a row without a new checkpoint"),
        ([LOST], 5, "set aside after 5 attempts in a row without a new checkpoint"),
        ([LOST, LOST, SAVED, failure("one")], 5, "set aside after the same error twice: one"),
        ([failure("one"), SAVED, failure("two"), failure("three")], 4, "set aside after 3 failed attempts: three"),
        ([SILENT], 3, "set aside after 3 failed attempts: the supervisor ended without a verdict"),
        ([failure("one"), SILENT, ABSENT], 2, "set aside after 3 failed attempts: the supervisor ended"),
        ([ABSENT], 0, "set aside after 3 failed attempts: the supervisor ended before it began; see"),
    ],
)
def test_a_run_is_set_aside_with_the_reason(
    planned: tuple[Workspace, PlannedRun], endings: list[Ending], attempts: int, reason: str
) -> None:
    status = carry_out(planned, *endings).status()
    assert status.state is State.FAILED
    assert status.reason.startswith(reason)
    assert status.attempt == attempts


def test_attempts_are_counted_across_controllers_that_die_and_anew_when_a_person_submits_what_had_ended(
    planned: tuple[Workspace, PlannedRun],
) -> None:
    dies = Ending(PREEMPTED.verdict, interrupts=True)
    for number in range(1, 4):
        with pytest.raises(KeyboardInterrupt):
            carry_out(planned, dies)
        assert planned[0].run(planned[1].run_id).status().attempt == number
    run = carry_out(planned, PREEMPTED)
    assert run.status().attempt == 5
    first = current_submission(run)
    assert first not in {submission_of(launch.token) for number in range(1, 6) if (launch := run.launch(number))}
    assert carry_out(planned, PREEMPTED).status().attempt == 10


def test_the_policy_reads_nothing_but_the_directory_of_the_run(
    planned: tuple[Workspace, PlannedRun], tmp_path: Path
) -> None:
    run = carry_out(planned, failure("one"))
    launch = run.launch(1)
    assert launch is not None
    elsewhere = Workspace(tmp_path / "elsewhere").run(run.run_id)
    shutil.copytree(run.path, elsewhere.path)
    submission = submission_of(launch.token)
    assert why_set_aside(elsewhere, submission) == "set aside after the same error twice: one" == run.status().reason
    assert why_set_aside(elsewhere, "another") is None


@pytest.mark.serial
def test_on_this_machine_a_run_that_is_evicted_for_ever_is_set_aside_and_one_that_gets_on_is_not(
    scaling: Any, write_sweep: WriteSweep, trivial: Any
) -> None:
    workspace = Workspace(scaling.workspace)
    made = make_plan(Sweep.load(write_sweep(trivial.runs(2))), workspace)
    stuck, slow = [run.run_id for run in made.runs]
    trivial.prepare([run.spec for run in made.runs], {stuck: "evict", slow: "evict with a checkpoint"})
    statuses = Controller(workspace, LocalExecutor(gpus=0, cores=2), made.launches)()
    assert statuses[stuck].state is State.FAILED
    assert "5 attempts in a row without a new checkpoint" in statuses[stuck].reason
    assert statuses[stuck].attempt == 5
    assert statuses[slow].state is State.COMPLETED
    assert statuses[slow].attempt == 8
    assert trivial.executed() == {slow: trivial.once}
