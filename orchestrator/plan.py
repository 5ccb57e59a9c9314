"""The plan of a sweep: what each run is, costs and shares, and what of it is done. Made before anything is spent.

A plan is data: `Plan.document()` is what `scaling plan --json` prints and what is kept in the sweep's folder, from
which status and analysis read which runs belong to the sweep. Imports without torch.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestrator.controller import PlannedRun, is_complete
from orchestrator.estimate import Speeds
from orchestrator.sharing import Share, share
from sweeps.expand import SweepRun
from sweeps.located import Problem, SweepError, nearest
from sweeps.sweep import Sweep
from xlstm import accounting
from xlstm.models.naming import family_label, size_label
from xlstm.records import Fork, Parameters, RunDirectory, State, Workspace, write_json
from xlstm.spec import RunSpec


@dataclass(frozen=True)
class RunPlan:
    """One run of the plan."""

    sweep_run: SweepRun
    parameters: Parameters
    flops: Mapping[str, float]
    """Training FLOPs of the run trained alone, by convention."""
    memory_gib_per_device: float
    device_hours: float
    """Of what this run itself trains: without the steps it takes over from a trunk."""
    basis: str
    """Whether the device-hours come from `measured` or `stated` speed."""
    state: State
    share: Share

    @property
    def spec(self) -> RunSpec:
        return self.sweep_run.spec

    @property
    def run_id(self) -> str:
        return self.spec.run_id

    @property
    def own_steps(self) -> int:
        """Steps this run trains itself."""
        return self.spec.physics.steps - (self.share.fork.step if self.share.fork else 0)

    def document(self) -> dict[str, Any]:
        """The run as `scaling plan --json` shows it."""
        physics, execution = self.spec.physics, self.spec.execution
        fork = self.share.fork
        return {
            "run_id": self.run_id,
            "model": self.sweep_run.point["model"],
            "size": self.sweep_run.point["size"],
            "seed": physics.seed,
            "tokens": physics.steps * physics.batch_tokens,
            "steps": physics.steps,
            "batch_tokens": physics.batch_tokens,
            "context_length": physics.data.context_length,
            "learning_rate": physics.optimizer.learning_rate,
            "ranks": execution.ranks,
            "accumulation": accumulation(self.spec),
            "parameters": self.parameters.model_dump(),
            "flops": dict(self.flops),
            "memory_gib_per_device": self.memory_gib_per_device,
            "device_hours": self.device_hours,
            "device_hours_basis": self.basis,
            "state": self.state.value,
            "forks_from": fork.model_dump() if fork else None,
            "point": dict(self.sweep_run.point),
        }


@dataclass(frozen=True)
class Plan:
    """The runs of a sweep in the order in which they are to start."""

    sweep: Sweep
    workspace: Workspace
    runs: tuple[RunPlan, ...]

    @property
    def name(self) -> str:
        return self.sweep.name

    @property
    def folder(self) -> Path:
        return self.workspace.sweeps / self.name

    @property
    def missing(self) -> list[RunPlan]:
        """Runs that are not complete."""
        return [run for run in self.runs if run.state is not State.COMPLETED]

    @cached_property
    def launches(self) -> list[PlannedRun]:
        """Every run as the controller takes it, in order."""
        return [PlannedRun(run.spec, run.share.fork, run.share.checkpoint_at) for run in self.runs]

    @cached_property
    def totals(self) -> dict[str, Any]:
        """Sums over the plan; `independent_*` is what the runs would cost without sharing."""
        missing = self.missing
        return {
            "runs": len(self.runs),
            "complete": len(self.runs) - len(missing),
            "tokens": sum(run.own_steps * run.spec.physics.batch_tokens for run in missing),
            "independent_tokens": sum(run.spec.physics.steps * run.spec.physics.batch_tokens for run in missing),
            "flops": sum(_own_flops(run.spec, run.flops["exact"], run.share) for run in missing),
            "independent_flops": sum(run.flops["exact"] for run in missing),
            "device_hours": sum(run.device_hours for run in missing),
        }

    def document(self) -> dict[str, Any]:
        """The plan as `scaling plan --json` prints it."""
        return {"sweep": self.name, "runs": [run.document() for run in self.runs], "totals": self.totals}

    def save(self) -> None:
        """Keep the sweep as submitted and its plan in the workspace."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "sweep.yaml").write_text(self.sweep.dump())
        document = self.document() | {"best_of": self.sweep.file.best_of}
        write_json(self.folder / "plan.json", document)


def make_plan(sweep: Sweep, workspace: Workspace) -> Plan:
    """Plan a sweep against what the workspace already holds. SweepError where the sweep does not make valid runs."""
    runs = sweep.runs
    directories = {run.spec.run_id: workspace.run(run.spec.run_id) for run in runs}
    complete = {run.spec.run_id: is_complete(directories[run.spec.run_id], run.spec) for run in runs}
    shares = share([run.spec for run in runs], complete, workspace)
    speeds = Speeds.measure(directories[run_id] for run_id, done in complete.items() if done)
    planned = [
        _plan_run(run, directories[run.spec.run_id], complete[run.spec.run_id], shares[run.spec.run_id], speeds)
        for run in runs
    ]
    return Plan(sweep, workspace, tuple(_in_order(planned)))


def accumulation(spec: RunSpec) -> int:
    """Forward passes per rank and optimizer step; 1 where the micro-batch is left to the trainer."""
    per_rank = spec.physics.batch_sequences // spec.execution.ranks
    return per_rank // (spec.execution.micro_batch_sequences or per_rank)


def load_document(workspace: Workspace, name: str) -> dict[str, Any]:
    """The kept plan of a submitted sweep. SweepError naming the nearest one for a name that was never submitted."""
    path = workspace.sweeps / name / "plan.json"
    try:
        document: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        names = submitted(workspace)
        hint = nearest(name, names) if names else "none was submitted here yet: scaling submit SWEEP.yaml --on local"
        raise SweepError([Problem(str(workspace.sweeps), 0, f"no sweep `{name}`; {hint}")]) from None
    return document


def submitted(workspace: Workspace) -> list[str]:
    """Names of the sweeps that were submitted to a workspace, the latest first."""
    plans = sorted(workspace.sweeps.glob("*/plan.json"), key=lambda path: -path.stat().st_mtime)
    return [path.parent.name for path in plans]


def plan_run(spec: RunSpec, workspace: Workspace) -> RunPlan:
    """Plan one run on its own."""
    run = SweepRun(spec, {"model": family_label(spec.physics.model), "size": size_label(spec.physics.model)})
    directory = workspace.run(spec.run_id)
    return _plan_run(run, directory, is_complete(directory, spec), Share(), Speeds())


def _plan_run(run: SweepRun, directory: RunDirectory, complete: bool, shared: Share, speeds: Speeds) -> RunPlan:
    physics = run.spec.physics
    parameters = accounting.parameters(physics.model)
    tokens = physics.steps * physics.batch_tokens
    flops = accounting.training_flops(physics.model, physics.data.context_length, tokens)
    hours, basis = speeds.device_hours(run.spec, parameters.total, _own_flops(run.spec, flops["exact"], shared))
    state = directory.status().state
    if complete:
        state = State.COMPLETED
    elif state is State.COMPLETED:
        state = State.PLANNED  # trained, but not measured as this sweep asks
    return RunPlan(
        sweep_run=run,
        parameters=parameters,
        flops=flops,
        memory_gib_per_device=accounting.memory(run.spec).total / 2**30,
        device_hours=hours,
        basis=basis,
        state=state,
        share=shared,
    )


def _own_flops(spec: RunSpec, flops: float, shared: Share) -> float:
    return flops * (1 - (shared.fork.step if shared.fork else 0) / spec.physics.steps)


def _in_order(runs: list[RunPlan]) -> list[RunPlan]:
    """By priority, then cheap first; a trunk counts as cheap as the cheapest run that waits for it."""
    cost = {run.run_id: run.device_hours for run in runs}
    urgency = {run.run_id: -run.sweep_run.priority for run in runs}
    for run in runs:
        fork: Fork | None = run.share.fork
        if fork is not None and fork.run_id in cost:
            cost[fork.run_id] = min(cost[fork.run_id], run.device_hours)
            urgency[fork.run_id] = min(urgency[fork.run_id], urgency[run.run_id])
    return sorted(runs, key=lambda run: (urgency[run.run_id], cost[run.run_id], run.share.fork is not None))
