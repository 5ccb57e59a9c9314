"""The plan of a sweep: what each run is, costs and shares, and what of it is done. Made before anything is spent.

A plan is data: `Plan.document()` is what `scaling plan --json` prints and what is kept in the sweep's folder, from
which status and analysis read which runs belong to the sweep. Imports without torch.
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from orchestrator.planning.capacity import Capacity, capacity, card_of, checkpoint_gib, checkpoint_steps
from orchestrator.planning.estimate import Estimate, Speeds, sequential_seconds
from orchestrator.planning.expectations import expected_points
from orchestrator.planning.known import as_known, as_submitted
from orchestrator.planning.pool import bought_shares
from orchestrator.planning.rates import RatesByLaw
from orchestrator.planning.sharing import Share, share
from sweeps.expand import SweepRun
from sweeps.sweep import Sweep
from xlstm import accounting
from xlstm.accounting.cards import Card
from xlstm.models.naming import family_label
from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.executor import PlannedRun, is_settled
from xlstm.run.json_files import DamagedFileError, write_text
from xlstm.run.records import Fork, Parameters, State, write_json
from xlstm.run.spec import RunSpec
from xlstm.run.sweep_directory import SweepDirectory


@dataclass(frozen=True)
class RunPlan:
    """One run of the plan."""

    sweep_run: SweepRun
    parameters: Parameters
    flops: Mapping[str, float]
    """Training FLOPs of the run trained alone, by convention."""
    card: Card | None
    """The card it is planned for; None on CPU."""
    capacity: Capacity
    estimate: Estimate
    """Of what this run itself trains: without the steps it takes over from a trunk."""
    state: State
    share: Share
    damage: tuple[str, ...] = ()
    """What of the run in the workspace is damaged, each with what to do."""
    settled: bool = False
    """Whether it diverged, was pruned or was set aside, so that only who asks for it trains it again."""

    @property
    def spec(self) -> RunSpec:
        return self.sweep_run.spec

    @property
    def run_id(self) -> str:
        return self.spec.run_id

    @property
    def start(self) -> int:
        """The step it starts at: 0, or where it forks off."""
        return self.share.start

    @property
    def own_tokens(self) -> int:
        """Tokens this run trains itself."""
        return (self.spec.physics.steps - self.start) * self.spec.physics.batch_tokens

    @property
    def own_flops(self) -> float:
        """Exact FLOPs this run spends itself."""
        return self.flops["exact"] * (1 - self.start / self.spec.physics.steps)

    @property
    def device_hours(self) -> float:
        return self.estimate.device_hours

    @property
    def accumulation(self) -> int:
        """Forward passes per rank and optimizer step."""
        per_rank = self.spec.physics.batch_sequences // self.spec.execution.ranks
        return per_rank // self.capacity.micro_batch_sequences

    @property
    def disk_gib(self) -> float:
        """Of the checkpoints that stay when the run has ended."""
        _, kept = checkpoint_steps(self.spec, self.start, self.share.checkpoint_at)
        return kept * checkpoint_gib(self.parameters.total)

    @property
    def misfit(self) -> str | None:
        """Why the run does not fit its card, and what would help; None where it fits or there is no card."""
        return None if self.capacity.fits is not False else self.describe_misfit(self.capacity.memory_gib)

    def describe_misfit(self, memory_gib: float) -> str:
        """That the run needs so much on each device, of which its card has less, and what would help."""
        assert self.card is not None
        execution = self.spec.execution
        ways = ["activation_checkpointing: full"] if execution.activation_checkpointing != "full" else []
        ways += ["sharding: fsdp"] if execution.sharding != "fsdp" else []
        ways += ["a smaller micro_batch_sequences"] if (execution.micro_batch_sequences or 1) > 1 else []
        return (
            f"{self.run_id} does not fit: each of its {execution.ranks} devices needs about "
            f"{memory_gib:.1f} GiB with {self.capacity.micro_batch_sequences} of its sequences at a time, and of "
            f"{self.card.name} {self.capacity.usable_gib:.1f} GiB can be used; set {', '.join([*ways, 'more devices'])}"
        )

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
            "nodes": execution.nodes,
            "ranks": execution.ranks,
            "micro_batch_sequences": self.capacity.micro_batch_sequences,
            "accumulation": self.accumulation,
            "parameters": self.parameters.model_dump(),
            "flops": dict(self.flops),
            "gpu": self.card.name if self.card else None,
            "memory_gib_per_device": self.capacity.memory_gib,
            "usable_gib_per_device": self.capacity.usable_gib,
            "fits": self.capacity.fits,
            "disk_gib": self.disk_gib,
            "device_hours": self.device_hours,
            "device_hours_basis": self.estimate.basis,
            "mfu": self.estimate.mfu,
            "expected_points": expected_points(self.spec, self.start, self.card),
            "state": self.state.value,
            "settled": self.settled,
            "forks_from": fork.model_dump() if fork else None,
            "point": dict(self.sweep_run.point),
        }


@dataclass(frozen=True)
class Plan:
    """The runs of a sweep in the order in which they are to start."""

    sweep: Sweep
    workspace: Workspace
    runs: tuple[RunPlan, ...]
    rates_by_law: tuple[Mapping[str, Any], ...] = ()
    """Learning rates that were taken from laws, with their sources: kept, so that ids do not drift."""

    @property
    def name(self) -> str:
        return self.sweep.name

    def __repr__(self) -> str:
        return f"<plan of {self.name}: {len(self.runs)} runs, {self.totals['complete']} complete>"

    @property
    def directory(self) -> SweepDirectory:
        return self.workspace.sweep(self.name)

    @property
    def missing(self) -> list[RunPlan]:
        """Runs that are to be carried out: those that are neither complete nor settled otherwise."""
        return [run for run in self.runs if run.state is not State.COMPLETED and not run.settled]

    @property
    def settled(self) -> list[RunPlan]:
        """Runs that diverged, were pruned, or were set aside."""
        return [run for run in self.runs if run.settled]

    @property
    def misfits(self) -> list[str]:
        """Of the runs that are missing those that do not fit their card, each with what would help."""
        return [misfit for run in self.missing if (misfit := run.misfit)]

    @property
    def advice(self) -> list[str]:
        """Of the runs that are missing those that use a small part of their card, counted by card."""
        slow = Counter(run.card for run in self.missing if run.card and run.spec.physics.precision == "float32")
        return [
            f"{count} runs compute in float32, for which {card.name} has {card.float32 / 1e12:.0f} of its "
            f"{card.bfloat16 / 1e12:.0f} TFLOP/s; set precision: bf16-mixed"
            for card, count in slow.items()
        ]

    @property
    def rates_told(self) -> list[str]:
        """Each learning rate by a law, for people."""
        return [
            f"learning_rate {row['learning_rate']:g} [{row['interval'][0]:.3g}, {row['interval'][1]:.3g}] of "
            f"{row['family']} at N = {row['parameters']:.4g}, D = {row['tokens']:.4g}, by {row['source']}"
            for row in self.rates_by_law
        ]

    @property
    def damage(self) -> list[str]:
        """What is damaged of the runs in the workspace, each with what to do."""
        return [line for run in self.runs for line in run.damage]

    @cached_property
    def launches(self) -> list[PlannedRun]:
        """Every run that is not settled, as the controller takes it, in order."""
        return [PlannedRun(run.spec, run.share.fork, run.share.checkpoint_at) for run in self.runs if not run.settled]

    @cached_property
    def totals(self) -> dict[str, Any]:
        """Sums over the plan; `independent_*` is what the runs would cost without sharing."""
        missing = self.missing
        return {
            "runs": len(self.runs),
            "complete": len(self.runs) - len(missing) - len(self.settled),
            "settled": len(self.settled),
            "tokens": sum(run.own_tokens for run in missing),
            "independent_tokens": sum(run.spec.physics.steps * run.spec.physics.batch_tokens for run in missing),
            "flops": sum(run.own_flops for run in missing),
            "independent_flops": sum(run.flops["exact"] for run in missing),
            "device_hours": sum(run.device_hours for run in missing),
            "disk_gib": sum(run.disk_gib for run in missing),
        }

    def document(self, price: float | None = None) -> dict[str, Any]:
        """The plan as `scaling plan --json` prints it; with the price of a GPU-hour, what the GPUs cost too."""
        runs, totals = [run.document() for run in self.runs], dict(self.totals)
        if price is not None:
            for run in runs:
                run["cost"] = price * run["device_hours"] if run["gpu"] else 0.0
            to_train = {run.run_id for run in self.missing}
            totals["cost"] = sum(run["cost"] for run in runs if run["run_id"] in to_train)
        document: dict[str, Any] = {"sweep": self.name, "runs": runs, "totals": totals}
        if self.sweep.file.design is not None:
            document["pool"] = True
        if self.rates_by_law:
            document["rates_by_law"] = list(map(dict, self.rates_by_law))
        return document

    @property
    def dropped(self) -> list[str]:
        """Runs of the submitted sweep of this name that this plan no longer has."""
        if not self.directory.plan_file.is_file():
            return []
        mine = {run.run_id for run in self.runs}
        try:
            before = self.directory.plan()["runs"]
        except DamagedFileError:
            return []  # what it held is not known any more, and it is written anew
        return [row["run_id"] for row in before if row["run_id"] not in mine]

    def save(self) -> Callable[[], None]:
        """Keep the sweep as submitted and its plan in the workspace; returns what takes that back.

        A sweep of this name that said something else stays readable among the earlier versions.
        """
        directory, text = self.directory, self.sweep.dump()
        files = (directory.sweep_file, directory.plan_file)
        before = [(path.read_bytes(), path.stat().st_mtime_ns) if path.is_file() else None for path in files]
        changed = before[0] is not None and before[0][0] != text.encode()
        version = directory.keep_version() if changed else None
        directory.path.mkdir(parents=True, exist_ok=True)
        write_text(directory.sweep_file, text)
        self.save_document()

        def take_back() -> None:
            for path, kept in zip(files, before, strict=True):
                if kept is None:
                    path.unlink()
                else:
                    path.write_bytes(kept[0])
                    os.utime(path, ns=(kept[1], kept[1]))
            if version is not None:
                shutil.rmtree(version)

        return take_back

    def save_document(self) -> None:
        """Keep the plan in the folder of the sweep."""
        write_json(self.directory.plan_file, self.document() | {"best_of": self.sweep.file.best_of})


def make_plan(sweep: Sweep, workspace: Workspace, *, refresh_law: bool = False) -> Plan:
    """Plan a sweep against what the workspace already holds. SweepError where the sweep does not make valid runs.

    Learning rates by a law are those of the submitted sweep, unless the law is to be asked anew.
    """
    rates = RatesByLaw(workspace, sweep.name, refresh=refresh_law)
    sweep = replace(sweep, rate_by_law=rates)
    runs = as_known(as_submitted(sweep.runs, workspace, sweep.name), workspace)
    directories = {run.spec.run_id: workspace.run(run.spec.run_id) for run in runs}
    results = {run_id: directory.known_result() for run_id, directory in directories.items()}
    complete = {
        run_id: directories[run_id].is_answered(results[run_id], run.spec)
        for run in runs
        if (run_id := run.spec.run_id)
    }
    if sweep.file.design is None:
        shares = share([run.spec for run in runs], complete, workspace)
    else:  # what each shares is decided when it is bought
        shares = dict.fromkeys(complete, Share()) | bought_shares(workspace.sweep(sweep.name).decisions())
    speeds = Speeds.measure((directories[run_id], result) for run_id, result in results.items() if result)
    planned = [
        _plan_run(run, directories[run.spec.run_id], complete[run.spec.run_id], shares[run.spec.run_id], speeds)
        for run in runs
    ]
    return Plan(sweep, workspace, tuple(_in_order(planned)), tuple(rates.taken.values()))


def plan_run(spec: RunSpec, workspace: Workspace) -> RunPlan:
    """Plan one run on its own."""
    run = SweepRun(spec, {"model": family_label(spec.physics.model), "size": accounting.size_label(spec.physics.model)})
    directory = workspace.run(spec.run_id)
    result = directory.known_result()
    return _plan_run(run, directory, directory.is_answered(result, spec), Share(), Speeds())


def _plan_run(run: SweepRun, directory: RunDirectory, complete: bool, shared: Share, speeds: Speeds) -> RunPlan:
    physics = run.spec.physics
    parameters = accounting.parameters(physics.model)
    flops = accounting.training_flops(physics.model, physics.data.context_length, physics.steps * physics.batch_tokens)
    card = card_of(run.spec, run.gpu)
    own_flops = flops["exact"] * (1 - shared.start / physics.steps)
    size = capacity(run.spec, card)
    own_tokens = (physics.steps - shared.start) * physics.batch_tokens
    sequential = sequential_seconds(run.spec, own_tokens, size.micro_batch_sequences)
    status = directory.status()
    state = status.state
    if complete:
        state = State.COMPLETED
    elif state is State.COMPLETED and directory.result_file in directory.noticed:
        state = State.FAILED
    elif state is State.COMPLETED:
        state = State.PLANNED  # trained, but not measured as this sweep asks
    return RunPlan(
        sweep_run=run,
        parameters=parameters,
        flops=flops,
        card=card,
        capacity=size,
        estimate=speeds.estimate(run.spec, parameters.total, own_flops, card, run.mfu, sequential),
        state=state,
        share=shared,
        damage=tuple(map(str, directory.noticed.values())),
        settled=not complete and is_settled(status),
    )


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
