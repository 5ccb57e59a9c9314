"""Verbs about Slurm sites."""

from typing import Annotated

import typer

from orchestrator.cli.terminal import A_RUN_FAILED, JsonOption, print_json, workspace_here

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

    from orchestrator.workbench import slurm

    findings = slurm.check(workspace_here(), nodes)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        print(*findings, sep="\n")
    if any(finding.ok is False for finding in findings):
        raise typer.Exit(A_RUN_FAILED)
