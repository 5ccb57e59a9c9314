"""Dozens of runs through the real controller, executor and supervisors: faults are survived, nothing is done twice.

The trainer alone is replaced, by a real process that counts its steps (`trivial/`): that many imports of torch would
take minutes.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from orchestrator.execution import controller
from orchestrator.execution.controller import Controller, Event, Happening
from orchestrator.executors.local import LocalExecutor
from orchestrator.planning.plan import make_plan
from orchestrator.standing.status import look
from sweeps.sweep import Sweep
from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.executor import Handle, Job, JobState
from xlstm.run.records import State

WriteSweep = Callable[..., str]

pytestmark = pytest.mark.serial


@pytest.mark.slow
def test_sixty_runs_with_crashes_preemptions_and_a_poison_run_end_with_59_trained_once(
    scaling: Any, write_sweep: WriteSweep, trivial: Any
) -> None:
    workspace = Workspace(scaling.workspace)
    made = make_plan(Sweep.load(write_sweep(trivial.runs(60))), workspace)
    made.save()
    ids = [run.run_id for run in made.runs]
    # A tenth crashes, half of it without a word; a tenth is preempted; one fails whenever it is tried.
    faults = {
        run_id: {3: "crash", 8: "kill", 5: "preempt", 15: "preempt"}.get(i % 20, "") for i, run_id in enumerate(ids)
    }
    poison = ids[50]
    assert not faults[poison]
    trivial.prepare([run.spec for run in made.runs], faults | {poison: "poison"})
    seen: Counter[Happening] = Counter()

    def watch(event: Event) -> None:
        seen[event.what] += 1

    statuses = Controller(workspace, LocalExecutor(gpus=0, cores=4), made.launches, watch=watch)()

    complete = {run_id for run_id, status in statuses.items() if status.state is State.COMPLETED}
    assert complete == set(ids) - {poison}
    executed = trivial.executed()
    assert all(executed[run_id] == trivial.once for run_id in complete)
    for run_id in complete:
        assert statuses[run_id].attempt == (2 if faults[run_id] else 1), run_id
    assert statuses[poison].state is State.FAILED
    assert statuses[poison].attempt == 2  # the same traceback twice ends it
    assert (seen[Happening.SUBMITTED], seen[Happening.RETRIED]) == (60 + 12 + 1, 12 + 1)

    standing = {run["run_id"]: run for run in scaling("status", "tiny", "--json").json["runs"]}
    assert standing[poison]["reason"] == "set aside after the same error twice: ValueError: poison"
    assert "set aside after the same error twice: ValueError: poison" in scaling("status", "tiny").out
    assert look(workspace, "tiny").ledger.wasted.tokens == 0  # every step was kept in a checkpoint


@dataclass
class OneAtATime:
    """An engine on which the first job that waits runs until the next poll, and leaves a result."""

    finish: Callable[[str], None]
    name: str = "one at a time"
    waiting: list[str] = field(default_factory=list)
    running: str = ""
    asked: list[int] = field(default_factory=list)
    order: list[str] = field(default_factory=list)

    def submit(self, jobs: Sequence[Job]) -> list[Handle]:
        self.waiting += [job.run.run_id for job in jobs]
        return [Handle(run=job.run, token=job.token, job=job.run.run_id) for job in jobs]

    def poll(self, handles: Sequence[Handle]) -> list[JobState]:
        self.asked.append(len(handles))
        if self.running:
            self.finish(self.running)
            self.order.append(self.running)
        self.running = self.waiting.pop(0) if self.waiting else ""
        states = {self.running: JobState.RUNNING, **dict.fromkeys(self.order, JobState.ENDED)}
        return [states.get(handle.job, JobState.WAITING) for handle in handles]

    def adopt(self, runs: Sequence[RunDirectory]) -> list[Handle]:
        return []

    def cancel(self, handles: Sequence[Handle]) -> None:
        pass

    def rest(self, seconds: float) -> None:
        pass


def test_a_poll_asks_for_no_more_jobs_however_many_runs_wait(
    scaling: Any, write_sweep: WriteSweep, finish: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller, "MOST_WAITING", 5)
    workspace = Workspace(scaling.workspace)
    sweep = Sweep.load(write_sweep(), [f"grid.seed={list(range(10))}"])
    made = make_plan(sweep, workspace)
    planned = {run.run_id: run for run in made.runs}
    engine = OneAtATime(lambda run_id: finish(workspace, planned[run_id]))
    statuses = Controller(workspace, engine, made.launches)()
    assert {status.state for status in statuses.values()} == {State.COMPLETED}
    assert engine.order == [launch.run_id for launch in made.launches]
    assert len(engine.order) == 20
    assert max(engine.asked) == 6  # five that wait, and the one that runs
