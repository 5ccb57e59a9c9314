"""`scaling`: the command line. The one file that knows every room; each is imported when its verb is called."""

import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    import polars as pl
    from rich.console import Console

    from analysis.fitting import Fit
    from orchestrator.executors.contract import Executor
    from orchestrator.plan import Plan
    from xlstm.records import Workspace

BAD_INPUT = 2
A_RUN_FAILED = 1
INTERRUPTED = 130

app = typer.Typer(
    help="From a sweep file to a fitted scaling law: plan, train, look, fit.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Corpora and their token shards.", no_args_is_help=True)
app.add_typer(data_app, name="data")
slurm_app = typer.Typer(help="Slurm sites.", no_args_is_help=True)
app.add_typer(slurm_app, name="slurm")

SweepArgument = Annotated[str, typer.Argument(metavar="SWEEP", help="A sweep file, or the name of a shipped sweep.")]
NameArgument = Annotated[str, typer.Argument(metavar="SWEEP", help="Name (or file) of a sweep that was submitted.")]
OptionalNameArgument = Annotated[
    str | None, typer.Argument(metavar="[SWEEP]", help="Name (or file) of a submitted sweep; all of them if left out.")
]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run id, or an unambiguous part of one.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Lay a value over the sweep, such as grid.seed=[0,1]."),
]


SourceArgument = Annotated[
    str, typer.Argument(metavar="SOURCE", help="A submitted sweep, FILE.csv, FILE.parquet or mlflow:EXPERIMENT.")
]
ColumnsOption = Annotated[
    str | None,
    typer.Option(metavar="OURS=THEIRS,…", help='Columns of a file, such as parameters="Model Size",loss=loss.'),
]


@app.command()
def plan(sweep: SweepArgument, override: SetOption = None, as_json: JsonOption = False) -> None:
    """Show what a sweep will run, cost and share, before anything is spent."""
    from orchestrator.tables import plan_summary, plan_table

    document = _plan(sweep, override).document()
    if as_json:
        _print_json(document)
        return
    console = _console()
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

    with _one_line_errors():
        writable_workspace()
        executor = None if on == "slurm" else _executor(on)
    made = _plan(sweep, override)
    if executor is None:
        _hand_to_slurm(made)
    else:
        _carry_out(made, executor)


@app.command()
def status(sweep: OptionalNameArgument = None, as_json: JsonOption = False) -> None:
    """Show how submitted sweeps stand."""
    from orchestrator.plan import submitted
    from orchestrator.status import look
    from orchestrator.tables import ledger_line, runs_table

    workspace = _workspace()
    with _one_line_errors():
        names = [_name(sweep)] if sweep else submitted(workspace)
        for name in names:
            _hear_from_slurm(workspace, name)
        standings = [look(workspace, name) for name in names]
    if as_json:
        documents = [standing.document() for standing in standings]
        _print_json(documents[0] if sweep else documents)
        return
    console = _console()
    if not standings:
        console.print(f"no sweep was submitted to {workspace.root} yet: scaling submit quickstart --on local")
    for standing in standings:
        counts = ", ".join(f"{count} {state.value.lower()}" for state, count in standing.counts.items())
        console.print(f"[bold]{standing.sweep}[/bold]: {len(standing.runs)} runs, {counts}", highlight=False)
        console.print(runs_table(standing.runs))
        console.print(ledger_line(standing.ledger), highlight=False, style="dim")


@app.command()
def logs(
    run: RunArgument, follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False
) -> None:
    """Print the logs of a run's latest attempt."""
    from orchestrator.finding import find_run
    from orchestrator.logs import print_logs

    with _one_line_errors():
        print_logs(find_run(_workspace(), run), sys.stdout, follow=follow)


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="Port of the server.")] = 5000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Serve the MLflow UI on the workspace."""
    from orchestrator.finding import writable_workspace
    from orchestrator.ui import serve

    with _one_line_errors():
        workspace = writable_workspace()
        _require_free(host, port)
        _sync_all(workspace)
        serve(workspace, host, port)


@app.command()
def sync() -> None:
    """Make MLflow equal the run directories."""
    with _one_line_errors():
        _sync_all(_workspace(), say=True)


@app.command()
def train(spec: Annotated[Path, typer.Argument(metavar="SPEC.json", help="A run's specification.")]) -> None:
    """Train one run, here, now."""
    from pydantic import ValidationError

    from orchestrator.errors import InputError
    from orchestrator.finding import writable_workspace
    from orchestrator.submission import failed
    from orchestrator.submission import submit as carry_out
    from xlstm.spec import RunSpec

    with _one_line_errors():
        workspace = writable_workspace()
        try:
            run_spec = RunSpec.load(spec)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise InputError(f"{spec}: {where}: {first['msg']}") from None
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(f"{spec}: {error}") from None
    from orchestrator.controller import PlannedRun
    from orchestrator.plan import plan_run

    console = _console()
    row = plan_run(run_spec, workspace).document()
    with _one_line_errors(), _interruption(console, f"scaling train {spec}"):
        statuses = carry_out(workspace, "train", [row], [PlannedRun(run_spec)], _executor("local"), console)
    console.print(f"{workspace.run(run_spec.run_id).path}", highlight=False, soft_wrap=True)
    if failed(statuses):
        raise typer.Exit(A_RUN_FAILED)


@app.command()
def generate(
    run: RunArgument,
    prompt: Annotated[str, typer.Option(help="Text to continue.")] = "",
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to write at most.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 for the likeliest token each time.")] = 0.8,
    seed: Annotated[int, typer.Option(help="Of the choice of tokens.")] = 0,
) -> None:
    """Print text from a trained run."""
    from orchestrator.errors import InputError
    from orchestrator.finding import find_run

    with _one_line_errors():
        directory = find_run(_workspace(), run)
        from xlstm.generation import TrainedRun
        from xlstm.training.checkpoints import CheckpointError

        try:
            trained = TrainedRun.load(directory)
            sys.stdout.write(prompt)
            for piece in trained.generate(prompt, tokens=tokens, temperature=temperature, seed=seed):
                sys.stdout.write(piece)
                sys.stdout.flush()
        except (CheckpointError, FileNotFoundError, ValueError) as error:
            raise InputError(str(error)) from None
    sys.stdout.write("\n")


@app.command()
def fit(source: SourceArgument, columns: ColumnsOption = None, as_json: JsonOption = False) -> None:
    """Fit a scaling law to a sweep, a table or an MLflow experiment, and keep the fit."""
    from orchestrator.tables import fit_table

    with _one_line_errors():
        fits, notes = _fit(source, columns)
    documents = [fitted.to_json() for fitted in fits]
    if as_json:
        _print_json(documents)
        return
    console = _console()
    first = documents[0]
    console.print(
        f"[bold]L(N, D) = {first['law']}[/bold], {first['objective']}; "
        + ", ".join(f"{name} = {meaning}" for name, meaning in first["conventions"].items()),
        highlight=False,
    )
    console.print(fit_table(documents))
    console.print(f"intervals at {first['interval_level']:.0%} by {first['resampling']}", highlight=False, style="dim")
    for document in documents:
        for row in document["rows"]["excluded"]:
            console.print(f"left out: {row['row']}: {row['reason']}", highlight=False, style="dim")
        for warning in document["warnings"]:
            console.print(f"{document['family']}: {warning['message']}", highlight=False, style="yellow")
    for note in notes:
        console.print(note, highlight=False, style="yellow")
    console.print(f"kept in {_fits_folder(source)}", highlight=False, soft_wrap=True)


@app.command()
def plot(source: SourceArgument, columns: ColumnsOption = None) -> None:
    """Draw the fitted laws: loss against tokens and compute, as PNG, PDF and SVG, and one page with everything."""
    with _one_line_errors():
        fits, _ = _fit(source, columns)
        from analysis import plots, report

        with plots.style():
            paths = plots.save(plots.law_figure(fits), _fits_folder(source) / "law")
        paths.append(report.write(_fits_folder(source) / "report.html", _name(source), fits))
    for path in paths:
        print(path)


@app.command("report")
def write_report(source: SourceArgument, columns: ColumnsOption = None) -> None:
    """Write one self-contained page: figures, laws, certificates and runs."""
    with _one_line_errors():
        fits, _ = _fit(source, columns)
        from analysis import report

        print(report.write(_fits_folder(source) / "report.html", _name(source), fits))


@app.command()
def predict(
    source: SourceArgument,
    parameters: Annotated[str, typer.Option(help="Model size N, such as 125M.")],
    tokens: Annotated[str, typer.Option(help="Training tokens D, such as 15B.")],
    columns: ColumnsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Predict the loss of a model of N parameters trained on D tokens."""
    with _one_line_errors():
        size, budget = _quantity("--parameters", parameters), _quantity("--tokens", tokens)
        fits, _ = _fit(source, columns)
    predictions = [(fitted.family, *(float(value) for value in fitted.predict(size, budget))) for fitted in fits]
    if as_json:
        _print_json(
            [
                {"family": family, "parameters": size, "tokens": budget, "loss": loss, "interval": [low, high]}
                for family, loss, low, high in predictions
            ]
        )
        return
    for family, loss, low, high in predictions:
        print(f"{family}: loss {loss:.4f} [{low:.4f}, {high:.4f}] at N = {size:,}, D = {budget:,}")


@app.command()
def diff(left: RunArgument, right: RunArgument, as_json: JsonOption = False) -> None:
    """Show in which settings two runs differ: first the physics, then how they were carried out."""
    from orchestrator.finding import find_run
    from xlstm.spec import differences

    workspace = _workspace()
    with _one_line_errors():
        one, other = (find_run(workspace, name).spec().model_dump(mode="json") for name in (left, right))
    rows = [{"key": key, "left": mine, "right": theirs} for key, mine, theirs in differences(one, other)]
    if as_json:
        _print_json(rows)
        return
    for row in sorted(rows, key=lambda row: not row["key"].startswith("physics")):
        print(f"{row['key']}: {json.dumps(row['left'])} | {json.dumps(row['right'])}")
    if not rows:
        print("the runs are the same")


@app.command()
def schema() -> None:
    """Print the JSON Schema of sweep files, for editors."""
    from sweeps.language import schema as sweep_schema

    _print_json(sweep_schema())


@slurm_app.command("check")
def slurm_check(
    nodes: Annotated[int, typer.Option(help="Also run one small job on so many nodes.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Say what a Slurm site offers and what it lacks, before a first job."""
    from dataclasses import asdict

    from slurm.check import examine, show

    findings = examine(_workspace(), nodes)
    if as_json:
        _print_json([asdict(finding) for finding in findings])
    else:
        show(findings)
    if any(finding.ok is False for finding in findings):
        raise typer.Exit(A_RUN_FAILED)


@data_app.command("prepare")
def data_prepare(sweep: SweepArgument, override: SetOption = None) -> None:
    """Make the token shards that a sweep trains on."""
    from orchestrator.finding import writable_workspace
    from orchestrator.submission import prepare_data

    with _one_line_errors():
        workspace = writable_workspace()
        prepare_data(workspace, [run.spec for run in _plan(sweep, override).runs], _console())


@data_app.command("inspect")
def data_inspect(
    sweep: SweepArgument,
    samples: Annotated[int, typer.Option(min=1, help="Training sequences to show.")] = 3,
    override: SetOption = None,
) -> None:
    """Show the size of a sweep's data, and sequences as the model sees them."""
    from orchestrator.finding import writable_workspace
    from orchestrator.samples import print_samples
    from orchestrator.submission import prepare_data

    with _one_line_errors():
        workspace = writable_workspace()
        specs = [run.spec for run in _plan(sweep, override).runs]
        prepare_data(workspace, specs, _console())
        print_samples(workspace, specs[0], samples)


def main() -> None:
    """Entry point of `scaling`."""
    app()


# What the verbs share ------------------------------------------------------------------------------------------


def _plan(sweep: str, overrides: list[str] | None) -> "Plan":
    from orchestrator.plan import make_plan
    from sweeps.sweep import Sweep

    with _one_line_errors():
        return make_plan(Sweep.load(sweep, overrides or ()), _workspace())


def _fit(source: str, columns: str | None) -> "tuple[list[Fit], list[str]]":
    """The fits of a source and notes about its rows. A kept fit is used again while its rows are still the same."""
    import polars as pl

    from analysis import fitting, runs
    from analysis.findings import RefusalError
    from orchestrator.errors import InputError

    try:
        frame = runs.load(_name(source), columns=_columns(columns), workspace=_workspace())
        frame, notes = _take_best(source, frame)
        kept = [fitting.Fit.load(path.parent) for path in sorted(_fits_folder(source).glob("*/fit.json"))]
        if kept and pl.concat([one.rows for one in kept]).sort("run_id").equals(frame.sort("run_id")):
            return kept, notes
        fits = fitting.fit(frame)
    except RefusalError as error:
        raise InputError(str(error)) from None
    for fitted in fits:
        fitted.save(_fits_folder(source) / "".join(c if c.isalnum() else "-" for c in fitted.family).strip("-"))
    return fits, notes


def _take_best(source: str, frame: "pl.DataFrame") -> "tuple[pl.DataFrame, list[str]]":
    """Of a searched axis (`best_of` of the sweep) keep the best run per point; returns what lies at an edge, too."""
    import polars as pl

    from orchestrator.plan import load_document, submitted
    from orchestrator.selection import best_of

    workspace = _workspace()
    name = _name(source)
    if name not in submitted(workspace):
        return frame, []
    document = load_document(workspace, name)
    if not document["best_of"]:
        return frame, []
    usable = frame.filter(pl.col("excluded").is_null())
    losses = dict(zip(usable["run_id"], usable["loss"], strict=True))
    selection = best_of(document["best_of"], document["runs"], losses)
    reasons = pl.col("run_id").replace_strict(selection.excluded, default=None, return_dtype=pl.String)
    return frame.with_columns(excluded=pl.coalesce("excluded", reasons)), selection.edges


def _columns(text: str | None) -> dict[str, str]:
    from orchestrator.errors import InputError

    pairs = [pair.partition("=") for pair in (text or "").split(",") if pair]
    for ours, equals, theirs in pairs:
        if not (ours and equals and theirs):
            raise InputError(f'--columns {text}: write ours=theirs, such as parameters="Model Size",loss=loss')
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}


def _quantity(option: str, text: str) -> int:
    from pydantic import TypeAdapter, ValidationError

    from orchestrator.errors import InputError
    from sweeps.language import Count

    try:
        value: int = TypeAdapter(Count).validate_python(text if text[-1:].isalpha() else float(text))
    except (ValidationError, ValueError):
        raise InputError(f"{option} {text}: write a whole number above zero, such as 125M, 15B or 3e9") from None
    return value


def _fits_folder(source: str) -> Path:
    """Where fits and figures of a source are kept: with the sweep, or among the workspace's fits."""
    workspace = _workspace()
    name = _name(source)
    if source.startswith("mlflow:") or Path(source).suffix.lower() in (".csv", ".parquet"):
        stem = name.removeprefix("mlflow:") if source.startswith("mlflow:") else Path(source).stem
        return workspace.root / "fits" / "".join(c if c.isalnum() or c in "._-" else "-" for c in stem)
    return workspace.sweeps / name / "fit"


def _carry_out(made: "Plan", executor: "Executor") -> None:
    from orchestrator.status import look
    from orchestrator.submission import failed
    from orchestrator.submission import submit as carry_out
    from orchestrator.tables import ledger_line, plan_summary, runs_table

    console = _console()
    document = made.document()
    console.print(f"[bold]{made.name}[/bold]: {plan_summary(document)}", highlight=False)
    made.save()
    statuses = {}
    if made.missing:
        with _one_line_errors(), _interruption(console, f"scaling submit {made.name} --on {executor.name}"):
            statuses = carry_out(made.workspace, made.name, document["runs"], made.launches, executor, console)
    standing = look(made.workspace, made.name)
    console.print(runs_table(standing.runs))
    console.print(ledger_line(standing.ledger), highlight=False, style="dim")
    if failed(statuses):
        raise typer.Exit(A_RUN_FAILED)


def _hand_to_slurm(made: "Plan") -> None:
    """Nothing of ours stays alive: retries, requeueing and forks are carried out by Slurm and the jobs themselves."""
    import uuid

    from orchestrator.errors import InputError
    from orchestrator.executors.contract import Job
    from orchestrator.submission import prepare_data
    from orchestrator.tables import plan_summary
    from slurm.commands import SlurmError
    from slurm.executor import SlurmExecutor

    console, workspace = _console(), made.workspace
    console.print(f"[bold]{made.name}[/bold]: {plan_summary(made.document())}", highlight=False)
    made.save()
    missing = {run.spec.run_id for run in made.missing}
    launches = [launch for launch in made.launches if launch.run_id in missing]
    for launch in launches:
        workspace.run(launch.run_id).create(launch.spec)
    jobs = [
        Job(workspace.run(launch.run_id), launch.spec, uuid.uuid4().hex, launch.fork, launch.checkpoint_at)
        for launch in launches
    ]
    with _one_line_errors():
        prepare_data(workspace, [job.spec for job in jobs], console)
        try:
            handles = SlurmExecutor(workspace, made.name).submit(jobs)
        except (SlurmError, ValueError) as error:
            raise InputError(str(error)) from None
    console.print(f"{len(handles)} runs are with Slurm: scaling status {made.name}", highlight=False)


def _hear_from_slurm(workspace: "Workspace", sweep: str) -> None:
    """Bring run directories and an embedded MLflow up to date with what happened on the cluster."""
    if not (workspace.sweeps / sweep / "slurm").exists():
        return
    from orchestrator.shipping import ship
    from slurm.executor import SlurmExecutor
    from xlstm import tracking

    executor = SlurmExecutor(workspace, sweep)
    executor.reconcile()
    if tracking.open_store(workspace.tracking_uri, workspace.artifacts) is None:
        ship(workspace, sweep, [handle.run.run_id for handle in executor.handles()])


def _executor(on: str) -> "Executor":
    from orchestrator.errors import InputError
    from sweeps.located import nearest

    if on == "local":
        from orchestrator.executors.local import LocalExecutor

        return LocalExecutor()
    raise InputError(f"--on {on}: no such executor; {nearest(on, ('local', 'slurm'))}")


def _sync_all(workspace: "Workspace", say: bool = False) -> None:
    from orchestrator.errors import InputError
    from orchestrator.plan import load_document, submitted
    from orchestrator.shipping import ship
    from xlstm import tracking

    complaint = tracking.open_store(workspace.tracking_uri, workspace.artifacts)
    if complaint:
        raise InputError(f"MLflow cannot be reached: {complaint}")
    for name in submitted(workspace):
        run_ids = [row["run_id"] for row in load_document(workspace, name)["runs"]]
        shipped, complaint = ship(workspace, name, run_ids)
        if complaint:
            raise InputError(f"{name}: {complaint}")
        if say:
            print(f"{name}: {len(shipped)} runs equal their directories in {workspace.tracking_uri}")


def _require_free(host: str, port: int) -> None:
    import socket

    from orchestrator.errors import InputError

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(
                f"{host}:{port} cannot be listened on: {error.strerror}; choose another: scaling ui --port {port + 1}"
            ) from None


def _name(sweep: str) -> str:
    """The name of a sweep given by name or by file."""
    from sweeps.sweep import Sweep

    return Sweep.load(sweep).name if Path(sweep).suffix in (".yaml", ".yml", ".json") else sweep


def _workspace() -> "Workspace":
    from xlstm.records import Workspace

    return Workspace.default()


def _console() -> "Console":
    from rich.console import Console

    console = Console()
    # Piped into a file or a program, a table keeps its columns instead of folding them into 80.
    return console if console.is_terminal else Console(width=200)


def _print_json(document: Any) -> None:
    print(json.dumps(document, indent=2, allow_nan=False))


@contextmanager
def _one_line_errors() -> "Iterator[None]":
    """What a person can put right is said in a line each, without a traceback, and ends with exit code 2."""
    from orchestrator.errors import InputError
    from sweeps.located import SweepError

    try:
        yield
    except (InputError, SweepError) as error:
        print(error, file=sys.stderr)
        raise typer.Exit(BAD_INPUT) from None


@contextmanager
def _interruption(console: "Console", again: str) -> "Iterator[None]":
    try:
        yield
    except KeyboardInterrupt:
        console.print(f"stopped; what was trained is kept in checkpoints. Continue with: {again}", highlight=False)
        raise typer.Exit(INTERRUPTED) from None


if __name__ == "__main__":
    main()
