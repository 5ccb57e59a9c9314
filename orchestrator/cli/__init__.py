"""`scaling`: the command line. A verb parses, has the workbench do it, and prints; rooms are imported then."""

import typer

from orchestrator.cli import laws, runs, slurm, stores, sweeps
from orchestrator.cli.environment import require_own_environment

app = typer.Typer(
    help="From a sweep file to a fitted scaling law: plan, train, look, fit.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for verbs in (sweeps, runs, laws, stores, slurm):
    app.add_typer(verbs.app)


def main() -> None:
    """Entry point of `scaling`."""
    require_own_environment()
    app()
