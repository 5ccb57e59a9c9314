"""Hundreds of runs through the real controller, executor and supervisors: faults are survived, nothing is done twice.

The trainer alone is replaced, by a real process that counts its steps (`trivial/`): two hundred imports of torch would
take the time of the whole test suite.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.execution.controller import Controller, Event, Happening
from orchestrator.executors.local import LocalExecutor
from orchestrator.planning.plan import make_plan
from orchestrator.standing.status import look
from sweeps.sweep import Sweep
from xlstm.run.directory import Workspace
from xlstm.run.records import State

WriteSweep = Callable[..., str]

pytestmark = pytest.mark.serial


@pytest.mark.slow
def test_two_hundred_runs_with_crashes_preemptions_and_a_poison_run_end_with_199_trained_once(
    scaling: Any, write_sweep: WriteSweep, trivial: Any
) -> None:
    workspace = Workspace(scaling.workspace)
    made = make_plan(Sweep.load(write_sweep(trivial.runs(200))), workspace)
    made.save()
    ids = [run.run_id for run in made.runs]
    # A tenth crashes, half of it without a word; a tenth is preempted; one fails whenever it is tried.
    faults = {
        run_id: {3: "crash", 8: "kill", 5: "preempt", 15: "preempt"}.get(i % 20, "") for i, run_id in enumerate(ids)
    }
    poison = ids[100]
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
    assert (seen[Happening.SUBMITTED], seen[Happening.RETRIED]) == (200 + 40 + 1, 40 + 1)

    standing = {run["run_id"]: run for run in scaling("status", "tiny", "--json").json["runs"]}
    assert standing[poison]["reason"] == "set aside after the same error twice: ValueError: poison"
    assert "set aside after the same error twice: ValueError: poison" in scaling("status", "tiny").out
    assert look(workspace, "tiny").ledger.wasted.tokens == 0  # every step was kept in a checkpoint
