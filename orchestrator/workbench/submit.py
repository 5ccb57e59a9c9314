"""Has plans carried out, on whichever engine. The one table of engines is here.

An engine is imported when it is asked for: planning for one needs none of what another needs.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from orchestrator.display.progress import make_display
from orchestrator.display.tables import plan_summary
from orchestrator.errors import InputError
from orchestrator.execution import submission
from orchestrator.planning.plan import Plan, plan_run
from orchestrator.workbench import pruning, slurm
from orchestrator.workbench.adaptive import submit as adaptive
from orchestrator.workbench.analyses.live_fit import live_fit
from xlstm.quantities import nearest
from xlstm.run.directory import Workspace
from xlstm.run.executor import Executor, PlannedRun
from xlstm.run.records import State, Status
from xlstm.run.spec import RunSpec

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Engine:
    """What submitting to an engine takes."""

    make: Callable[[Workspace, str], Executor]
    """Gives the executor for a sweep of a workspace. InputError where the machine cannot serve as one."""
    carry_out: "Callable[[Executor, Plan, Plan, Console], Mapping[str, Status] | None]"
    """Carries out a part of a plan: executor, plan, part and console; as `submit`."""
    detach: Callable[[Plan], str] | None = None
    """Has a saved plan carried out in the background and says by whom; None where nobody has to stay anyway."""


def submit(
    plan: Plan,
    on: str,
    console: "Console",
    only: Plan | None = None,
    *,
    replace: bool = False,
    go_on: bool = False,
) -> Mapping[str, Status] | None:
    """Have what is missing of a plan, or of the part `only`, carried out by the engine of a name.

    With `replace`, runs of the submitted sweep of this name that are not in the plan no longer belong to it; without,
    that is an InputError. With `go_on`, an adaptive sweep goes on whose runs contradict its law.

    Returns how every run ended; None where the engine has taken them over, and they go on by themselves. InputError
    where data or engine refuse; KeyboardInterrupt after every trainer left a checkpoint.
    """
    engine = find_engine(on)
    executor = _ready(engine, plan, console, replace=replace, go_on=go_on)
    take_back = plan.save()
    try:
        return engine.carry_out(executor, plan, only or plan, console)
    except slurm.PartlyHandedOverError:
        raise
    except InputError:  # it was refused before any of it was carried out
        take_back()
        raise


def detach(plan: Plan, on: str, console: "Console", *, replace: bool = False, go_on: bool = False) -> str | None:
    """Print a plan and have it carried out in the background; says by whom.

    None where the engine needs nobody to stay. InputError where the engine refuses.
    """
    engine = find_engine(on)
    if engine.detach is None:
        return None
    _ready(engine, plan, console, replace=replace, go_on=go_on)  # refused now is what would be in the background
    plan.save()
    return engine.detach(plan)


def train(spec: RunSpec, workspace: Workspace, console: "Console") -> Mapping[str, Status]:
    """Carry out one run here and now; returns how it ended, by its id."""
    display = make_display(console, "train", [plan_run(spec, workspace).document()])
    executor = ENGINES["local"].make(workspace, "train")
    return submission.submit(workspace, "train", [PlannedRun(spec)], executor, console, display)


def to_retry(plan: Plan) -> tuple[Plan, str] | None:
    """What of a plan failed, diverged or was cancelled, and the engine on which it ran; None where nothing was."""
    again = tuple(run for run in plan.runs if run.state.ended and run.state is not State.COMPLETED)
    if not again:
        return None
    launches = [plan.workspace.run(run.run_id).latest_launch() for run in again]
    ran = ["local", *(launch.executor for launch in launches if launch is not None)]
    on = slurm.NAME if slurm.has(plan.workspace, plan.name) else ran[-1]
    return replace(plan, runs=tuple(replace(run, settled=False) for run in again)), on


def _ready(engine: Engine, plan: Plan, console: "Console", *, replace: bool, go_on: bool) -> Executor:
    """The executor of a plan that may be carried out, once what it costs, and what does not fit, is told.

    InputError where it may not, or the engine refuses.
    """
    _refuse_to_drop(plan, replace)
    executor = engine.make(plan.workspace, plan.name)
    if go_on:
        adaptive.take_as_it_is(plan)
    console.print(f"{plan.name}: {plan_summary(plan.document())}", highlight=False, soft_wrap=True)
    for misfit in plan.misfits:
        console.print(misfit, highlight=False, style="yellow", soft_wrap=True)
    return executor


def _refuse_to_drop(plan: Plan, replace: bool) -> None:
    """InputError naming the runs of the submitted sweep of this name that would no longer belong to it."""
    if replace or not (dropped := plan.dropped):
        return
    named = ", ".join(dropped[:8]) + (f" and {len(dropped) - 8} more" if len(dropped) > 8 else "")
    runs = "1 run" if len(dropped) == 1 else f"{len(dropped)} runs"
    raise InputError(
        f"{plan.name} was submitted with {runs} that it would lose: {named}; give the new sweep another `name`, "
        "or replace the old one with --replace, which keeps their folders and the earlier version"
    )


def find_engine(on: str) -> Engine:
    """The engine of a name. InputError for another name."""
    if on not in ENGINES:
        raise InputError(f"--on {on}: no such executor; {nearest(on, tuple(ENGINES))}")
    return ENGINES[on]


def _under_control(executor: Executor, plan: Plan, part: Plan, console: "Console") -> Mapping[str, Status]:
    """Carry out a part of a plan from this process."""
    workspace, name = plan.workspace, plan.name
    settled = {run.run_id: workspace.run(run.run_id).status() for run in part.settled}
    if adaptive.is_adaptive(plan) and part is plan:
        return adaptive.carry_out(executor, plan, console)
    if not part.missing:
        # Of a controller that died after its last run, jobs may be left that have nothing to do.
        executor.cancel(executor.adopt([workspace.run(run.run_id) for run in part.runs]))
        return settled
    display = make_display(console, name, part.document()["runs"])
    fit = partial(live_fit, workspace, name)
    doomed = pruning.pruner(plan) if part is plan else dict  # what is tried again is asked for by name
    return settled | submission.submit(workspace, name, part.launches, executor, console, display, fit, doomed=doomed)


def _hand_over(executor: Executor, plan: Plan, part: Plan, console: "Console") -> None:
    """Give a part of a plan to Slurm. InputError where runs are to be pruned: there, nobody watches them."""
    pruning.refuse(plan, slurm.NAME)
    if adaptive.is_adaptive(plan) and part is plan:
        adaptive.hand_over(executor, plan, console)
    else:
        slurm.hand_over(executor, plan, part, console)


def _local(workspace: Workspace, sweep: str) -> Executor:
    from orchestrator.executors.local import LocalExecutor

    return LocalExecutor()


def _detach_here(plan: Plan) -> str:
    from orchestrator.execution.detached import detach_submission

    process, log = detach_submission(plan.workspace, plan.name), plan.directory.submission_log
    return f"process {process} carries out {plan.name}; its log is {log}"


def _ray(workspace: Workspace, sweep: str) -> Executor:
    try:
        from orchestrator.executors.ray import RayExecutor
    except ImportError:
        raise InputError("--on ray needs Ray: pip install 'ray[default,data]'") from None
    return RayExecutor(workspace, os.environ.get("RAY_ADDRESS"))


def _detach_into_cluster(plan: Plan) -> str:
    from orchestrator.executors.ray_keeper import keep

    log = plan.directory.submission_log
    if keep(plan.workspace, plan.name, os.environ.get("RAY_ADDRESS")):
        return f"the cluster carries out {plan.name}; its log is {log}"
    return f"the cluster carries out {plan.name} already, and will look again when it has done so; its log is {log}"


ENGINES: Mapping[str, Engine] = {
    "local": Engine(_local, _under_control, _detach_here),
    "ray": Engine(_ray, _under_control, _detach_into_cluster),
    slurm.NAME: Engine(slurm.make, _hand_over),
}
"""By the name that `--on` takes."""
