"""Verbs about laws: fit, plot, report, predict, allocate, design. Alone in the orchestrator it knows the analysis."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.terminal import JsonOption, make_console, one_line_errors, print_json, sweep_name, workspace_here

if TYPE_CHECKING:
    import polars as pl

    from analysis.design import Cost
    from analysis.figures import Evidence
    from analysis.fit import Fit
    from analysis.quality import Rules
    from xlstm.run.directory import Workspace

SourceArgument = Annotated[
    str, typer.Argument(metavar="SOURCE", help="A submitted sweep, FILE.csv, FILE.parquet or mlflow:EXPERIMENT.")
]
ColumnsOption = Annotated[
    str | None,
    typer.Option(metavar="OURS=THEIRS,…", help='Columns of a file, such as parameters="Model Size",loss=loss.'),
]


KeepOption = Annotated[
    list[str] | None,
    typer.Option("--keep", metavar="RULE", help="Keep rows that this rule would leave out, such as not-decayed."),
]
RangeOption = Annotated[
    list[str] | None,
    typer.Option("--range", metavar="COLUMN=LOW:HIGH", help="Leave out rows outside, such as tokens=1e9:1e12."),
]
MixedOption = Annotated[
    bool,
    typer.Option("--allow-mixed", help="Fit runs of different evaluations, tokenizers or schedules together."),
]

ReferenceOption = Annotated[
    list[str] | None,
    typer.Option("--reference", metavar="NAME", help="Draw published numbers, too: xlstm-table-3, chinchilla, …"),
]

app = typer.Typer()


@app.command()
def fit(
    source: SourceArgument,
    columns: ColumnsOption = None,
    keep: KeepOption = None,
    within: RangeOption = None,
    allow_mixed: MixedOption = False,
    conventions: Annotated[
        bool, typer.Option("--conventions", help="Chinchilla's three approaches under each way of counting N and C.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Fit a scaling law to a sweep, a table or an MLflow experiment, and keep the fit."""
    from orchestrator.tables import fit_table

    if conventions:
        _print_conventions(source, columns, keep, within, as_json)
        return
    with one_line_errors():
        rules = _rules(keep, within)
        fits, notes = _fit(source, columns, rules, allow_mixed)
    documents = [fitted.to_json() | {"rules": rules.to_json() | {"mixed": allow_mixed}} for fitted in fits]
    if as_json:
        print_json(documents)
        return
    console = make_console()
    first = documents[0]
    console.print(
        f"L(N, D) = {first['law']}, {first['objective']}; "
        + ", ".join(f"{name} = {meaning}" for name, meaning in first["conventions"].items()),
        highlight=False,
    )
    console.print(fit_table(documents))
    console.print(f"intervals at {first['interval_level']:.0%} by {first['resampling']}", highlight=False, style="dim")
    for document in documents:
        for row in document["rows"]["excluded"]:
            console.print(f"left out: {row['row']}: {row['reason']}", highlight=False, style="dim")
        for warning in document["warnings"]:
            console.print(warning["message"], highlight=False, style="yellow")
    for note in notes:
        console.print(note, highlight=False, style="yellow")
    console.print(f"kept in {_fits_folder(source)}", highlight=False, soft_wrap=True)


@app.command()
def design(
    source: SourceArgument,
    parameters: Annotated[str, typer.Option(help="Model size N of the prediction to be made sure, such as 7B.")],
    tokens: Annotated[str, typer.Option(help="Training tokens D of that prediction, such as 300B.")],
    budget: Annotated[float, typer.Option(help="What the next runs may cost together, in --unit.")],
    unit: Annotated[str, typer.Option(help="flops, or device-hours as the sweep's plan has them.")] = "flops",
    sizes: Annotated[
        str | None, typer.Option(metavar="N,…", help="Sizes there could be; left out, those of the fitted runs.")
    ] = None,
    fragment: Annotated[
        Path | None, typer.Option("--write", metavar="FILE.yaml", help="Write the runs as points of a sweep file.")
    ] = None,
    columns: ColumnsOption = None,
    as_json: JsonOption = False,
) -> None:
    """The next runs within a budget that make a prediction surest, the run most worth its cost first."""
    from dataclasses import asdict

    from orchestrator.errors import InputError
    from orchestrator.tables import design_table

    with one_line_errors():
        if unit not in ("flops", "device-hours"):
            raise InputError(f"--unit {unit}: write flops or device-hours")
        target = (float(_quantity("--parameters", parameters)), float(_quantity("--tokens", tokens)))
        among = [float(_quantity("--sizes", size)) for size in sizes.split(",")] if sizes else None
        fits, _ = _fit(source, columns)
        from analysis import design as designs

        try:
            costs = [_planned_hours(source, one) if unit == "device-hours" else None for one in fits]
            found = [
                designs.design(one, target, budget, sizes=among, cost=cost)
                for one, cost in zip(fits, costs, strict=True)
            ]
        except ValueError as error:
            raise InputError(str(error)) from None
    if fragment is not None:
        pairs = zip(found, fits, strict=True)
        fragment.write_text("\n".join(designs.sweep_fragment(one, fitted) for one, fitted in pairs))
    documents = [asdict(one) | {"unit": unit} for one in found]
    if as_json:
        print_json(documents)
        return
    console = make_console()
    for document in documents:
        console.print(design_table(document))
    if fragment is not None:
        console.print(f"written to {fragment}", highlight=False, soft_wrap=True)


def _planned_hours(source: str, fitted: "Fit") -> "Cost":
    from analysis.design import hours_of_plan
    from orchestrator.errors import InputError
    from orchestrator.kept import load_document

    name = sweep_name(source)
    if name not in workspace_here().submitted():
        raise InputError(f"--unit device-hours: {source} is no submitted sweep, only its plan knows device hours")
    runs = load_document(workspace_here(), name)["runs"]
    return hours_of_plan(
        fitted,
        [
            (run["parameters"]["total"], run["flops"]["exact"], run["device_hours"])
            for run in runs
            if run["model"] == fitted.family and run["device_hours"] > 0
        ],
    )


def _print_conventions(
    source: str, columns: str | None, keep: list[str] | None, within: list[str] | None, as_json: bool
) -> None:
    """One line per family, convention and approach, so that how much each choice moves the answer is seen."""
    from dataclasses import asdict

    from orchestrator.tables import conventions_table

    with one_line_errors():
        from analysis import conventions, runs
        from analysis.findings import RefusalError
        from orchestrator.errors import InputError

        try:
            frame, _ = _load(source, columns, _rules(keep, within))
            curves = runs.load_curves(sweep_name(source), frame, workspace=workspace_here())
            found = conventions.compare(frame, curves)
        except RefusalError as error:
            raise InputError(str(error)) from None
    documents = [asdict(one) for one in found]
    if as_json:
        print_json(documents)
        return
    console = make_console()
    console.print(conventions_table(documents))
    console.print(
        "a of N* ~ C^a, intervals at 95%; what an approach cannot answer is left blank and said below", style="dim"
    )
    reasons = {(one.family, one.approach): one.refusal for one in reversed(found) if one.refusal}
    for (family, approach), reason in reversed(reasons.items()):
        console.print(f"{family}, {approach}: {reason}", highlight=False, style="dim")


@app.command()
def plot(source: SourceArgument, columns: ColumnsOption = None, reference: ReferenceOption = None) -> None:
    """Draw the fitted laws, as PNG, PDF and SVG, and one page with everything."""
    with one_line_errors():
        evidence = _evidence(source, columns, reference)
        from analysis import figures, plots
        from analysis.findings import RefusalError

        paths, refusals = [], []
        with plots.style():
            for name, draw in figures.FIGURES.items():
                try:
                    paths += plots.save(draw(evidence), _fits_folder(source) / name)
                except RefusalError as refusal:
                    refusals.append(f"{name}: not drawn: {refusal}")
        paths.append(_report(source, evidence))
    for line in (*paths, *refusals):
        print(line)


@app.command("report")
def write_report(source: SourceArgument, columns: ColumnsOption = None, reference: ReferenceOption = None) -> None:
    """Write one self-contained page, figures, laws, certificates and runs, and log it on the sweep's run in MLflow."""
    with one_line_errors():
        print(_report(source, _evidence(source, columns, reference)))


@app.command()
def predict(
    source: SourceArgument,
    parameters: Annotated[str, typer.Option(help="Model size N, such as 125M.")],
    tokens: Annotated[str, typer.Option(help="Training tokens D, such as 15B.")],
    columns: ColumnsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Predict the loss of a model of N parameters trained on D tokens."""
    with one_line_errors():
        size, budget = _quantity("--parameters", parameters), _quantity("--tokens", tokens)
        fits, _ = _fit(source, columns)
    rows: list[dict[str, Any]] = []
    for fitted in fits:
        center, low, high = (float(value) for value in fitted.predict(size, budget))
        rows.append(
            {"family": fitted.family, "parameters": size, "tokens": budget, "loss": center, "interval": [low, high]}
        )
    if as_json:
        print_json(rows)
        return
    for row in rows:
        low, high = row["interval"]
        print(f"{row['family']}: loss {row['loss']:.4f} [{low:.4f}, {high:.4f}] at N = {size:,}, D = {budget:,}")


@app.command()
def allocate(
    source: SourceArgument,
    flops: Annotated[float, typer.Option(help="Compute to spend, such as 1e21.")],
    inference_tokens: Annotated[float, typer.Option(min=0, help="Tokens to be served out of the same compute.")] = 0.0,
    columns: ColumnsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Split a budget of compute between model size and training tokens, so that the loss is lowest."""
    from dataclasses import asdict

    from orchestrator.errors import InputError

    with one_line_errors():
        fits, _ = _fit(source, columns)
        from analysis import allocation

        try:
            splits = [allocation.allocate_runs(fitted, flops, inference_tokens=inference_tokens) for fitted in fits]
        except ValueError as error:
            raise InputError(str(error)) from None
        multipliers = [allocation.compute_multiplier(fits[0], other, flops) for other in fits[1:]]
    named = [(fitted.family, split) for fitted, split in zip(fits, splits, strict=True)]
    if as_json:
        print_json(
            {
                "allocations": [{"family": family, **asdict(split)} for family, split in named],
                "compute_multipliers": [asdict(multiplier) for multiplier in multipliers],
            }
        )
        return
    for family, split in named:
        print(f"{family}: {split.sentence}")
    for multiplier in multipliers:
        print(multiplier.sentence)


def _evidence(source: str, columns: str | None, references: list[str] | None) -> "Evidence":
    import polars as pl

    from analysis import runs
    from analysis.figures import Evidence
    from analysis.findings import RefusalError
    from analysis.references import find
    from orchestrator.errors import InputError

    try:
        found = [find(name) for name in references or []]
    except RefusalError as error:
        raise InputError(str(error)) from None
    fits, _ = _fit(source, columns)
    used = pl.concat([fitted.used.select("run_id", "excluded") for fitted in fits])
    return Evidence(fits, runs.load_curves(sweep_name(source), used, workspace=workspace_here()), found)


def _report(source: str, evidence: "Evidence") -> Path:
    """Write the page; that of a submitted sweep is logged on its parent run, too, where the store can be reached."""
    from analysis import report
    from xlstm.run.tracking import log_artifact

    path = report.write(_fits_folder(source) / "report.html", sweep_name(source), evidence)
    if sweep_name(source) in workspace_here().submitted():
        workspace = workspace_here()
        wrong = log_artifact(sweep_name(source), workspace.tracking_uri, path, workspace.artifacts)
        if wrong:
            print(f"not logged in MLflow: {wrong}", file=sys.stderr)
    return path


def _rules(keep: list[str] | None, within: list[str] | None) -> "Rules":
    from analysis.findings import RefusalError
    from analysis.quality import Rules
    from orchestrator.errors import InputError

    ranges = {}
    for text in within or []:
        name, equals, bounds = text.partition("=")
        low, colon, high = bounds.partition(":")
        try:
            ranges[name] = (float(low or "-inf"), float(high or "inf"))
        except ValueError:
            equals = ""
        if not (equals and colon):
            raise InputError(f"--range {text}: write COLUMN=LOW:HIGH, such as tokens=1e9:1e12 or loss=:4")
    try:
        return Rules(frozenset(keep or ()), ranges)
    except RefusalError as error:
        raise InputError(str(error)) from None


def _load(source: str, columns: str | None, rules: "Rules | None" = None) -> "tuple[pl.DataFrame, list[str]]":
    from analysis import runs

    frame = runs.load(sweep_name(source), columns=_columns(columns), workspace=workspace_here(), rules=rules)
    return take_best(workspace_here(), sweep_name(source), frame)


def _fit(
    source: str, columns: str | None, rules: "Rules | None" = None, allow_mixed: bool = False
) -> "tuple[list[Fit], list[str]]":
    """The fits of a source and notes about its rows. A kept fit serves while rows and method are the same.

    Without `rules`, those of the last `scaling fit` hold: what is predicted and drawn is what was fitted.
    """
    from analysis import fitting
    from analysis.findings import RefusalError
    from analysis.quality import Rules
    from orchestrator.errors import InputError
    from xlstm.run.records import write_json

    kept_rules = _fits_folder(source) / "rules.json"
    asked = None if rules is None else rules.to_json() | {"mixed": allow_mixed}
    before = json.loads(kept_rules.read_text()) if kept_rules.exists() else Rules().to_json() | {"mixed": False}
    if asked is None:
        rules, allow_mixed = Rules.from_json(before), before["mixed"]
    try:
        frame, notes = _load(source, columns, rules)
        same_rules = asked is None or asked == before
        if same_rules and (kept := fitting.saved(_fits_folder(source), frame, allow_mixed=allow_mixed)):
            return kept, notes
        fits = fitting.fit(frame, allow_mixed=allow_mixed)
    except RefusalError as error:
        raise InputError(str(error)) from None
    if asked is not None:
        kept_rules.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept_rules, asked)
    for fitted in fits:
        fitted.save(_fits_folder(source) / "".join(c if c.isalnum() else "-" for c in fitted.family).strip("-"))
    return fits, notes


def take_best(workspace: "Workspace", name: str, frame: "pl.DataFrame") -> "tuple[pl.DataFrame, list[str]]":
    """Of a searched axis (`best_of` of the sweep) keep the best run per point; returns what lies at an edge, too."""
    import polars as pl

    from orchestrator.kept import load_document
    from orchestrator.selection import best_of

    if name not in workspace.submitted():
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
    workspace = workspace_here()
    name = sweep_name(source)
    if source.startswith("mlflow:") or Path(source).suffix.lower() in (".csv", ".parquet"):
        stem = name.removeprefix("mlflow:") if source.startswith("mlflow:") else Path(source).stem
        return workspace.fits / "".join(c if c.isalnum() or c in "._-" else "-" for c in stem)
    return workspace.sweep(name).fit
