"""Runs of one warm-up–stable–decay schedule that differ in budget train their common beginning once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.planning.plan import make_plan
from sweeps.sweep import Sweep
from xlstm.run.directory import Workspace
from xlstm.run.records import Fork

WriteSweep = Callable[..., str]

WSD = (
    "train: {batch_sequences: 8, learning_rate: 1e-2, warmup_steps: 2}",
    "train: {batch_sequences: 8, learning_rate: 1e-2, warmup_steps: 2, schedule: wsd, decay_fraction: 0.2}",
)
BUDGETS = ("tokens: [2560, 5120]", "tokens: [2560, 5120, 10240, 20480]")  # 10, 20, 40 and 80 steps


@pytest.fixture
def plan(scaling: Any, write_sweep: WriteSweep) -> Callable[..., Any]:
    def planned(*replacements: tuple[str, str]) -> Any:
        return make_plan(Sweep.load(write_sweep(*replacements)), Workspace(scaling.workspace))

    return planned


def leave_checkpoint(workspace: Workspace, run_id: str, step: int) -> None:
    """A checkpoint as far as planning looks at it."""
    folder = workspace.run(run_id).checkpoint(step)
    folder.mkdir(parents=True)
    (folder / "COMPLETE").write_text("{}")


def forks(plan: Any) -> dict[int, Fork | None]:
    return {run.spec.physics.steps: run.share.fork for run in plan.runs}


def test_shorter_runs_fork_from_the_longest_where_they_start_to_decay(plan: Callable[..., Any]) -> None:
    made = plan(WSD, BUDGETS)
    trunk = next(run for run in made.runs if run.spec.physics.steps == 80)
    assert forks(made) == {
        80: None,
        10: Fork(run_id=trunk.run_id, step=8),
        20: Fork(run_id=trunk.run_id, step=16),
        40: Fork(run_id=trunk.run_id, step=32),
    }
    assert trunk.share.checkpoint_at == (8, 16, 32)
    assert made.runs[0] is trunk  # nothing else can start before it
    # 80 + 0.2 * (10 + 20 + 40) of 150 steps.
    assert made.totals["tokens"] / made.totals["independent_tokens"] == pytest.approx(94 / 150)


def test_runs_that_differ_in_more_than_the_budget_share_nothing(plan: Callable[..., Any]) -> None:
    made = plan(WSD, BUDGETS, ("resources:", "rules: [{when: {tokens: 2560}, set: {weight_decay: 0.5}}]\nresources:"))
    assert forks(made)[10] is None
    assert forks(made)[20] is not None


def test_cosine_runs_share_nothing(plan: Callable[..., Any]) -> None:
    assert set(forks(plan(BUDGETS)).values()) == {None}


def test_a_longer_budget_extends_what_a_finished_run_kept(plan: Callable[..., Any], scaling: Any) -> None:
    workspace = Workspace(scaling.workspace)
    short = plan(WSD).runs[0]
    complete = next(run for run in plan(WSD).runs if run.spec.physics.steps == 20)
    leave_checkpoint(workspace, complete.run_id, 16)
    write_result(workspace, complete)
    made = plan(WSD, BUDGETS)
    longest = next(run for run in made.runs if run.spec.physics.steps == 80)
    assert longest.share.fork == Fork(run_id=complete.run_id, step=16)
    # Its trunk starts behind step 8, so the run of 10 steps finds nothing to start from.
    assert forks(made)[10] is None
    assert forks(made)[40] == Fork(run_id=longest.run_id, step=32)
    assert short.run_id in {run.run_id for run in made.runs}


def test_a_trunk_that_has_passed_a_fork_point_is_not_waited_for(plan: Callable[..., Any], scaling: Any) -> None:
    made = plan(WSD, BUDGETS)
    trunk = next(run for run in made.runs if run.spec.physics.steps == 80)
    leave_checkpoint(Workspace(scaling.workspace), trunk.run_id, 20)
    again = plan(WSD, BUDGETS)
    assert forks(again)[10] is None
    assert forks(again)[20] is None
    assert forks(again)[40] == Fork(run_id=trunk.run_id, step=32)


def write_result(workspace: Workspace, run: Any) -> None:
    """The result of a completed run, as far as planning looks at it."""
    spec = run.spec
    validation = {"loss": 2.0, "perplexity": 7.4, "tokens": 1, "evaluation": spec.evaluation_fingerprint}
    result = {
        "run_id": run.run_id,
        "family": "llama",
        "size": "small",
        "seed": 0,
        "tokens": 5120,
        "steps": 20,
        "parameters": run.parameters.model_dump(),
        "flops": dict(run.flops),
        "validation": validation,
        "wall_seconds": 1.0,
        "device_hours": 0.1,
        "attempts": 1,
        "data_fingerprint": "",
        "tokenizer": "bytes",
        "schedule": "wsd",
    }
    path: Path = workspace.run(run.run_id).path / "result.json"
    path.write_text(json.dumps(result))


@pytest.mark.serial
@pytest.mark.slow
def test_shared_runs_cost_less_and_equal_runs_trained_alone(
    scaling: Any, write_sweep: WriteSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four budgets 1:2:4:8 with 20 % decay: at most 0.63 of the independent steps, and the same losses bit for bit."""
    path = write_sweep(WSD, BUDGETS)
    said = scaling("submit", path)
    assert said.code == 0, said
    shared = scaling("status", "tiny", "--json").json
    tokens_alone = sum(run["tokens"] for run in shared["runs"])
    assert shared["ledger"]["spent"]["tokens"] <= 0.63 * tokens_alone
    assert shared["ledger"]["saved"]["tokens"] == tokens_alone - shared["ledger"]["spent"]["tokens"]
    assert shared["ledger"]["wasted"]["tokens"] == 0

    monkeypatch.setenv("SCALING_WORKSPACE", str(tmp_path / "alone"))
    alone = {}
    for budget in ("2560", "10240"):
        assert scaling("submit", path, "--set", f"grid.tokens=[{budget}]", "--replace").code == 0
        (run,) = scaling("status", "tiny", "--json").json["runs"]
        alone[run["run_id"]] = run["validation"]["loss"]
    together = {run["run_id"]: run["validation"]["loss"] for run in shared["runs"]}
    assert alone == {run_id: together[run_id] for run_id in alone}
