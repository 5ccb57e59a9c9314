"""Verbs about sweeps: plan, submit, status, and the language itself."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.terminal import (
    A_RUN_FAILED,
    BAD_INPUT,
    JsonOption,
    NameArgument,
    OnOption,
    OptionalNameArgument,
    OverridesArgument,
    RefreshLawOption,
    SetOption,
    SweepArgument,
    TargetArgument,
    interruption,
    is_sweep,
    make_console,
    plan_sweep,
    print_json,
    sweep_name,
    width_of,
    workspace_here,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from orchestrator.planning.plan import Plan
    from orchestrator.standing.status import SweepStanding

app = typer.Typer()
check_app = typer.Typer(help="Checks of a sweep that train a little.", no_args_is_help=True)
app.add_typer(check_app, name="check")


@app.command()
def plan(
    sweep: SweepArgument,
    overrides: OverridesArgument = None,
    override: SetOption = None,
    price: Annotated[float | None, typer.Option(min=0, help="Of a GPU-hour: the plan says what the GPUs cost.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Also build every layout, without a device.")] = False,
    refresh_law: RefreshLawOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show what a sweep will run, cost and share, before anything is spent.

    With --check every distinct layout is built under a process group that is not there: a run that cannot be spread as
    planned, or does not fit its card, is named, and the exit code is 2.
    """
    from dataclasses import asdict

    from orchestrator.display.tables import plan_summary, plan_table
    from orchestrator.planning.layouts import check as build_layouts

    made = plan_sweep(sweep, overrides, override, refresh_law=refresh_law)
    document = made.document(price)
    for line in made.damage:
        print(line, file=sys.stderr)
    checked = build_layouts(made) if check else None
    if checked is not None:
        document["check"] = asdict(checked)
    if as_json:
        print_json(document)
    else:
        console = make_console()
        console.print(plan_table(document, width_of(console)), soft_wrap=True)
        console.print(plan_summary(document), highlight=False, soft_wrap=not console.is_terminal)
        problems = made.misfits if checked is None else list(checked.problems.values())
        for problem in problems:
            console.print(problem, highlight=False, style="red", soft_wrap=True)
        for line in [*made.rates_told, *made.advice]:
            console.print(line, highlight=False, style="yellow", soft_wrap=True)
        if checked is not None and not problems:
            console.print(f"{checked.layouts} layouts built: all can be trained as planned", highlight=False)
    if checked is not None and checked.problems:
        raise typer.Exit(BAD_INPUT)


@check_app.command("coordinates")
def check_coordinates(
    sweep: SweepArgument,
    overrides: OverridesArgument = None,
    override: SetOption = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps before activations are measured.")] = 8,
    as_json: JsonOption = False,
) -> None:
    """Whether rates carry over the widths of a sweep: activations after a few steps, which stay as large where they do.

    The exit code is 1 where a family under `parametrization: mup` is not flat within 1.5x.
    """
    from orchestrator.display.tables import coordinates_table
    from orchestrator.workbench.analyses import coordinates

    made = plan_sweep(sweep, overrides, override)
    documents, figure = coordinates.check(made, steps)
    if as_json:
        print_json(documents)
    else:
        console = make_console()
        for document in documents:
            told = f"{document['family']}, {document['parametrization']}, {document['optimizer']} at "
            told += f"{document['learning_rate']:g}, after {steps} steps"
            console.print(told, highlight=False, soft_wrap=True)
            console.print(coordinates_table(document))
        console.print(f"drawn in {figure}", highlight=False, soft_wrap=True)
    if any(not one["flat"] for one in documents if one["parametrization"] == "mup"):
        raise typer.Exit(A_RUN_FAILED)


@app.command()
def submit(
    sweep: SweepArgument,
    overrides: OverridesArgument = None,
    on: OnOption = "local",
    override: SetOption = None,
    detach: Annotated[bool, typer.Option("--detach", help="Go on in the background.")] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Let runs of the submitted sweep go that this one no longer has.")
    ] = False,
    refresh_law: RefreshLawOption = False,
    go_on: Annotated[
        bool, typer.Option("--go-on", help="Of an adaptive sweep: buy on, though a run contradicts the law.")
    ] = False,
) -> None:
    """Run what is missing of a sweep. Submitted again, it continues; what is complete is never trained twice."""
    from orchestrator.standing.lookup import writable_workspace
    from orchestrator.workbench.submit import detach as submit_detached
    from orchestrator.workbench.submit import find_engine

    writable_workspace()
    find_engine(on)
    made = plan_sweep(sweep, overrides, override, refresh_law=refresh_law)
    by = submit_detached(made, on, make_console(), replace=replace, go_on=go_on) if detach else None
    if by is None:
        _carry_out(made, on, sweep, replace=replace, go_on=go_on)
    else:
        print(by)
        print(f"look with: scaling watch {made.name}    end it with: scaling cancel {made.name}")


@app.command()
def evaluate(
    target: Annotated[str, typer.Argument(metavar="SWEEP|RUN", help="A sweep, or a run of a submitted one.")],
    overrides: OverridesArgument = None,
    names: Annotated[
        list[str] | None, typer.Option("--with", metavar="NAME", help="Only this evaluation; may be repeated.")
    ] = None,
    on: OnOption = "local",
    override: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure trained runs as their sweep's `evaluations` ask. What was made is not made again; nothing is trained."""
    from rich.console import Console

    from orchestrator.display.tables import measured_table
    from orchestrator.execution.submission import failed
    from orchestrator.standing.lookup import find_run, writable_workspace
    from orchestrator.workbench.evaluate import holder_of, plan_evaluations

    console = Console(stderr=True, markup=False) if as_json else make_console()
    workspace = writable_workspace()
    run = None if is_sweep(target) else find_run(workspace, target).run_id
    sweep = target if run is None else holder_of(workspace, run)
    made = plan_sweep(sweep, overrides, override)
    with interruption(console, f"scaling evaluate {target} --on {on}"):
        evaluating = plan_evaluations(made, names or (), run)
        console.print(evaluating.summary, highlight=False, soft_wrap=True)
        for line in evaluating.left_out:
            console.print(f"left out: {line}", style="yellow", highlight=False, soft_wrap=True)
        statuses = evaluating.carry_out(on, console)
    if as_json:
        print_json([one.model_dump(mode="json") for one in evaluating.measured()])
    elif statuses is not None:
        console.print(measured_table(list(evaluating.measured())), soft_wrap=True)
    if statuses is not None and failed(statuses):
        raise typer.Exit(A_RUN_FAILED)


@app.command()
def status(sweep: OptionalNameArgument = None, as_json: JsonOption = False) -> None:
    """Show how submitted sweeps stand."""
    from orchestrator.standing.status import look
    from orchestrator.workbench.mending import mend_plan
    from orchestrator.workbench.slurm import catch_up
    from xlstm.run.json_files import DamagedFileError

    workspace, standings, damaged = workspace_here(), [], []
    names = [sweep_name(sweep)] if sweep else workspace.submitted()
    for name in names:
        try:
            mend_plan(workspace, name)
            damaged += catch_up(workspace, name)
            standings.append(look(workspace, name))
        except DamagedFileError as error:
            damaged.append(str(error))
    for line in damaged:
        print(line, file=sys.stderr)
    console = make_console()
    if as_json:
        documents = [standing.document() for standing in standings]
        if documents or not sweep:
            print_json(documents[0] if sweep else documents)
        standings = []
    elif not names:
        console.print(f"no sweep was submitted to {workspace.root} yet: scaling submit quickstart --on local")
    for standing in standings:
        _show(standing, console)
    if damaged:
        raise typer.Exit(BAD_INPUT)


@app.command()
def watch(
    sweep: NameArgument,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between looks.")] = 2.0,
    as_json: JsonOption = False,
) -> None:
    """Show how a sweep stands until all of its runs have ended; as JSON, when they have."""
    import time

    from rich.console import Console, Group
    from rich.live import Live

    from orchestrator.display.tables import WATCHED, decisions_lines, runs_table, swept
    from orchestrator.standing.status import Lookout
    from orchestrator.workbench.mending import mend_plan
    from orchestrator.workbench.slurm import ASK_SECONDS, reconcile
    from xlstm.run.records import State

    workspace, name = workspace_here(), sweep_name(sweep)
    mend_plan(workspace, name)
    console = Console(quiet=True) if as_json else make_console()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        ask_slurm, look, chosen = 0.0, Lookout(workspace, name), None
        while True:
            if time.monotonic() > ask_slurm:
                reconcile(workspace, name)
                ask_slurm = time.monotonic() + ASK_SECONDS
            standing = look()
            if standing.is_over:
                break
            # What runs first: a long sweep is taller than the terminal.
            runs = sorted(standing.runs, key=lambda run: run.state is not State.RUNNING)[: max(4, console.height - 3)]
            chosen = chosen or swept([run.planned for run in standing.runs])
            table = runs_table(runs, width_of(console), chosen)
            told = decisions_lines(standing.decisions[-WATCHED:])
            live.update(Group(_headline(standing), table, *told), refresh=console.is_terminal)
            time.sleep(every)
    if as_json:
        print_json(standing.document())
    else:
        _show(standing, console)


@app.command()
def cancel(target: TargetArgument, as_json: JsonOption = False) -> None:
    """End runs: what trains writes a checkpoint, what waits is not started. Submitted again, they continue."""
    from orchestrator.workbench.cancel import cancel as cancel_runs
    from orchestrator.workbench.mending import mend_plan

    mend_plan(workspace_here(), sweep_name(target))
    cancelled = cancel_runs(workspace_here(), sweep_name(target), target)
    if as_json:
        print_json({"cancelled": [run.run_id for run in cancelled]})
    elif cancelled:
        print(f"{len(cancelled)} run{'s' if len(cancelled) > 1 else ''} cancelled")
    else:
        print("nothing to cancel: no run is waiting or running")


@app.command()
def retry(sweep: NameArgument) -> None:
    """Run again what failed, diverged or was cancelled of a submitted sweep, where it ran, and nothing else."""
    from orchestrator.standing.lookup import load_document
    from orchestrator.workbench.mending import mend_plan
    from orchestrator.workbench.submit import to_retry

    mend_plan(workspace_here(), sweep_name(sweep))
    load_document(workspace_here(), sweep_name(sweep))
    made = plan_sweep(sweep, None)
    if (again := to_retry(made)) is None:
        print("nothing to retry: no run failed, diverged or was cancelled")
        return
    only, on = again
    _carry_out(made, on, sweep, only=only)


@app.command()
def schema() -> None:
    """Print the JSON Schema of sweep files, for editors."""
    from sweeps.language import schema as sweep_schema

    print_json(sweep_schema())


def _headline(standing: "SweepStanding") -> "Text":
    from rich.text import Text

    return Text(f"{standing.sweep}: {len(standing.runs)} runs, {standing.counted}", style="bold")


def _show(standing: "SweepStanding", console: "Console") -> None:
    """The runs of a sweep and its ledger."""
    from orchestrator.display.tables import decisions_lines, ledger_line, runs_table

    console.print(_headline(standing))
    console.print(runs_table(standing.runs, width_of(console)), soft_wrap=True)
    for line in decisions_lines(standing.decisions):
        console.print(line, soft_wrap=True)
    console.print(ledger_line(standing.ledger), highlight=False, style="dim")


def _carry_out(
    made: "Plan", on: str, source: str, only: "Plan | None" = None, *, replace: bool = False, go_on: bool = False
) -> None:
    """Have a plan, or the part of it that is `only` to be run, carried out, and show how the sweep stands then."""
    from orchestrator.execution.submission import failed
    from orchestrator.standing.status import look
    from orchestrator.workbench.submit import submit as carry_out

    console = make_console()
    with interruption(console, f"scaling submit {source} --on {on}"):
        statuses = carry_out(made, on, console, only, replace=replace, go_on=go_on)
    if statuses is None:
        return
    _show(look(made.workspace, made.name), console)
    if failed(statuses):
        raise typer.Exit(A_RUN_FAILED)
