"""`scaling`: the command line. A verb parses, has the workbench do it, and prints; rooms are imported then."""

import io
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import laws, runs, slurm, stores, sweeps
from orchestrator.cli.environment import require_own_environment
from orchestrator.cli.terminal import OneLineErrors

app = typer.Typer(
    cls=OneLineErrors,
    help="From a sweep file to a fitted scaling law: plan, train, look, fit.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for verbs in (sweeps, runs, laws, stores, slurm):
    app.add_typer(verbs.app)


def _print_version(asked: bool) -> None:
    if asked:
        import orchestrator

        print(f"scaling-orchestrator {orchestrator.__version__}")
        raise typer.Exit()


@app.callback()
def choose(
    workspace: Annotated[
        Path | None, typer.Option("--workspace", "-C", help="The workspace, instead of $SCALING_WORKSPACE.")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """From a sweep file to a fitted scaling law: plan, train, look, fit."""
    if workspace is not None:
        from xlstm.run.directory import WORKSPACE_VARIABLE

        os.environ[WORKSPACE_VARIABLE] = str(workspace.expanduser().absolute())


def main() -> None:
    """Entry point of `scaling`."""
    require_own_environment()
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: a terminal need not know every letter of a name
    app()
