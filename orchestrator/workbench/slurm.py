"""What the verbs about sweeps do where one was handed to Slurm. Its room is imported for those sweeps alone."""

import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestrator.errors import InputError
from sweeps.located import SweepError
from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.executor import Executor, Job
from xlstm.run.json_files import DamagedFileError

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.planning.plan import Plan
    from slurm.check import Finding
    from sweeps.sweep import Sweep

NAME = "slurm"
"""By which the engine is asked for."""
ASK_SECONDS = 30.0
"""Between two questions to Slurm while somebody watches: between them the run directories tell enough."""


def has(workspace: Workspace, sweep: str) -> bool:
    """Whether runs of a sweep were ever handed to Slurm."""
    from slurm.batches import batches_of

    return bool(batches_of(workspace, sweep))


class PartlyHandedOverError(InputError):
    """Slurm refused some jobs, after it had taken others of the same submission."""


def make(workspace: Workspace, sweep: str) -> Executor:
    """The executor for a sweep. InputError where Slurm does not answer, or another process carries the sweep out."""
    from orchestrator.execution.lock import holder

    try:
        from slurm.commands import SlurmError
        from slurm.executor import SlurmExecutor
    except ModuleNotFoundError as error:
        raise InputError(f"--on slurm needs {error.name}: pip install {error.name}") from None
    if who := holder(workspace, sweep):
        raise InputError(f"{sweep} is carried out by {who}; end that first: scaling cancel {sweep}")
    executor = SlurmExecutor(workspace, sweep)
    try:
        executor.ask()
    except SlurmError as error:
        raise InputError(str(error)) from None
    return executor


def hand_over(executor: Executor, plan: "Plan", part: "Plan", console: "Console") -> None:
    """Give what is missing of a part of a plan to Slurm and return: the rest is its and the jobs'.

    InputError where the data cannot be prepared, or Slurm or the site refuses.
    """
    from orchestrator.execution.controller import admit
    from orchestrator.execution.submission import prepare_data, prepare_evaluations, refuse_drift
    from slurm.commands import SlurmError

    jobs = []
    for run in part.missing:
        directory = plan.workspace.run(run.run_id)
        directory.withdraw_cancel()
        if not admit(directory, run.spec, console.print):
            jobs.append(Job(directory, run.spec, uuid.uuid4().hex, run.share.fork, run.share.checkpoint_at))
    prepare_data(plan.workspace, [job.spec for job in jobs], console)
    refuse_drift(plan.workspace, [run.spec for run in plan.runs])
    prepare_evaluations(plan.workspace, [job.spec for job in jobs], console)
    try:
        handles = executor.submit(jobs)
    except (SlurmError, ValueError) as error:
        taken = {handle.token for handle in executor.adopt([job.run for job in jobs])} & {job.token for job in jobs}
        if taken:
            raise PartlyHandedOverError(f"{error}; {len(taken)} of {len(jobs)} runs are with Slurm") from None
        raise InputError(str(error)) from None
    if handles:
        console.print(f"{len(handles)} runs are with Slurm; scaling status {plan.name} tells how they stand")


def next_round(executor: Executor, plan: "Plan", console: "Console") -> None:
    """Have an adaptive sweep submitted again when its jobs have ended. InputError where Slurm refuses."""
    from slurm.commands import SlurmError
    from slurm.executor import SlurmExecutor
    from slurm.next_round import submit_next

    assert isinstance(executor, SlurmExecutor)
    try:
        number = submit_next(executor, list(executor.alive().values()))
    except (SlurmError, ValueError) as error:
        raise PartlyHandedOverError(f"{error}; go on with: scaling submit {plan.name} --on {NAME}") from None
    if number is not None:
        console.print(f"job {number} buys the next runs when these have ended", highlight=False)


def reconcile(workspace: Workspace, sweep: str) -> list[str]:
    """Write into the run directories what Slurm alone knows. Returns the runs of the sweep that were handed to it."""
    if not has(workspace, sweep):
        return []
    from slurm.executor import SlurmExecutor

    executor = SlurmExecutor(workspace, sweep)
    executor.reconcile()
    return [handle.run.run_id for handle in executor.handles()]


def cancel(workspace: Workspace, runs: Sequence[RunDirectory]) -> list[RunDirectory]:
    """End those of the runs that have jobs with Slurm; returns them. InputError where Slurm does not answer."""
    cancelled = []
    for sweep in workspace.submitted():
        if has(workspace, sweep):
            from slurm.commands import SlurmError
            from slurm.executor import SlurmExecutor

            executor = SlurmExecutor(workspace, sweep)
            try:
                handles = executor.adopt(runs)
                executor.cancel(handles)
            except SlurmError as error:
                raise InputError(str(error)) from None
            cancelled += [handle.run for handle in handles]
    return cancelled


def catch_up(workspace: Workspace, sweep: str) -> list[str]:
    """Bring the run directories, and MLflow, up to date with what happened on the cluster while nobody looked.

    Returns what of the jobs that were handed over is damaged, so that nothing can be told of them.
    """
    try:
        run_ids = reconcile(workspace, sweep)
    except DamagedFileError as error:
        return [str(error)]
    if run_ids:
        from orchestrator.execution.shipping import ship
        from xlstm.run import tracking

        if tracking.open_store(workspace.tracking_uri, workspace.artifacts) is None:
            ship(workspace, sweep, run_ids)
    return []


def refuse_unknown_settings(sweep: "Sweep") -> None:
    """SweepError, at its line, for what `slurm` of a sweep's resources says that is no setting."""
    every = [(index, vars(rule.set)["slurm"]) for index, rule in enumerate(sweep.file.resources)]
    stated = [(index, choice) for index, choice in every if choice]
    if not stated:
        return
    from slurm.site import wrong_choices

    problems = [
        sweep.document.problem(("resources", index, "set", "slurm", *path), f"resources.slurm.{said}")
        for index, choice in stated
        for path, said in wrong_choices(choice)
    ]
    if problems:
        raise SweepError(problems)


def check(workspace: Workspace, nodes: int) -> "list[Finding]":
    """What a site offers and what it lacks; where nothing is missing, one small job is run on `nodes`, if not 0."""
    from slurm.check import look, probe

    findings = look(workspace)
    if nodes and all(finding.ok is not False for finding in findings):
        findings += probe(workspace, nodes)
    return findings
