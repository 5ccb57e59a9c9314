"""Verbs about laws: fit, plot, report, predict, allocate, design; `orchestrator.workbench.analyses.laws` does them."""

import re
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.cli.curves import fit_curves, predict_end
from orchestrator.cli.downstream import show_downstream
from orchestrator.cli.hyperparameters import fit_hyperparameters
from orchestrator.cli.modes import Mode, check_modes
from orchestrator.cli.options import (
    BestOfOption,
    ColumnsOption,
    DecimalCommaOption,
    FormOption,
    KeepOption,
    MixedOption,
    ObjectiveOption,
    PooledOption,
    RangeOption,
    ReferenceOption,
    SourceArgument,
    SourcesArgument,
    columns_of,
    quantity,
    ranges_of,
)
from orchestrator.cli.simulate import simulate_design
from orchestrator.cli.terminal import JsonOption, make_console, print_json
from orchestrator.errors import InputError

_FEW = 3
"""Rows left out for one reason that have a line each."""
_LINES = 200
"""Rows left out that are printed one by one."""
_CURVES = Mode(
    "--curves",
    own=frozenset({"--fit-runs", "--warmup-steps"}),
    common=frozenset({"--columns", "--form", "--delta", "--decimal-comma"}),
)
_HYPERPARAMETERS = Mode("--hyperparameters", own=frozenset({"--axis", "--at"}), common=frozenset({"--columns"}))
_CONVENTIONS = Mode(
    "--conventions",
    common=frozenset({"--columns", "--keep", "--range", "--best-of", "--allow-mixed", "--decimal-comma"}),
)
_SCHEDULE = Mode(
    "--schedule",
    own=frozenset({"--steps", "--decay-share", "--peak-rate", "--final-rate"}),
    common=frozenset({"--tokens"}),
)
_SIMULATE = Mode(
    "--simulate", own=frozenset({"--targets", "--shares", "--form", "--seed"}), common=frozenset({"--columns"})
)
app = typer.Typer()


@app.command()
def fit(
    context: typer.Context,
    sources: SourcesArgument,
    columns: ColumnsOption = None,
    form: FormOption = "auto",
    objective: ObjectiveOption = "huber",
    delta: Annotated[
        float | None, typer.Option(help="Residual beyond which Huber's loss grows linearly; left out, 1e-3.")
    ] = None,
    keep: KeepOption = None,
    within: RangeOption = None,
    best_of: BestOfOption = None,
    allow_mixed: MixedOption = False,
    pooled: PooledOption = False,
    decimal_comma: DecimalCommaOption = False,
    conventions: Annotated[
        bool, typer.Option("--conventions", help="Chinchilla's three approaches under each way of counting N and C.")
    ] = False,
    curves: Annotated[
        bool,
        typer.Option("--curves", help="Fit whole curves: the loss at every step under any learning-rate schedule."),
    ] = False,
    fit_runs: Annotated[
        str | None, typer.Option(metavar="RUN,…", help="With --curves: runs that are fitted; the others are predicted.")
    ] = None,
    warmup_steps: Annotated[
        float | None,
        typer.Option(help="With --curves of a table: steps of warm-up; left out, those up to the table's first step."),
    ] = None,
    downstream: Annotated[
        str | None, typer.Option(metavar="NAME", help="Also from loss to the error of a task that was evaluated.")
    ] = None,
    hyperparameters: Annotated[
        bool,
        typer.Option("--hyperparameters", help="Where the best --axis lies for each size and budget, and its law."),
    ] = False,
    axis: Annotated[
        str, typer.Option(metavar="NAME", help="With --hyperparameters: learning_rate, batch_tokens, or a column.")
    ] = "learning_rate",
    at: Annotated[
        list[str] | None, typer.Option(metavar="N,D", help="With --hyperparameters: where the best value is predicted.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Fit a scaling law to a sweep, a table or an MLflow experiment, or to several of them, and keep the fit."""
    check_modes(context, (_CURVES, _HYPERPARAMETERS, _CONVENTIONS))
    if hyperparameters:
        fit_hyperparameters(sources[0], columns, axis, at or [], as_json)
        return
    if curves:
        from orchestrator.workbench.analyses.curves import Wishes

        runs = [run.strip() for run in (fit_runs or "").split(",") if run.strip()]
        question = Wishes("multi-power" if form == "auto" else form, delta, runs, warmup_steps, decimal_comma)
        fit_curves(sources[0], columns, question, as_json)
        return
    from orchestrator.display.tables import fit_table, forms_line, noise_line
    from orchestrator.workbench.analyses import laws
    from orchestrator.workbench.analyses.downstream import fit_downstream

    wishes = laws.Wishes(
        keep or (), ranges_of(within), allow_mixed, form, objective, delta, best_of or (), decimal_comma, pooled
    )
    if conventions:
        _print_conventions(laws.conventions(sources[0], columns_of(columns), wishes), as_json)
        return
    documents, notes, folder = laws.fit(sources, columns_of(columns), wishes)
    foretold = fit_downstream(sources, columns_of(columns), wishes, downstream) if downstream else []
    if as_json:
        by_family = {one["family"]: one for one in foretold}
        print_json([one | ({"downstream": by_family[one["family"]]} if foretold else {}) for one in documents])
        return
    console = make_console()
    documents = [laws.of_chosen(document) for document in documents]
    first = documents[0]
    console.print(
        f"L(N, D) = {first['law']}, {first['objective']}; "
        + ", ".join(f"{name} = {meaning}" for name, meaning in first["conventions"].items()),
        highlight=False,
    )
    console.print(fit_table(documents))
    for document in documents if len(first["forms"]) > 1 else ():
        console.print(forms_line(document), highlight=False, style="dim")
    console.print(f"intervals at {first['interval_level']:.0%} by {first['resampling']}", highlight=False, style="dim")
    for document in documents:
        if "noise" in document:
            console.print(noise_line(document), highlight=False, style="dim", soft_wrap=True)
        excluded = ((str(row["row"]), row["reason"]) for row in document["rows"]["excluded"])
        left_out = _counted("left out: {}", excluded, "rows", " (--json lists all)")
        for line in left_out[:_LINES]:
            console.print(line, highlight=False, style="dim", soft_wrap=True)
        if len(left_out) > _LINES:
            console.print("left out: more, which --json lists", highlight=False, style="dim")
    _warn(warning["message"] for document in documents for warning in document["warnings"])
    told = (note.partition(": ")[::2] for note in dict.fromkeys(notes))
    for line in _counted("{}", told, "points"):
        console.print(line, highlight=False, style="yellow", soft_wrap=True)
    for one in foretold:
        show_downstream(one, console)
    console.print(f"kept in {folder}", highlight=False, soft_wrap=True)


def _counted(shape: str, told: Iterable[tuple[str, str]], rows: str, further: str = "") -> list[str]:
    """What is told of rows: a line for each, or, where the same is told of many, a line for what is told."""
    by_reason: dict[str, list[tuple[str, str]]] = {}
    for row, reason in told:
        # Of a search, which run was better differs from row to row; what was searched does not.
        by_reason.setdefault(re.sub(r"^\S+( is better in )", r"another run\1", reason), []).append((row, reason))
    lines = []
    for reason, each in by_reason.items():
        if len(each) <= _FEW:
            lines += [shape.format(f"{row}: {own}") for row, own in each]
        else:
            some = ", ".join(row for row, _ in each[:_FEW])
            lines.append(shape.format(f"{len(each)} {rows}: {reason}: {some}, …{further}"))
    return lines


@app.command()
def design(
    context: typer.Context,
    source: SourceArgument,
    parameters: Annotated[
        str | None, typer.Option(help="Model size N of the prediction to be made sure, such as 7B.")
    ] = None,
    tokens: Annotated[str | None, typer.Option(help="Training tokens D of that prediction, such as 300B.")] = None,
    budget: Annotated[float | None, typer.Option(help="What the next runs may cost together, in --unit.")] = None,
    unit: Annotated[str, typer.Option(help="flops, or device-hours as the sweep's plan has them.")] = "flops",
    sizes: Annotated[
        str | None, typer.Option(metavar="N,…", help="Sizes there could be; left out, those of the fitted runs.")
    ] = None,
    fragment: Annotated[
        Path | None, typer.Option("--write", metavar="FILE.yaml", help="Write the runs as points of a sweep file.")
    ] = None,
    columns: ColumnsOption = None,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Of a table of runs that are known: what would have been bought of it.")
    ] = False,
    targets: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --simulate: a table of the losses to be predicted.")
    ] = None,
    shares: Annotated[
        str, typer.Option(metavar="SHARE,…", help="With --simulate: of the pool's cost, at which R² is told.")
    ] = "0.01,0.05,0.1",
    form: Annotated[
        str, typer.Option(metavar="FORM", help="With --simulate: the law's form; a design has that of the last fit.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="With --simulate: of starts and draws.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """The next runs within a budget that make a prediction surest, the run most worth its cost first."""
    check_modes(context, (_SIMULATE,))
    if simulate:
        simulate_design(source, targets, columns, shares, form, seed, as_json)
        return
    from orchestrator.display.tables import design_table
    from orchestrator.workbench.analyses import laws

    if parameters is None or tokens is None or budget is None:
        raise InputError("say what is to be known and what it may cost: --parameters, --tokens and --budget")
    target = (float(quantity("--parameters", parameters)), float(quantity("--tokens", tokens)))
    among = [float(quantity("--sizes", size)) for size in sizes.split(",")] if sizes else None
    documents = laws.design(source, columns_of(columns), target, budget, unit=unit, sizes=among, fragment=fragment)
    if as_json:
        print_json(documents)
        return
    console = make_console()
    for document in documents:
        console.print(design_table(document))
        for said in filter(None, (document["ended"], document["beyond"])):
            console.print(f"{document['family']}: {said}", highlight=False)
    _warn(warning for document in documents for warning in document["warnings"])
    if fragment is not None:
        console.print(f"written to {fragment}", highlight=False, soft_wrap=True)


def _print_conventions(found: list[dict[str, Any]], as_json: bool) -> None:
    """One line per family, convention and approach, so that how much each choice moves the answer is seen."""
    from orchestrator.display.tables import conventions_table

    if as_json:
        print_json(found)
        return
    console = make_console()
    console.print(conventions_table(found))
    console.print(
        "a of N* ~ C^a, intervals at 95%; what an approach cannot answer is left blank and said below", style="dim"
    )
    reasons = {(one["family"], one["approach"]): one["refusal"] for one in reversed(found) if one["refusal"]}
    for (family, approach), reason in reversed(reasons.items()):
        console.print(f"{family}, {approach}: {reason}", highlight=False, style="dim")


@app.command()
def plot(
    sources: SourcesArgument,
    columns: ColumnsOption = None,
    reference: ReferenceOption = None,
    formats: Annotated[
        list[str] | None, typer.Option("--format", metavar="png|pdf|svg", help="Of the figures; may be repeated.")
    ] = None,
) -> None:
    """Draw the fitted laws, as PNG or as asked, and one page with everything."""
    from orchestrator.workbench.analyses import laws

    paths, refusals, complaint = laws.plot(sources, columns_of(columns), reference or (), formats or ("png",))
    _complain(complaint)
    for line in (*paths, *refusals):
        print(line)


@app.command("report")
def write_report(sources: SourcesArgument, columns: ColumnsOption = None, reference: ReferenceOption = None) -> None:
    """Write one self-contained page, figures, laws, certificates and runs, and log it on the sweep's run in MLflow."""
    from orchestrator.workbench.analyses import laws

    path, complaint = laws.report(sources, columns_of(columns), reference or ())
    _complain(complaint)
    print(path)


@app.command()
def predict(
    context: typer.Context,
    sources: SourcesArgument,
    parameters: Annotated[str | None, typer.Option(help="Model size N, such as 125M.")] = None,
    tokens: Annotated[str | None, typer.Option(help="Training tokens D, such as 15B.")] = None,
    unique_tokens: Annotated[
        str | None, typer.Option(help="How many of them differ, for the form data-constrained; left out, all do.")
    ] = None,
    columns: ColumnsOption = None,
    schedule: Annotated[
        str | None, typer.Option(metavar="KIND", help="By the laws of curves: constant, cosine or wsd.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="With --schedule: length of the run.")] = None,
    decay_share: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="With --schedule wsd: part of the run; left out, the best.")
    ] = None,
    peak_rate: Annotated[
        float | None, typer.Option(min=0.0, help="With --schedule; left out, the largest of the fitted runs.")
    ] = None,
    final_rate: Annotated[
        float | None, typer.Option(min=0.0, help="With --schedule; left out, a tenth of the peak.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Predict the loss of a model of N parameters trained on D tokens, or of a run under another schedule."""
    check_modes(context, (_SCHEDULE,))
    if schedule is not None:
        end = None if tokens is None else quantity("--tokens", tokens)
        asked = {"steps": steps, "tokens": end, "decay_share": decay_share, "peak": peak_rate, "final": final_rate}
        predict_end(sources[0], schedule, as_json, **asked)
        return
    from orchestrator.workbench.analyses import laws

    if parameters is None or tokens is None:
        raise InputError("say what to predict: --parameters and --tokens, or --schedule")
    size, budget = quantity("--parameters", parameters), quantity("--tokens", tokens)
    unique = None if unique_tokens is None else quantity("--unique-tokens", unique_tokens)
    rows = laws.predict(sources, columns_of(columns), size, budget, unique)
    if as_json:
        print_json(rows)
        return
    for row in rows:
        told = [f"at N = {size:,}, D = {budget:,}"]
        if row["interval"] is not None:
            low, high = row["interval"]
            told = [f"loss {row['loss']:.4f} [{low:.4f}, {high:.4f}] {told[0]}"]
        if row["new_run_interval"] is not None:
            least, most = row["new_run_interval"]
            told.append(f"a new run [{least:.4f}, {most:.4f}]")
        print(f"{row['family']}: {'; '.join(filter(None, [*told, row['withheld'], row['beyond']]))}")
    _warn(warning for row in rows for warning in row["warnings"])


@app.command()
def allocate(
    sources: SourcesArgument,
    flops: Annotated[float, typer.Option(help="Compute to spend, such as 1e21.")],
    inference_tokens: Annotated[float, typer.Option(min=0, help="Tokens to be served out of the same compute.")] = 0.0,
    columns: ColumnsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Split a budget of compute between model size and training tokens, so that the loss is lowest."""
    from orchestrator.workbench.analyses import laws

    splits, multipliers, warnings = laws.allocate(sources, columns_of(columns), flops, inference_tokens)
    if as_json:
        print_json(
            {
                "allocations": [
                    {"family": family} | ({"withheld": split} if isinstance(split, str) else asdict(split))
                    for family, split in splits
                ],
                "compute_multipliers": [asdict(multiplier) for multiplier in multipliers],
                "warnings": warnings,
            }
        )
        return
    for family, split in splits:
        print(f"{family}: {split if isinstance(split, str) else split.sentence}")
    for multiplier in multipliers:
        print(multiplier.sentence)
    _warn(warnings)


def _warn(warnings: Iterable[str]) -> None:
    """What fits warn of, with all that is read off them."""
    console = make_console()
    for warning in dict.fromkeys(warnings):
        console.print(warning, highlight=False, style="yellow", soft_wrap=True)


def _complain(complaint: str | None) -> None:
    if complaint:
        print(f"not logged in MLflow: {complaint}", file=sys.stderr)
