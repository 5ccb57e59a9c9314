"""Cancelling a sweep ends its trunk and its forks: nothing starts afterwards, whatever had started before."""

from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console
from waiting import wait_until

from orchestrator.execution.controller import Controller
from orchestrator.execution.lock import sole_controller
from orchestrator.executors.local import LocalExecutor
from orchestrator.planning.plan import Plan, make_plan
from orchestrator.workbench.cancel import cancel
from sweeps.sweep import Sweep
from xlstm.run.directory import Workspace
from xlstm.run.executor import Job, JobState
from xlstm.run.records import State

WriteSweep = Callable[..., str]

pytestmark = pytest.mark.serial

WSD = (
    "train: {batch_sequences: 8, learning_rate: 1e-2, warmup_steps: 2}",
    "train: {batch_sequences: 8, learning_rate: 1e-2, warmup_steps: 2, schedule: wsd, decay_fraction: 0.2}",
)
BUDGETS = ("tokens: [2560, 5120]", "tokens: [2560, 5120, 20480]")


@pytest.fixture
def planned(scaling: Any, write_sweep: WriteSweep, trivial: Any) -> Plan:
    """A trunk that waits to be told to go on, and two forks that wait for it."""
    made = make_plan(Sweep.load(write_sweep(WSD, BUDGETS)), Workspace(scaling.workspace))
    made.save()
    trunk = made.runs[0]
    assert [run.share.fork is not None for run in made.runs] == [False, True, True]
    trivial.prepare([run.spec for run in made.runs], {trunk.run_id: "wait for go"})
    return made


def states(workspace: Workspace, made: Plan) -> list[State]:
    return [workspace.run(run.run_id).status().state for run in made.runs]


def steps_of(trivial: Any) -> dict[str, list[int]]:
    return trivial.executed() if (trivial.folder / "executed.log").exists() else {}


def test_forks_whose_trunk_is_cancelled_with_them_never_start(
    scaling: Any, write_sweep: WriteSweep, trivial: Any, planned: Plan
) -> None:
    """The trunk ends just then, which is what they had waited for."""
    workspace, path = planned.workspace, write_sweep(WSD, BUDGETS)
    trunk = workspace.run(planned.runs[0].run_id)
    process = scaling.start("submit", path)
    wait_until(lambda: trunk.is_held() and len(steps_of(trivial).get(trunk.run_id, [])) > 1)
    forks = [workspace.run(run.run_id).status() for run in planned.runs[1:]]
    assert [fork.state for fork in forks] == [State.QUEUED] * 2
    assert all(fork.reason.startswith("waiting for step") and trunk.run_id in fork.reason for fork in forks)
    cancelling = scaling.start("cancel", "tiny")
    wait_until(trunk.cancel_requested)
    (trivial.folder / "go").touch()
    out, err = cancelling.communicate(timeout=300)
    assert (cancelling.returncode, out) == (0, "2 runs cancelled\n"), err
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, (out, err)
    assert states(workspace, planned) == [State.COMPLETED, State.CANCELLED, State.CANCELLED]
    assert set(steps_of(trivial)) == {trunk.run_id}
    assert scaling("cancel", "tiny").out.startswith("nothing to cancel")


def test_what_is_cancelled_while_the_data_are_prepared_is_never_started(trivial: Any, planned: Plan) -> None:
    workspace = planned.workspace
    with sole_controller(workspace, "tiny", "local", Console(quiet=True)):
        cancelled = cancel(workspace, "tiny", "tiny")
        assert {run.run_id for run in cancelled} == {run.run_id for run in planned.runs}
        statuses = Controller(workspace, LocalExecutor(gpus=0, cores=4), planned.launches)()
    assert {status.state for status in statuses.values()} == {State.CANCELLED}
    assert not steps_of(trivial)


def test_a_supervisor_that_was_on_its_way_does_not_begin_what_was_cancelled(trivial: Any, planned: Plan) -> None:
    run = planned.workspace.run(planned.runs[1].run_id)
    run.create(planned.runs[1].spec)
    run.queue("waiting for local")
    (cancelled,) = cancel(planned.workspace, "", run.run_id)
    assert cancelled.status().state is State.CANCELLED
    executor = LocalExecutor(gpus=0, cores=4)
    handles = executor.submit([Job(run, planned.runs[1].spec, "late")])
    wait_until(lambda: executor.poll(handles) == [JobState.ENDED])
    assert run.status().attempt == 0
    assert "was cancelled before it began" in run.supervisor_log.read_text()


@pytest.mark.slow
def test_a_real_sweep_that_is_cancelled_while_its_trunk_trains_starts_nothing_more(
    scaling: Any, write_sweep: WriteSweep
) -> None:
    path = write_sweep(WSD, ("tokens: [2560, 5120]", "tokens: [512M, 768M, 1024M]"))  # no fork's step in any minute
    workspace = Workspace(scaling.workspace)
    made = make_plan(Sweep.load(path), workspace)
    trunk, *forks = (workspace.run(run.run_id) for run in made.runs)
    for _ in range(2):  # the second time the forks say that they were cancelled while they wait again
        rows = len(trunk.history())
        process = scaling.start("submit", path)
        wait_until(lambda rows=rows: trunk.is_held() and len(trunk.history()) > rows + 2)
        said = scaling("cancel", "tiny")
        assert (said.code, said.out) == (0, "3 runs cancelled\n")
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, (out, err)
        assert states(workspace, made) == [State.CANCELLED] * 3
        assert trunk.checkpoint_steps()
        assert not any(fork.attempt_numbers() for fork in forks)
