"""Verbs about sweeps: plan, submit, status, and the language itself."""

from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import slurm
from orchestrator.cli.terminal import (
    A_RUN_FAILED,
    JsonOption,
    OptionalNameArgument,
    SetOption,
    SweepArgument,
    interruption,
    make_console,
    one_line_errors,
    plan_sweep,
    print_json,
    sweep_name,
    workspace_here,
)

if TYPE_CHECKING:
    from orchestrator.executors.contract import Executor
    from orchestrator.plan import Plan

app = typer.Typer()


@app.command()
def plan(sweep: SweepArgument, override: SetOption = None, as_json: JsonOption = False) -> None:
    """Show what a sweep will run, cost and share, before anything is spent."""
    from orchestrator.tables import plan_summary, plan_table

    document = plan_sweep(sweep, override).document()
    if as_json:
        print_json(document)
        return
    console = make_console()
    console.print(plan_table(document))
    console.print(plan_summary(document), highlight=False)


@app.command()
def submit(
    sweep: SweepArgument,
    on: Annotated[str, typer.Option(help="Where: local, ray or slurm.")] = "local",
    override: SetOption = None,
) -> None:
    """Run what is missing of a sweep. Submitted again, it continues; what is complete is never trained twice."""
    from orchestrator.finding import writable_workspace

    with one_line_errors():
        writable_workspace()
        executor = None if on == "slurm" else _executor(on)
    made = plan_sweep(sweep, override)
    if executor is None:
        slurm.hand_over(made)
    else:
        _carry_out(made, executor, sweep)


@app.command()
def status(sweep: OptionalNameArgument = None, as_json: JsonOption = False) -> None:
    """Show how submitted sweeps stand."""
    from orchestrator.plan import submitted
    from orchestrator.status import look
    from orchestrator.tables import ledger_line, runs_table

    workspace = workspace_here()
    with one_line_errors():
        names = [sweep_name(sweep)] if sweep else submitted(workspace)
        for name in names:
            slurm.catch_up(workspace, name)
        standings = [look(workspace, name) for name in names]
    if as_json:
        documents = [standing.document() for standing in standings]
        print_json(documents[0] if sweep else documents)
        return
    console = make_console()
    if not standings:
        console.print(f"no sweep was submitted to {workspace.root} yet: scaling submit quickstart --on local")
    for standing in standings:
        counts = ", ".join(f"{count} {state.value.lower()}" for state, count in standing.counts.items())
        console.print(f"{standing.sweep}: {len(standing.runs)} runs, {counts}", highlight=False, style="bold")
        console.print(runs_table(standing.runs))
        console.print(ledger_line(standing.ledger), highlight=False, style="dim")


@app.command()
def schema() -> None:
    """Print the JSON Schema of sweep files, for editors."""
    from sweeps.language import schema as sweep_schema

    print_json(sweep_schema())


def _carry_out(made: "Plan", executor: "Executor", source: str) -> None:
    from orchestrator.status import look
    from orchestrator.submission import failed
    from orchestrator.submission import submit as carry_out
    from orchestrator.tables import ledger_line, plan_summary, runs_table

    console = make_console()
    document = made.document()
    console.print(f"{made.name}: {plan_summary(document)}", highlight=False)
    made.save()
    statuses = {}
    if made.missing:
        with one_line_errors(), interruption(console, f"scaling submit {source} --on {executor.name}"):
            statuses = carry_out(made.workspace, made.name, document["runs"], made.launches, executor, console)
    standing = look(made.workspace, made.name)
    console.print(runs_table(standing.runs))
    console.print(ledger_line(standing.ledger), highlight=False, style="dim")
    if failed(statuses):
        raise typer.Exit(A_RUN_FAILED)


def _executor(on: str) -> "Executor":
    from orchestrator.errors import InputError
    from sweeps.located import nearest

    if on == "local":
        from orchestrator.executors.local import LocalExecutor

        return LocalExecutor()
    raise InputError(f"--on {on}: no such executor; {nearest(on, ('local', 'slurm'))}")
