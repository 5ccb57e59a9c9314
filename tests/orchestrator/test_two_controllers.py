"""Two controllers at once: each run is trained once, the second says what it does, and both end well."""

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.execution.controller import Controller, Event, Happening
from orchestrator.executors.local import LocalExecutor
from orchestrator.planning.plan import Plan, make_plan
from sweeps.sweep import Sweep
from xlstm.run.directory import Workspace
from xlstm.run.records import State, Status

WriteSweep = Callable[..., str]

pytestmark = pytest.mark.serial


@pytest.fixture
def planned(scaling: Any, write_sweep: WriteSweep, trivial: Any) -> Plan:
    """Four runs, of which the first waits to be told to go on."""
    made = make_plan(Sweep.load(write_sweep(trivial.runs(4))), Workspace(scaling.workspace))
    trivial.prepare([run.spec for run in made.runs], {made.runs[0].run_id: "wait for go"})
    return made


def read_until(stream: Any, words: str) -> str:
    """The line of a process's output that has these words."""
    seen = []
    for line in stream:
        seen.append(line)
        if words in line:
            return str(line)
    raise AssertionError("".join(seen))


@pytest.mark.slow
@pytest.mark.parametrize("first_dies", [False, True])
def test_of_two_submissions_of_one_sweep_the_second_waits_and_does_what_the_first_leaves(
    scaling: Any, write_sweep: WriteSweep, trivial: Any, planned: Plan, first_dies: bool
) -> None:
    path = write_sweep(trivial.runs(4))
    first = scaling.start("submit", path)
    read_until(first.stdout, f"{planned.runs[0].run_id}: started")
    second = scaling.start("submit", path)
    said = read_until(second.stdout, "is carried out by")
    assert f"process {first.pid} on" in said
    assert "waiting to do what it leaves" in said
    if first_dies:
        first.send_signal(signal.SIGKILL)
        first.communicate()
        read_until(second.stdout, "the other has ended; going on here")
    (trivial.folder / "go").touch()
    out, err = second.communicate(timeout=300)
    assert second.returncode == 0, (out, err)
    if not first_dies:
        out, err = first.communicate(timeout=300)
        assert first.returncode == 0, (out, err)
    executed = trivial.executed()
    assert {run_id: sorted(steps) for run_id, steps in executed.items()} == {
        run.run_id: trivial.once for run in planned.runs
    }


def test_a_run_that_two_sweeps_share_is_trained_by_one_and_awaited_by_the_other(
    scaling: Any, trivial: Any, planned: Plan
) -> None:
    held = threading.Event()
    results: list[dict[str, Status]] = []

    def carry_out() -> None:
        def watch(event: Event) -> None:
            if event.what is Happening.HELD:
                held.set()

        results.append(Controller(planned.workspace, LocalExecutor(gpus=0, cores=2), planned.launches, watch=watch)())

    controllers = [threading.Thread(target=carry_out) for _ in range(2)]
    for controller in controllers:
        controller.start()
    assert held.wait(300)
    time.sleep(1)
    assert all(controller.is_alive() for controller in controllers)  # the one that does not hold it does not give up
    (trivial.folder / "go").touch()
    for controller in controllers:
        controller.join(300)
    assert len(results) == 2
    for statuses in results:
        assert {status.state for status in statuses.values()} == {State.COMPLETED}
        assert {status.attempt for status in statuses.values()} == {1}
    assert trivial.executed() == {run.run_id: trivial.once for run in planned.runs}


@pytest.mark.slow
def test_retry_runs_again_what_failed_and_nothing_else(scaling: Any, write_sweep: WriteSweep, trivial: Any) -> None:
    path = write_sweep(trivial.runs(3))
    made = make_plan(Sweep.load(path), Workspace(scaling.workspace))
    poison, *others = [run.run_id for run in made.runs]
    specs = [run.spec for run in made.runs]
    trivial.prepare(specs, {poison: "poison"})
    assert scaling("submit", path).code == 1
    before = trivial.executed()

    again = scaling("retry", "tiny")
    assert again.code == 1, again  # as poisonous as before
    assert "set aside after the same error twice: ValueError: poison" in again.out
    trivial.prepare(specs, {})
    again = scaling("retry", "tiny")
    assert again.code == 0, again
    after = trivial.executed()
    assert [after[run_id] for run_id in others] == [before[run_id] for run_id in others] == [trivial.once] * 2
    states = {run["run_id"]: run["state"] for run in scaling("status", "tiny", "--json").json["runs"]}
    assert set(states.values()) == {"COMPLETED"}
    assert scaling("retry", "tiny").out.startswith("nothing to retry")
