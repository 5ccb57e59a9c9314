"""Verbs about Slurm, and what the verbs about sweeps do where one was handed to it."""

from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.terminal import (
    A_RUN_FAILED,
    JsonOption,
    make_console,
    one_line_errors,
    print_json,
    workspace_here,
)

if TYPE_CHECKING:
    from orchestrator.plan import Plan
    from xlstm.records import Workspace

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


def hand_over(made: "Plan") -> None:
    """Give what is missing of a plan to Slurm and return: retries, requeueing and forks are then its and the jobs'."""
    import uuid

    from orchestrator.errors import InputError
    from orchestrator.executors.contract import Job
    from orchestrator.submission import prepare_data
    from orchestrator.tables import plan_summary
    from slurm.commands import SlurmError
    from slurm.executor import SlurmExecutor

    console, workspace = make_console(), made.workspace
    console.print(f"{made.name}: {plan_summary(made.document())}", highlight=False)
    made.save()
    missing = {run.spec.run_id for run in made.missing}
    launches = [launch for launch in made.launches if launch.run_id in missing]
    for launch in launches:
        workspace.run(launch.run_id).create(launch.spec)
    jobs = [
        Job(workspace.run(launch.run_id), launch.spec, uuid.uuid4().hex, launch.fork, launch.checkpoint_at)
        for launch in launches
    ]
    with one_line_errors():
        prepare_data(workspace, [job.spec for job in jobs], console)
        try:
            handles = SlurmExecutor(workspace, made.name).submit(jobs)
        except (SlurmError, ValueError) as error:
            raise InputError(str(error)) from None
    console.print(f"{len(handles)} runs are with Slurm; scaling status {made.name} tells how they stand")


def reconcile(workspace: "Workspace", sweep: str) -> list[str]:
    """Write into the run directories what Slurm alone knows. Returns the runs of the sweep that were handed to it."""
    if not (workspace.sweeps / sweep / "slurm").exists():
        return []
    from slurm.executor import SlurmExecutor

    executor = SlurmExecutor(workspace, sweep)
    executor.reconcile()
    return [handle.run.run_id for handle in executor.handles()]


def catch_up(workspace: "Workspace", sweep: str) -> None:
    """Bring the run directories, and MLflow, up to date with what happened on the cluster while nobody looked."""
    if run_ids := reconcile(workspace, sweep):
        from orchestrator.shipping import ship
        from xlstm import tracking

        if tracking.open_store(workspace.tracking_uri, workspace.artifacts) is None:
            ship(workspace, sweep, run_ids)
