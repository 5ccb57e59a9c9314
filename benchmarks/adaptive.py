"""A pool of runs bought adaptively against the pool bought whole: cost, the target's interval, and the target trained.

`python -m benchmarks.adaptive WORKSPACE` trains, for each seed, the whole pool of `sweeps/laptop/adaptive.yaml` and the
target itself (what is there already is not trained again), has the pool bought adaptively from those runs by the
controller that a submission has, and writes `results/adaptive.json`, `results/adaptive.md` and the picture.

Bought runs are taken from the pool that was trained whole, instead of being trained again: a run that is forked from
any checkpoint of its stable phase equals the same run trained alone. Costs are those of the plan, after sharing, which
the ledger of an undisturbed sweep has, too.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from rich.console import Console

from analysis.data import runs
from analysis.decisions import pool
from orchestrator import Sweep
from orchestrator.execution.controller import Controller
from orchestrator.planning.plan import Plan, make_plan
from orchestrator.standing.status import look
from orchestrator.workbench.adaptive.buyer import Buyer
from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.executor import Handle, Job, JobState
from xlstm.run.records import State
from xlstm.run.spec import RunSpec

SEEDS = (6, 7, 8)
SWEEP = "sweeps/laptop/adaptive.yaml"
RESULTS = Path(__file__).parent / "results"
TARGET = ("grid.size=[w32]", "grid.steps=[3500]")
"""The target as a sweep of one run."""


@dataclass
class Trained:
    """An engine that takes runs from a workspace in which they were trained, one at a time."""

    workspace: Workspace
    name: str = "trained"
    _open: list[str] = field(default_factory=list)

    def submit(self, jobs: Sequence[Job]) -> list[Handle]:
        for job in jobs:
            shutil.copy2(self.workspace.run(job.run.run_id).result_file, job.run.result_file)
            for step in {*job.checkpoint_at, job.spec.physics.undecided_steps}:
                mark = job.run.checkpoint_mark(step)
                mark.parent.mkdir(parents=True, exist_ok=True)
                mark.touch()
            job.run.set_state(State.COMPLETED)
            self._open.append(job.token)
        return [Handle(job.run, job.token, job.token) for job in jobs]

    def has_room(self, spec: RunSpec) -> bool:
        return not self._open

    def adopt(self, runs: Sequence[RunDirectory]) -> list[Handle]:
        return []

    def poll(self, handles: Sequence[Handle]) -> list[JobState]:
        self._open.clear()
        return [JobState.ENDED for _ in handles]

    def rest(self, seconds: float) -> None:
        pass

    def cancel(self, handles: Sequence[Handle], *, grace_seconds: float = 0) -> None:
        pass


def plan(workspace: Workspace, *overrides: str) -> Plan:
    """The plan of the sweep under overrides."""
    return make_plan(Sweep.load(SWEEP, overrides), workspace)


def compare(folder: Path, seed: int, console: Console) -> dict[str, Any]:
    """One seed: what the whole pool and the bought part of it say of the target, and what the target came to."""
    whole, bought = Workspace(folder / "whole"), Workspace(folder / f"bought-{seed}")
    alone = ("design=null", f"grid.seed=[{seed}]")
    for name, overrides in ((f"whole-{seed}", ()), (f"target-{seed}", TARGET)):
        Sweep.load(SWEEP, (*alone, f"name={name}", *overrides)).plan(whole.root).submit(quiet=True)
    (target,) = plan(whole, *alone, *TARGET).runs
    at = float(target.parameters.total), float(target.spec.physics.tokens)
    shutil.rmtree(bought.root, ignore_errors=True)
    made = plan(bought, f"grid.seed=[{seed}]")
    design = made.sweep.file.design
    assert design is not None
    assert [(one.parameters, one.tokens) for one in design.target] == [at]
    made.save()
    buyer = Buyer(made, Trained(whole), console, design)
    Controller(bought, buyer.executor, buyer.begin(), more=buyer)()
    rows = bought.sweep(made.name).decisions()
    law = pool.law(runs.load(f"whole-{seed}", workspace=whole), design.form, design.seed)
    assert law is not None
    loss = whole.run(target.run_id).result().validation.loss
    spent = look(whole, f"whole-{seed}").ledger.spent.flops
    paid = 0.0
    path = []
    for row in rows:
        if row["decision"] == "bought":
            paid += row["cost"]["flops"]
        elif row["decision"] == "seen" and row["targets"]:
            path.append({"share": paid / spent, "target": row["targets"][0]})
    return {
        "seed": seed,
        "loss": loss,
        "whole": {"runs": 20, "flops": spent, "target": pool.predicted(law, at)},
        "bought": {
            "runs": sum(row["decision"] == "bought" for row in rows),
            "flops": paid,
            "target": rows[-1]["families"]["llama"]["targets"][0],
            "stopped": rows[-1]["why"],
        },
        "path": path,
    }


def is_inside(found: dict[str, Any], which: str) -> bool:
    """Whether the target that was trained lies inside the new-run interval."""
    low, high = found[which]["target"]["interval"]
    return bool(low <= found["loss"] <= high)


def table(found: Sequence[dict[str, Any]]) -> str:
    """Seeds side by side, in Markdown."""
    lines = [
        "| seed | target's loss | whole pool: new-run interval | bought: runs, share of the cost | new-run interval |",
        "| --- | --- | --- | --- | --- |",
    ]
    for one in found:
        shown = []
        for which in ("whole", "bought"):
            low, high = one[which]["target"]["interval"]
            shown.append(f"[{low:.3f}, {high:.3f}]{'' if is_inside(one, which) else ' (outside)'}")
        share = one["bought"]["flops"] / one["whole"]["flops"]
        bought = f"{one['bought']['runs']} of {one['whole']['runs']}, {share:.0%}, {one['bought']['stopped']}"
        lines.append(f"| {one['seed']} | {one['loss']:.3f} | {shown[0]} | {bought} | {shown[1]} |")
    return "\n".join(lines) + "\n"


def draw(found: Sequence[dict[str, Any]], path: Path) -> None:
    """The target's interval after each run that was bought, over the share of the pool's cost."""
    figure, axes = plt.subplots(
        1, len(found), figsize=(1.6 + 3.2 * len(found), 3.0), sharey=True, squeeze=False, layout="constrained"
    )
    widest = max(one["whole"]["target"]["interval"][1] - one["whole"]["target"]["interval"][0] for one in found)
    losses = [one["loss"] for one in found]
    for ax, one in zip(axes[0], found, strict=True):
        known = [step for step in one["path"] if step["target"]["interval"] is not None]
        share = [step["share"] for step in known]
        low, high = zip(*(step["target"]["interval"] for step in known), strict=True)
        ax.fill_between(share, low, high, alpha=0.25, step="post")
        ax.step(share, [step["target"]["loss"] for step in known], where="post", label="bought so far")
        ends = (("all that was bought", share[-1], "bought", "C0"), ("the whole pool", 1.0, "whole", "C1"))
        for label, at, which, color in ends:
            a, b = one[which]["target"]["interval"]
            ax.errorbar([at], [(a + b) / 2], [[(b - a) / 2]], fmt="none", capsize=4, color=color, label=label)
        ax.axhline(one["loss"], color="black", linewidth=0.8, linestyle="--", label="the target, trained")
        ax.set(title=f"seed {one['seed']}", xlabel="share of the pool's cost", xlim=(0, 1.05))
        ax.set_ylim(min(losses) - widest, max(losses) + widest)
    axes[0, 0].set_ylabel("loss at the target, new run")
    axes[0, 0].legend(fontsize=7)
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="Of the runs that are trained.")
    asked = parser.parse_args()
    console = Console(markup=False, width=200)
    found = [compare(asked.workspace.absolute(), seed, console) for seed in asked.seeds]
    (RESULTS / "adaptive.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "adaptive.md").write_text(table(found))
    draw(found, Path("docs/images/adaptive.png"))
    console.print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
