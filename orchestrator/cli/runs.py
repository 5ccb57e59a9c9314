"""Verbs about runs: train, noise, generate, logs, diff, runs, table, export, delete."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.terminal import (
    A_RUN_FAILED,
    JsonOption,
    RunArgument,
    TargetArgument,
    YesOption,
    interruption,
    make_console,
    print_json,
    sweep_name,
    workspace_here,
)
from orchestrator.errors import InputError

app = typer.Typer()


@app.command()
def train(spec: Annotated[Path, typer.Argument(metavar="SPEC.json", help="A run's specification.")]) -> None:
    """Train one run, here, now."""
    from pydantic import ValidationError

    from orchestrator.execution.submission import failed
    from orchestrator.standing.lookup import writable_workspace
    from xlstm.run.spec import RunSpec

    workspace = writable_workspace()
    try:
        run_spec = RunSpec.load(spec)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{spec}: {where}: {first['msg']}") from None
    except OSError as error:
        raise InputError(f"{spec}: {error.strerror}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{spec}: {error}") from None
    from orchestrator.workbench.submit import train as carry_out

    console = make_console()
    with interruption(console, f"scaling train {spec}"):
        statuses = carry_out(run_spec, workspace, console)
    console.print(f"{workspace.run(run_spec.run_id).path}", highlight=False, soft_wrap=True)
    if failed(statuses):
        raise typer.Exit(A_RUN_FAILED)


@app.command()
def noise(
    run: RunArgument,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure what rounding does to a run's loss: three repeats with other threads, kernels and micro-batches."""
    from rich.console import Console

    from orchestrator.workbench.noise import plan_repeats

    console = Console(quiet=True) if as_json else make_console()
    repeats = plan_repeats(workspace_here(), run)
    if repeats.missing:
        print(repeats.summary, file=sys.stderr if as_json else sys.stdout)
        if not yes:
            _confirm("train them here?", "nothing was trained")
    with interruption(console, f"scaling noise {run}"):
        found = repeats.carry_out(console)
    if as_json:
        print_json({"run_id": found.run_id, "floor": found.floor, "loss": found.loss, "repeats": dict(found.repeats)})
        return
    print(f"the run itself: loss {found.loss:.6f}")
    for name, loss in found.repeats.items():
        print(f"other {name}: loss {loss:.6f}")
    print(f"{found.run_id}: rounding alone moves the logarithm of its loss by {found.floor:.2g} (standard deviation)")


@app.command()
def generate(
    run: RunArgument,
    prompt: Annotated[str, typer.Option(help="Text to continue.")] = "",
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to write at most.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 for the likeliest token each time.")] = 0.8,
    seed: Annotated[int, typer.Option(help="Of the choice of tokens.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto for a GPU where there is one.")] = "auto",
) -> None:
    """Print text from a trained run."""
    from orchestrator.standing.lookup import find_run

    directory = find_run(workspace_here(), run)
    # Read when torch is imported: threads that wait for one another sleep, as trainers' do.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from xlstm.generation import TrainedRun
    from xlstm.training.checkpoints import CheckpointError

    try:
        trained = TrainedRun.load(directory, device)
        sys.stdout.write(prompt)
        for piece in trained.generate(prompt, tokens=tokens, temperature=temperature, seed=seed):
            sys.stdout.write(piece)
            sys.stdout.flush()
    except (CheckpointError, FileNotFoundError, ValueError) as error:
        raise InputError(str(error)) from None
    sys.stdout.write("\n")


@app.command()
def logs(
    run: RunArgument, follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False
) -> None:
    """Print the logs of a run's latest attempt."""
    from orchestrator.display.logs import print_logs
    from orchestrator.standing.lookup import find_run

    print_logs(find_run(workspace_here(), run), sys.stdout, follow=follow)


@app.command()
def diff(left: RunArgument, right: RunArgument, as_json: JsonOption = False) -> None:
    """Show in which settings two runs differ: first the physics, then how they were carried out."""
    from orchestrator.standing.lookup import find_run
    from xlstm.run.identity import differences

    workspace = workspace_here()
    one, other = (find_run(workspace, name).spec().model_dump(mode="json") for name in (left, right))
    rows = [{"key": key, "left": mine, "right": theirs} for key, mine, theirs in differences(one, other)]
    if as_json:
        print_json(rows)
        return
    for row in sorted(rows, key=lambda row: not row["key"].startswith("physics")):
        print(f"{row['key']}: {json.dumps(row['left'])} | {json.dumps(row['right'])}")
    if not rows:
        print("the runs are the same")


@app.command("runs")
def runs_of(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A submitted sweep, a table or mlflow:EXPERIMENT.")],
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write CSV.")] = None,
    parquet: Annotated[Path | None, typer.Option("--parquet", metavar="FILE", help="Write Parquet.")] = None,
) -> None:
    """Write a row per run with every setting and result; without a file, print it as CSV."""
    from orchestrator.workbench.export import as_csv, runs_frame

    frame = runs_frame(workspace_here(), sweep_name(source))
    if csv is not None:
        csv.write_text(as_csv(frame), encoding="utf-8")
    if parquet is not None:
        frame.write_parquet(parquet)
    if csv is None and parquet is None:
        sys.stdout.write(as_csv(frame))


@app.command()
def table(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A submitted sweep or mlflow:EXPERIMENT.")],
    measure: Annotated[
        str | None, typer.Option(metavar="NAME", help="What stands in the cells, such as accuracy or loss.")
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="AXIS", help="Columns: an axis such as task or pairs; width; length or position of tests."
        ),
    ] = None,
    best_of: Annotated[
        str | None, typer.Option(metavar="AXIS", help="The axis that was searched; left out, what the sweep says.")
    ] = None,
    files: Annotated[
        list[Path] | None, typer.Option("--to", metavar="FILE", help="Write .md, .tex, .csv, .png, .pdf or .svg.")
    ] = None,
    evaluation: Annotated[
        str | None, typer.Option(metavar="NAME", help="Show what this evaluation measured, by context, source or band.")
    ] = None,
    domain_wins: Annotated[
        bool, typer.Option("--wins", help="Show in how many domains of the evaluation each run is better than others.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show families by tasks: the best of a searched axis, mean and interval over seeds."""
    from orchestrator.workbench.analyses.measures import measure_table, wins, write_table

    if domain_wins:
        documents, matrix = wins(workspace_here(), sweep_name(source), evaluation or "")
        if as_json:
            print_json(documents)
        else:
            sys.stdout.write(matrix)
        return
    made = measure_table(workspace_here(), sweep_name(source), measure, columns, best_of, evaluation)
    for file in files or ():
        write_table(made, file)
    if as_json:
        print_json(made.to_json())
        return
    sys.stdout.write(made.markdown())
    if made.measured < made.planned:
        print(f"{made.measured} of {made.planned} runs have this measure", file=sys.stderr)


@app.command()
def export(
    run: RunArgument, folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new or empty folder.")]
) -> None:
    """Write a trained model as the transformers library reads it, with tokenizer, card and generation settings."""
    from orchestrator.standing.lookup import find_run
    from orchestrator.workbench.export import export as write

    found = find_run(workspace_here(), run)
    names = write(found, folder)
    tokenizer = found.spec().physics.data.tokenizer
    print(f"{folder}: {', '.join(names)}")
    if "tokenizer.json" not in names:
        print(f"no tokenizer.json: `{tokenizer}` lives in no file; in Python, TrainedRun.load has it (docs/cli.md)")


@app.command()
def delete(
    target: TargetArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and delete nothing.")] = False,
    yes: YesOption = False,
) -> None:
    """Delete a run, or a sweep with the runs that no other sweep holds. What somebody still needs is refused."""
    from orchestrator.workbench.delete import plan_deletion

    deletion = plan_deletion(workspace_here(), sweep_name(target), target)
    for path in deletion.folders:
        print(path)
    for kept in deletion.kept:
        print(f"kept, for another sweep holds it: {kept}")
    if dry_run:
        return
    if not yes:
        _confirm(f"delete these {len(deletion.folders)} folders?", "nothing was deleted")
    deletion.carry_out()
    count = len(deletion.folders)
    print(f"{count} folder{'' if count == 1 else 's'} deleted")


def _confirm(question: str, otherwise: str) -> None:
    """Go on only where somebody says yes; InputError, which says what has not happened, where nobody can be asked."""
    if not sys.stdin.isatty():
        raise InputError(f"{otherwise}: nobody can be asked here; say --yes")
    typer.confirm(question, abort=True)
