"""Runs of a search that cannot win: which they are by the law of curves, and that they end while they train."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from gates import held_at
from ray_processes import nothing_is_left
from waiting import wait_until

from analysis.curves.curve import Curve, schedule
from analysis.curves.laws import LAWS
from analysis.curves.prune import losers
from analysis.data import runs
from orchestrator.display.tables import plan_summary
from orchestrator.errors import InputError
from orchestrator.execution.controller import Controller
from orchestrator.planning.plan import RunPlan, make_plan
from orchestrator.standing.status import look
from orchestrator.workbench import pruning
from sweeps.located import SweepError
from sweeps.sweep import Sweep
from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.executor import Handle, Job, JobState
from xlstm.run.records import Metric, State
from xlstm.run.spec import RunSpec

PEAKS, LOOKS, RISK = 1e-3 * 2.0 ** np.arange(-2, 3), 10, 0.1
CONSTANTS = {
    "annealing": lambda alpha, off: [2.6, np.log(0.6) + alpha * np.log(off), alpha, np.log(0.3 / off), np.log(0.01)],
    "multi-power": lambda alpha, off: [
        *[2.6, np.log(0.6) + alpha * np.log(off), alpha, np.log(100 / off)],
        *[np.log(2.0), 0.6, 0.65],
    ],
}


def cell(law: str, kind: str, seed: int) -> list[Curve]:
    """Five rates of one size: their ends are a parabola in the logarithm of the rate, validated with a scatter."""
    random = np.random.default_rng(seed)
    best, bend, alpha = random.uniform(-1.5, 1.5), random.uniform(0.005, 0.03), random.uniform(0.3, 0.6)
    made = []
    for place, peak in enumerate(PEAKS):
        path = schedule(kind, 2000, peak=peak, final=peak / 10, warmup_steps=50, decay_share=0.2)
        at = np.arange(200, 2001, 200, dtype=float)
        curve = Curve(str(place), at, at, path.rate_steps, path.rates, 50.0)
        loss, _ = LAWS[law].evaluate(curve.path, np.array(CONSTANTS[law](alpha, peak / 1e-3)))
        loss = (loss + 2.6 * bend * (place - 2 - best) ** 2) * np.exp(2e-3 * random.standard_normal(len(at)))
        made.append(replace(curve, losses=loss))
    return made


@pytest.mark.parametrize(("law", "kind", "least"), [("annealing", "cosine", 0.25), ("multi-power", "wsd", 0.02)])
def test_the_best_run_is_pruned_no_more_often_than_stated(law: str, kind: str, least: float) -> None:
    lost, trained, searches = 0, 0, 12
    for seed in range(searches):
        curves = cell(law, kind, seed)
        best = min(curves, key=lambda curve: curve.losses[-1])
        seen = {curve.run: 0 for curve in curves}
        pruned: set[str] = set()
        for looked in range(1, LOOKS + 1):
            seen |= {run: looked for run in seen if run not in pruned}
            so_far = [
                replace(curve, steps=curve.steps[: seen[curve.run]], losses=curve.losses[: seen[curve.run]])
                for curve in curves
                if curve.run not in pruned
            ]
            pruned |= {one.run for one in losers(so_far, RISK / (len(PEAKS) - 1) / LOOKS)}
        lost += best.run in pruned
        trained += sum(seen.values())
    assert lost <= RISK * searches
    assert 1 - trained / (searches * LOOKS * len(PEAKS)) > least


def test_nothing_is_said_of_runs_too_young_or_alike() -> None:
    curves = cell("annealing", "wsd", 0)
    assert losers([replace(one, steps=one.steps[:2], losses=one.losses[:2]) for one in curves], 0.5) == []
    # Before the decay nobody knows what it gives.
    assert losers([replace(one, steps=one.steps[:7], losses=one.losses[:7]) for one in curves], 0.5) == []
    first = replace(curves[2], run="again", steps=curves[2].steps[:9], losses=curves[2].losses[:9])
    assert losers([curves[2], first], 1e-3) == []


@dataclass
class Engine:
    """Carries out all its runs at once, a validation each at every poll."""

    planned: Mapping[str, RunPlan]
    finish: Callable[..., None]
    name: str = "engine"
    open: dict[str, Job] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)

    def submit(self, jobs: Sequence[Job]) -> list[Handle]:
        for job in jobs:
            self.open[job.token] = job
            job.run.set_state(State.RUNNING)
        return [Handle(job.run, job.token, job.token) for job in jobs]

    def has_room(self, spec: RunSpec) -> bool:
        return True

    def adopt(self, runs: Sequence[RunDirectory]) -> list[Handle]:
        return []

    def poll(self, handles: Sequence[Handle]) -> list[JobState]:
        for token, job in list(self.open.items()):
            step = self.steps[job.run.run_id] = self.steps.get(job.run.run_id, 0) + 10
            loss = 3.0 - np.log10(job.spec.physics.optimizer.learning_rate) / 10 + 2 * step**-0.5
            job.run.append_metrics({"step": step, "time": 1.0, "attempt": 1, Metric.VALIDATION_LOSS: float(loss)})
            if step == job.spec.physics.steps:
                self.finish(job.run.workspace, self.planned[job.run.run_id])
                del self.open[token]
        return [JobState.RUNNING if handle.token in self.open else JobState.ENDED for handle in handles]

    def rest(self, seconds: float) -> None:
        pass

    def cancel(self, handles: Sequence[Handle], *, grace_seconds: float = 0) -> None:
        for handle in handles:
            del self.open[handle.token]


def test_a_rate_that_cannot_win_ends_while_it_trains_and_that_is_final(
    scaling: Any, write_sweep: Callable[..., str], finish: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "LOOK_SECONDS", 0.0)
    path = write_sweep(
        ("tokens: [2560, 5120]", "tokens: [20480]\n  learning_rate: [1e-2, 1e-5]"),
        ("learning_rate: 1e-2, warmup_steps: 2", "warmup_steps: 2"),
        ("checkpoint_every: 5", "validate_every: 10, checkpoint_every: 5"),
        ("evaluation: {sequences: 16}\n", "evaluation: {sequences: 16}\nbest_of: learning_rate\nprune: 0.05\n"),
    )
    workspace = Workspace(scaling.workspace)
    plan = make_plan(Sweep.load(path), workspace)
    plan.save()
    engine = Engine({run.run_id: run for run in plan.runs}, finish)
    statuses = Controller(workspace, engine, plan.launches, doomed=pruning.pruner(plan))()
    won, lost = sorted(look(workspace, "tiny").runs, key=lambda run: -run.planned["learning_rate"])
    assert [statuses[run.run_id].state for run in (won, lost)] == [State.COMPLETED, State.PRUNED]
    assert won.run_id in lost.reason
    assert 30 <= engine.steps[lost.run_id] < 80
    assert lost.ledger.pruned.tokens == 20480 - lost.ledger.spent.tokens
    assert "saved by pruned runs" in scaling("status", "tiny").out
    rows = runs.read("tiny", workspace=workspace).frame
    assert str(rows.filter(rows["run_id"] == lost.run_id)["excluded"][0]).startswith("unfinished (PRUNED: cannot win")
    again = make_plan(Sweep.load(path), workspace)
    assert [run.run_id for run in again.settled] == [lost.run_id]
    assert plan_summary(again.document()) == "2 runs, 1 complete: nothing to train; 1 pruned"
    with pytest.raises(InputError, match="no run is validated"):
        pruning.pruner(make_plan(Sweep.load(path, ("resources=[]",)), workspace))
    with pytest.raises(InputError, match="nobody watches runs on slurm"):
        pruning.refuse(plan, "slurm")
    with pytest.raises(SweepError, match="`prune` ends runs that cannot win"):
        Sweep.load(path, ("best_of=null",))


def searched(write_sweep: Callable[..., str]) -> str:
    """Two rates of a run of 1500 steps, of which one learns nothing."""
    return write_sweep(
        ("tokens: [2560, 5120]", "tokens: [384000]\n  learning_rate: [1e-2, 1e-6]"),
        ("learning_rate: 1e-2, warmup_steps: 2", "warmup_steps: 2"),
        ("checkpoint_every: 5", "validate_every: 25, checkpoint_every: 1000000"),
        ("evaluation: {sequences: 16}\n", "evaluation: {sequences: 16}\nbest_of: learning_rate\nprune: 0.05\n"),
    )


def worse(workspace: Workspace, path: str) -> RunDirectory:
    """That one."""
    runs = make_plan(Sweep.load(path), workspace).runs
    return workspace.run(min(runs, key=lambda run: run.spec.physics.optimizer.learning_rate).run_id)


def lost_with_its_checkpoint(workspace: Workspace) -> str:
    """The run of the lower rate, which was pruned before its end, at a step of which it left a checkpoint."""
    won, lost = sorted(look(workspace, "tiny").runs, key=lambda run: -run.planned["learning_rate"])
    assert (won.state, lost.state) == (State.COMPLETED, State.PRUNED)
    verdict = workspace.run(lost.run_id).verdict(1)
    assert verdict is not None
    assert verdict.state is State.PREEMPTED
    assert workspace.run(lost.run_id).has_checkpoint(verdict.step or 0)
    assert (verdict.step or 0) < 1500
    return lost.run_id


@pytest.mark.serial
@pytest.mark.slow
@pytest.mark.usefixtures("gated")
def test_a_trainer_that_is_pruned_leaves_its_checkpoint_and_the_sweep_ends(
    scaling: Any, write_sweep: Callable[..., str]
) -> None:
    workspace, path = Workspace(scaling.workspace), searched(write_sweep)
    with held_at(worse(workspace, path), 1450):  # however late somebody looks
        said = scaling.run("submit", path, "--on", "local")
    assert said.code == 0, said
    lost_with_its_checkpoint(workspace)
    assert scaling("retry", "tiny").code == 0
    assert look(workspace, "tiny").counts == {State.COMPLETED: 2}


@pytest.mark.serial
@pytest.mark.slow
@pytest.mark.usefixtures("gated")
def test_a_trainer_that_is_pruned_on_a_ray_cluster_leaves_its_checkpoint_there_too(
    cluster: Any, scaling: Any, write_sweep: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    workspace, path = Workspace(scaling.workspace), searched(write_sweep)
    with held_at(worse(workspace, path), 1450):
        said = scaling.run("submit", path, "--on", "ray")
    assert said.code == 0, said
    lost = lost_with_its_checkpoint(workspace)
    wait_until(lambda: nothing_is_left(cluster))
    attempts = workspace.run(lost).status().attempt
    assert scaling.run("submit", path, "--on", "ray").code == 0  # final there, as here
    assert workspace.run(lost).status().attempt == attempts
