"""Measures trained runs as a sweep asks, on whichever engine, and trains nothing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from orchestrator.errors import InputError
from orchestrator.planning.plan import Plan, RunPlan
from orchestrator.planning.sharing import Share
from orchestrator.workbench.submit import find_engine
from xlstm.quantities import nearest
from xlstm.run.directory import Workspace
from xlstm.run.records import Measured, State, Status

if TYPE_CHECKING:
    from rich.console import Console

    from sweeps.expand import SweepRun


@dataclass(frozen=True)
class Evaluating:
    """The trained runs of a plan, each with the evaluations that are asked for."""

    plan: Plan
    part: Plan
    left_out: tuple[str, ...]
    """Runs that cannot be measured, each with the reason."""

    @property
    def summary(self) -> str:
        """What there is to do, in a line."""
        workspace = self.plan.workspace
        missing = [len(workspace.run(run.run_id).unmeasured(run.spec)) for run in self.part.runs]
        asked = sum(len(run.spec.evaluations) for run in self.part.runs)
        return (
            f"{self.plan.name}: {asked} evaluations of {len(self.part.runs)} trained runs, "
            f"{asked - sum(missing)} made before"
        )

    def carry_out(self, on: str, console: "Console") -> Mapping[str, Status] | None:
        """Make what is missing; returns how every run ended, None where the engine has taken them over.

        InputError where the text of an evaluation or the engine refuses; KeyboardInterrupt after what was summed up so
        far was kept.
        """
        engine = find_engine(on)
        executor = engine.make(self.plan.workspace, self.plan.name)
        return engine.carry_out(executor, self.plan, self.part, console)

    def measured(self) -> Iterator[Measured]:
        """What the evaluations that are asked for have measured, run by run."""
        for run in self.part.runs:
            directory = self.plan.workspace.run(run.run_id)
            wanted = {directory.measured_file(one, run.spec).stem for one in run.spec.evaluations}
            yield from (one for one in directory.measured() if f"{one.name}-{one.evaluation}" in wanted)


def plan_evaluations(plan: Plan, names: Sequence[str] = (), only: str | None = None) -> Evaluating:
    """What there is to measure of a plan, or of the one run `only`; of the evaluations, those of the names.

    InputError where there is no such evaluation, and where no run is trained.
    """
    known = list(dict.fromkeys(one.name for run in plan.runs for one in run.spec.evaluations))
    if not known:
        raise InputError(
            f"{plan.name} asks for no evaluations; list them under `evaluations`, or lay one over it, such as "
            "evaluations.long.kind=length-extrapolation"
        )
    for name in names:
        if name not in known:
            raise InputError(f"--with {name}: no such evaluation of {plan.name}; {nearest(name, known)}")
    chosen, left_out = [], []
    for run in plan.runs:
        if only not in (None, run.run_id):
            continue
        asked = tuple(one for one in run.spec.evaluations if not names or one.name in names)
        planned = _trained(plan, run, replace(run.sweep_run, spec=run.spec.model_copy(update={"evaluations": asked})))
        if isinstance(planned, str):
            left_out.append(planned)
        else:
            chosen.append(planned)
    if not chosen:
        raise InputError(f"{left_out[0]}; train first: scaling submit {plan.name}")
    return Evaluating(plan, replace(plan, runs=tuple(chosen)), tuple(left_out))


def holder_of(workspace: Workspace, run_id: str) -> str:
    """The name of the submitted sweep that holds a run, the latest of several. InputError where none does."""
    for name in workspace.submitted():
        plan = workspace.sweep(name).known_plan()
        if plan is not None and any(row["run_id"] == run_id for row in plan["runs"]):
            return name
    raise InputError(f"{run_id} belongs to no submitted sweep; give the sweep that says how it is measured")


def _trained(plan: Plan, run: RunPlan, asked: "SweepRun") -> RunPlan | str:
    """The run as it is to be measured; why it cannot be where it is not trained."""
    directory = plan.workspace.run(run.run_id)
    result = directory.known_result()
    if result is None:
        return f"{run.run_id} is not trained"
    done = directory.is_answered(result, asked.spec)
    if not done and not directory.has_checkpoint(result.steps):
        return f"{run.run_id} has no checkpoint of its last step, {result.steps}, any more"
    return replace(run, sweep_run=asked, share=Share(), state=State.COMPLETED if done else State.PLANNED, settled=False)
