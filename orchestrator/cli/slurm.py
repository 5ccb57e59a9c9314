"""Verbs about Slurm, and what the verbs about sweeps do where one was handed to it."""

from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.terminal import (
    A_RUN_FAILED,
    JsonOption,
    print_json,
    workspace_here,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from orchestrator.plan import Plan
    from xlstm.run.directory import RunDirectory, Workspace

ASK_SECONDS = 30.0
"""Between two questions to Slurm while somebody watches: between them the run directories tell enough."""

app = typer.Typer()
slurm_app = typer.Typer(help="Slurm sites.", no_args_is_help=True)
app.add_typer(slurm_app, name="slurm")


@slurm_app.command("check")
def check(
    nodes: Annotated[int, typer.Option(min=0, help="Also run one small job on so many nodes.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Say what a Slurm site offers and what it lacks, before a first job."""
    from dataclasses import asdict

    from slurm.check import examine, show

    findings = examine(workspace_here(), nodes)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        show(findings)
    if any(finding.ok is False for finding in findings):
        raise typer.Exit(A_RUN_FAILED)


def has(workspace: "Workspace", sweep: str) -> bool:
    """Whether runs of a sweep were ever handed to Slurm."""
    return workspace.sweep(sweep).slurm.exists()


def hand_over(made: "Plan", console: "Console", only: "Plan | None" = None) -> None:
    """Give what is missing of a plan, or of the part `only`, to Slurm and return: the rest is its and the jobs'.

    InputError where the data cannot be prepared, or Slurm or the site refuses.
    """
    import uuid

    from orchestrator.errors import InputError
    from orchestrator.submission import prepare_data
    from orchestrator.tables import plan_summary
    from slurm.commands import SlurmError
    from slurm.executor import SlurmExecutor
    from xlstm.run.executor import Job
    from xlstm.run.outcome import adopt

    workspace = made.workspace
    console.print(f"{made.name}: {plan_summary(made.document())}", highlight=False)
    for misfit in made.misfits:
        console.print(misfit, highlight=False, style="yellow", soft_wrap=True)
    made.save()
    jobs = []
    for run in (only or made).missing:
        directory = workspace.run(run.spec.run_id)
        directory.create(run.spec)
        directory.withdraw_cancel()
        if adopt(directory, run.spec):
            continue
        jobs.append(Job(directory, run.spec, uuid.uuid4().hex, run.share.fork, run.share.checkpoint_at))
    prepare_data(workspace, [job.spec for job in jobs], console)
    try:
        handles = SlurmExecutor(workspace, made.name).submit(jobs)
    except (SlurmError, ValueError) as error:
        raise InputError(str(error)) from None
    console.print(f"{len(handles)} runs are with Slurm; scaling status {made.name} tells how they stand")


def reconcile(workspace: "Workspace", sweep: str) -> list[str]:
    """Write into the run directories what Slurm alone knows. Returns the runs of the sweep that were handed to it."""
    if not has(workspace, sweep):
        return []
    from slurm.executor import SlurmExecutor

    executor = SlurmExecutor(workspace, sweep)
    executor.reconcile()
    return [handle.run.run_id for handle in executor.handles()]


def cancel(workspace: "Workspace", runs: "Sequence[RunDirectory]") -> "list[RunDirectory]":
    """End those of the runs that have jobs with Slurm; returns them."""
    from orchestrator.errors import InputError
    from slurm.commands import SlurmError
    from slurm.executor import SlurmExecutor

    cancelled = []
    for sweep in workspace.submitted():
        if has(workspace, sweep):
            executor = SlurmExecutor(workspace, sweep)
            try:
                handles = executor.adopt(runs)
                executor.cancel(handles)
            except SlurmError as error:
                raise InputError(str(error)) from None
            cancelled += [handle.run for handle in handles]
    return cancelled


def catch_up(workspace: "Workspace", sweep: str) -> None:
    """Bring the run directories, and MLflow, up to date with what happened on the cluster while nobody looked."""
    if run_ids := reconcile(workspace, sweep):
        from orchestrator.shipping import ship
        from xlstm.run import tracking

        if tracking.open_store(workspace.tracking_uri, workspace.artifacts) is None:
            ship(workspace, sweep, run_ids)
