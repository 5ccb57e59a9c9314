"""What diverged or was set aside is trained again only by who asks for it; drifted text is refused."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from orchestrator import Sweep
from orchestrator.errors import InputError
from orchestrator.execution.submission import refuse_drift
from orchestrator.workbench.submit import to_retry
from xlstm.data import prepare
from xlstm.run.directory import Workspace
from xlstm.run.records import State

WriteSweep = Callable[..., str]


@pytest.mark.parametrize(
    ("state", "reason", "settled"),
    [
        (State.DIVERGED, "the loss is nan at step 5", True),
        (State.FAILED, "set aside after the same error twice: boom", True),
        (State.FAILED, "the supervisor ended without a verdict", False),
        (State.PREEMPTED, "stopped by SIGTERM after step 3", False),
        (State.CANCELLED, "cancelled", False),
    ],
)
def test_a_resubmission_leaves_what_is_settled_to_retry(
    write_sweep: WriteSweep, scaling: Any, state: State, reason: str, settled: bool
) -> None:
    sweep = Sweep.load(write_sweep())
    workspace = Workspace(scaling.workspace)
    first, *others = sweep.plan(workspace.root).runs
    run = workspace.run(first.run_id)
    run.create(first.spec)
    run.set_state(state, reason)
    plan = sweep.plan(workspace.root)
    assert [one.run_id for one in plan.settled] == [first.run_id] * settled
    left = [*others] if settled else [first, *others]
    assert {one.run_id for one in plan.launches} == {one.run_id for one in left}
    assert plan.totals["settled"] == settled
    if state.ended:
        again = to_retry(plan)
        assert again is not None
        assert [one.run_id for one in again[0].missing] == [first.run_id]


def test_text_that_is_not_what_a_complete_run_was_trained_on_is_refused(
    write_sweep: WriteSweep, scaling: Any, finish: Any
) -> None:
    sweep = Sweep.load(write_sweep())
    workspace = Workspace(scaling.workspace)
    planned = sweep.plan(workspace.root).runs[0]
    spec = planned.spec
    prepare(spec.physics.data, spec.execution.data_paths, workspace)
    refuse_drift(workspace, [spec])
    finish(workspace, planned, data_fingerprint="2cd74e6fe98af326")
    with pytest.raises(InputError, match="was trained on text 2cd74e6fe98af326, and prepared here is"):
        refuse_drift(workspace, [spec])


def test_a_stated_default_is_the_same_run_and_an_earlier_id_of_it_is_found(
    write_sweep: WriteSweep, scaling: Any, finish: Any
) -> None:
    plain = Sweep.load(write_sweep())
    stated = Sweep.load(write_sweep(("warmup_steps: 2", "warmup_steps: 2, decay_steps: 10")))
    workspace = Workspace(scaling.workspace)
    first, second = plain.runs
    assert first.spec.physics.steps == 10
    same, different = stated.runs  # of 10 and of 20 steps
    assert same.spec.run_id == first.spec.run_id
    assert different.spec.run_id != second.spec.run_id

    schedule = first.spec.physics.schedule.model_copy(update={"decay_steps": 10})
    earlier = first.spec.with_physics(first.spec.physics.model_copy(update={"schedule": schedule}))
    assert earlier.run_id != first.spec.run_id
    finish(workspace, replace(plain.plan(workspace.root).runs[0], sweep_run=replace(first, spec=earlier)))
    found, other = sorted(plain.plan(workspace.root).runs, key=lambda run: run.spec.physics.tokens)
    assert (found.run_id, found.state) == (earlier.run_id, State.COMPLETED)
    assert other.run_id == second.spec.run_id


def test_a_sweep_that_was_submitted_when_recurrent_weights_decayed_stays_so(
    write_sweep: WriteSweep, scaling: Any, finish: Any
) -> None:
    slstm = (("model: [llama]", 'model: ["xlstm[1:1]", llama]'), ("num_blocks: 1,", "num_blocks: 2,"))
    workspace = Workspace(scaling.workspace)
    before = Sweep.load(write_sweep(*slstm), ["train.recurrent_weight_decay=0.1"]).plan(workspace.root)
    now = Sweep.load(write_sweep(*slstm))
    new = {run.run_id for run in now.plan(workspace.root).runs}
    old = {run.run_id for run in before.runs}
    assert len(new & old) == 2  # those of the llama
    before.save()
    kept = before.directory.sweep_file
    kept.write_text(now.dump())  # an earlier version could not say it
    finish(workspace, next(run for run in before.runs if run.run_id not in new))
    again = now.plan(workspace.root)
    assert {run.run_id for run in again.runs} == old
    assert again.dropped == []
    assert sum(run.state is State.COMPLETED for run in again.runs) == 1
    longer = Sweep.load(write_sweep(*slstm), ["grid.tokens=[2560,5120,7680]"]).plan(workspace.root)
    assert all(run.spec.physics.optimizer.recurrent_weight_decay is None for run in longer.runs)
    said = Sweep.load(write_sweep(*slstm), ["train.recurrent_weight_decay=0"]).plan(workspace.root)
    assert {run.run_id for run in said.runs} == new
    before.directory.plan_file.write_text("junk")
    assert {run.run_id for run in now.plan(workspace.root).runs} == old
