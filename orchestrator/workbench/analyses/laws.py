"""What the verbs about laws do: fit, conventions, design, plot, report, predict, allocate.

Each takes a source as it was typed (a sweep's name or file, a table, `mlflow:EXPERIMENT`) and raises InputError where
it is not there or its rows cannot answer.
"""

import errno
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from analysis.data import tables
from analysis.data.columns import Reading
from analysis.data.quality import Rules
from analysis.data.references import find as find_reference
from analysis.data.runs import EVALUATION, Kind
from analysis.decisions import allocation
from analysis.decisions import conventions as counting
from analysis.decisions import design as designs
from analysis.findings import RefusalError
from analysis.fitting.fit import Fit
from analysis.laws import forms, objectives
from analysis.source import Question, Source
from orchestrator.errors import InputError
from orchestrator.execution import provenance
from orchestrator.standing.decisions import sentence
from orchestrator.standing.noise import measured
from orchestrator.workbench.mending import mend_plan
from sweeps.sweep import Sweep
from xlstm.quantities import nearest
from xlstm.run.directory import WORKSPACE_VARIABLE, Workspace
from xlstm.run.tracking import embedded, log_artifact
from xlstm.run.tracking.charts import charts_link
from xlstm.run.tracking.secrets import masked

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from analysis.report.figures import Evidence


AUTO = "auto"
_PROPOSED = {"model", "size", "seed", "tokens", "tokens_per_parameter", "flops", "steps"}
"""Axes that a proposed run states, or that follow from what it states."""


@contextmanager
def refusals_in_a_line() -> Iterator[None]:
    """What the rows cannot answer, or a folder cannot hold, is an error that a person can put right."""
    try:
        yield
    except RefusalError as refusal:
        # Names of a table may hold line breaks, and what a terminal obeys.
        shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(refusal))
        raise InputError("".join(shown)) from None
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.ENOSPC):
            raise
        what = f"{error.filename or 'the workspace'} cannot be written: {error.strerror}"
        raise InputError(f"{what}; set {WORKSPACE_VARIABLE} to a folder of yours") from None


@dataclass(frozen=True)
class Wishes:
    """A question as it is typed: rules to keep, ranges of columns, the names of a form and of an objective."""

    keep: Sequence[str] = ()
    ranges: Mapping[str, tuple[float, float]] | None = None
    mixed: bool = False
    form: str = AUTO
    """A form's name, or AUTO for the one that the rows speak for."""
    objective: str = "huber"
    delta: float | None = None
    best_of: Sequence[str] = ()
    decimal_comma: bool = False
    pooled: bool = False

    def question(self) -> Question:
        """RefusalError naming the nearest valid word."""
        rules = Rules(frozenset(self.keep), self.ranges or {})
        objective = objectives.find(self.objective, self.delta)
        form = None if self.form == AUTO else forms.find(self.form)
        return Question(rules, self.mixed, form, objective, tuple(self.best_of), self.pooled)


def open_source(typed: Sequence[str], columns: Mapping[str, str], wishes: Wishes | None = None) -> Source:
    """The sources that a person typed, in the default workspace; a sweep's file stands for the sweep of its name.

    Without wishes it is asked, and its columns are read where none are named, as for the last fit.
    """
    name, *others = dict.fromkeys(map(_named, typed))
    if wishes is not None:
        reading = Reading(columns, wishes.decimal_comma)
        return Source(name, Workspace.default(), reading, wishes.question(), tuple(others))
    return Source(name, Workspace.default(), Reading(columns) if columns else None, others=tuple(others))


def _named(typed: str) -> str:
    """A source by its name, the plan of a sweep made anew where it is damaged."""
    path = Path(typed)
    is_sweep = path.suffix in (".yaml", ".yml") or (path.suffix == ".json" and tables.holds_one_mapping(path))
    name = Sweep.load(typed).name if is_sweep else typed
    if Kind.of(name) is Kind.SWEEP and not Path(name).is_file():
        mend_plan(Workspace.default(), name)
    return name


@refusals_in_a_line()
def fit(
    typed: Sequence[str], columns: Mapping[str, str], wishes: Wishes
) -> tuple[list[dict[str, Any]], list[str], Path]:
    """The fits as documents, notes about their rows, and the folder where they are saved."""
    source = open_source(typed, columns, wishes)
    found = documents(source.fits, source.question)
    told = [document | _noise(source, one) for document, one in zip(found, source.fits, strict=True)]
    remembered = [source.remembered] if source.remembered else []
    return told, [*remembered, *source.notes], source.folder


def _noise(source: Source, fitted: Fit) -> dict[str, Any]:
    """What rounding alone does to the losses that were fitted, beside Huber's delta; empty where nobody measured it."""
    if source.kind is Kind.TABLE:
        return {}
    runs = [source.workspace.run(name) for name in fitted.used["run_id"] if name == Path(name).name]
    floors = {noise.run_id: noise.floor for run in runs if (noise := measured(run)) is not None}
    if not floors:
        return {}
    return {"noise": {"floor": max(floors.values()), "delta": fitted.objective.delta, "runs": floors}}


def documents(fits: Sequence[Fit], question: Question) -> list[dict[str, Any]]:
    """Fits in the shape of `scaling fit --json`."""
    return [_document(fitted) | {"rules": question.to_json()} for fitted in fits]


def _document(fitted: Fit) -> dict[str, Any]:
    """The additive law where several forms were fitted, else the one; `chosen` and `forms` say how forms stand.

    Warnings are those of that law and, after them, of the chosen one.
    """
    shown = next((one for one in fitted.others if one.form is forms.ADDITIVE), fitted)
    warnings = dict.fromkeys([*shown.warnings, *fitted.warnings])
    return shown.to_json() | {"warnings": [asdict(warning) for warning in warnings]} | fitted.weighed()


def of_chosen(document: Mapping[str, Any]) -> dict[str, Any]:
    """A document of `fit` with the numbers of the chosen form in place of the additive law's."""
    (chosen,) = [one for one in document["forms"] if one["chosen"]]
    return dict(document) | {name: value for name, value in chosen.items() if name in document}


@refusals_in_a_line()
def conventions(typed: str, columns: Mapping[str, str], wishes: Wishes) -> list[dict[str, Any]]:
    """Chinchilla's three approaches under each way of counting: a document per family, convention and approach."""
    source = open_source((typed,), columns, wishes)
    return [asdict(one) for one in counting.compare(source.frame, source.curves(source.frame))]


@refusals_in_a_line()
def design(
    typed: str,
    columns: Mapping[str, str],
    target: tuple[float, float],
    budget: float,
    *,
    unit: str = "flops",
    sizes: Sequence[float] | None = None,
    fragment: Path | None = None,
) -> list[dict[str, Any]]:
    """The next runs worth their cost, a document per family; written as points of a sweep file to `fragment`, too.

    InputError for a unit other than flops and device-hours, or for device-hours of what is no submitted sweep.
    """
    if unit not in ("flops", "device-hours"):
        raise InputError(f"--unit {unit}: write flops or device-hours")
    source = open_source((typed,), columns)
    found = []
    for one in source.fits:
        cost = _planned_hours(typed, source, one) if unit == "device-hours" else None
        found.append(designs.design(one, target, budget, sizes=sizes, cost=cost))
    if fragment is not None:
        pairs, swept = zip(found, source.fits, strict=True), _further_axes(source)
        fragment.write_text("\n".join(designs.sweep_fragment(one, fitted, swept) for one, fitted in pairs))
    return [
        asdict(one) | {"unit": unit, "warnings": _warnings([fitted])}
        for one, fitted in zip(found, source.fits, strict=True)
    ]


def _further_axes(source: Source) -> dict[str, dict[str, Any]]:
    """Of a sweep's runs, by id, the axes that have several values and that a proposal says nothing of."""
    points = {run["run_id"]: run.get("point", {}) for run in source.plan["runs"]} if source.plan is not None else {}
    values: dict[str, set[str]] = {}
    for point in points.values():
        for axis, value in point.items():
            values.setdefault(axis, set()).add(repr(value))
    further = {axis for axis, seen in values.items() if len(seen) > 1} - _PROPOSED
    return {run: {axis: value for axis, value in point.items() if axis in further} for run, point in points.items()}


@refusals_in_a_line()
def plot(
    typed: Sequence[str], columns: Mapping[str, str], references: Sequence[str], formats: Sequence[str] = ("png",)
) -> tuple[list[Path], list[str], str | None]:
    """The figures and the page that were written, why others were not drawn, and why MLflow did not get the page.

    InputError for a format that there is not.
    """
    from analysis.report import figures, plots

    if unknown := [name for name in formats if name not in plots.FORMATS]:
        raise InputError(f"--format {unknown[0]}: {nearest(unknown[0], plots.FORMATS)}")
    source = open_source(typed, columns)
    evidence = _evidence(source, references)
    paths, refusals = [], []
    with figures.drawn(evidence) as drawn, plots.style():
        for name, figure in drawn.items():
            if isinstance(figure, RefusalError):
                refusals.append(f"{name}: not drawn: {figure}")
            else:
                paths += plots.save(figure, source.folder / name, formats)
        page, complaint = _write_page(source, evidence, drawn)
    return [*paths, page], refusals, complaint


@refusals_in_a_line()
def report(typed: Sequence[str], columns: Mapping[str, str], references: Sequence[str]) -> tuple[Path, str | None]:
    """The page that was written, and why MLflow did not get it."""
    from analysis.report import figures

    source = open_source(typed, columns)
    evidence = _evidence(source, references)
    with figures.drawn(evidence) as drawn:
        return _write_page(source, evidence, drawn)


@refusals_in_a_line()
def predict(
    typed: Sequence[str], columns: Mapping[str, str], parameters: int, tokens: int, unique_tokens: int | None = None
) -> list[dict[str, Any]]:
    """The loss of a model of N parameters trained on D tokens, a document per family.

    Where an interval is unbounded it is None, and so is the loss where its own is; `withheld` says what is not told.
    """
    rows = []
    for fitted in open_source(typed, columns).fits:
        loss, *interval = (float(value) for value in fitted.predict(parameters, tokens, unique_tokens))
        at = {"parameters": parameters, "tokens": tokens}
        run = [float(bound) for bound in fitted.predict_run(parameters, tokens, unique_tokens)]
        told, told_of_run = (bounds if fitted.is_bounded(*bounds) else None for bounds in (interval, run))
        withheld = "" if told_of_run else "what a new run would show" if told else "the loss"
        asked = at | {"flops": float(fitted.token_cost.per_token(parameters)) * tokens}
        rows.append(
            {"family": fitted.family, **at, "loss": loss if told else None, "interval": told}
            | {"new_run_interval": told_of_run if told else None}
            | {"withheld": f"{withheld} is not told: its interval is unbounded" if withheld else ""}
            | {"form": fitted.form.name, "extrapolation": fitted.extrapolation(asked), "beyond": fitted.beyond(asked)}
            | {"warnings": _warnings([fitted])}
        )
    return rows


@refusals_in_a_line()
def allocate(
    typed: Sequence[str], columns: Mapping[str, str], flops: float, inference_tokens: float
) -> tuple[list[tuple[str, allocation.Allocation | str]], list[allocation.ComputeMultiplier], list[str]]:
    """The best split of a budget for each family, how much compute the first one needs for the others' loss, and what
    the fits warn of.

    A family whose law has no optimum has the reason in the place of a split, and is compared with none.
    """
    fits = open_source(typed, columns).fits
    splits = [(one.family, _split(one, flops, inference_tokens)) for one in fits]
    known = [not isinstance(split, str) for _, split in splits]
    others = [other for other, is_known in zip(fits[1:], known[1:], strict=True) if is_known and known[0]]
    multipliers = [allocation.compute_multiplier(fits[0], other, flops) for other in others]
    return splits, multipliers, _warnings(fits)


def _split(fitted: Fit, flops: float, inference_tokens: float) -> allocation.Allocation | str:
    try:
        return allocation.allocate(fitted, flops, inference_tokens=inference_tokens)
    except RefusalError as refusal:
        if refusal.code != "no-optimum":
            raise
        return str(refusal)


def _warnings(fits: Sequence[Fit]) -> list[str]:
    """What the fits warn of, each once: it holds for all that is read off them."""
    return list(dict.fromkeys(warning.message for fitted in fits for warning in fitted.warnings))


def _planned_hours(typed: str, source: Source, fitted: Fit) -> designs.Cost:
    """What runs cost in device hours, as the source's plan has them."""
    if source.plan is None:
        raise InputError(f"--unit device-hours: {typed} is no submitted sweep, only its plan knows device hours")
    return designs.hours_of_plan(
        fitted,
        [
            (run["parameters"]["total"], run["flops"]["exact"], run["device_hours"])
            for run in source.plan["runs"]
            if run["model"] == fitted.family and run["device_hours"] > 0
        ],
    )


def _evidence(source: Source, references: Sequence[str]) -> "Evidence":
    from analysis.report.figures import Evidence

    found = [find_reference(name) for name in references]
    used = pl.concat([fitted.used.select("run_id", "excluded") for fitted in source.fits])
    columns = [name for name in source.frame.columns if name.startswith(EVALUATION)]
    return Evidence(source.fits, source.curves(used), found, source.frame.select("run_id", *columns))


def _write_page(
    source: Source, evidence: "Evidence", drawn: "Mapping[str, Figure | RefusalError]"
) -> tuple[Path, str | None]:
    """Write the page; that of a submitted sweep is logged on its parent run, too, where the store can be reached."""
    from analysis.report import page as pages

    decided = source.workspace.sweep(source.name).decisions() if source.plan is not None else []
    about, told = _about(source), [sentence(row) for row in decided]
    path = pages.write(source.folder / "report.html", source.title, evidence, drawn, about, told)
    if source.plan is None:
        return path, None
    return path, log_artifact(source.name, source.workspace.tracking_uri, path, source.workspace.artifacts)


def _about(source: Source) -> dict[str, str]:
    """What a page was made of and how."""
    code = provenance.code()["git_revision"]
    version = metadata.version("scaling-orchestrator") + (f" ({code[:12]})" if code else "")
    used = pl.concat([fitted.used.select("data", "tokenizer", "evaluation", "schedule") for fitted in source.fits])
    seen = {name: sorted(used[name].drop_nulls().unique()) for name in used.columns}
    about = {"source": f"{source.kind.value} {source.title}", "runs": f"{used.height} fitted"}
    about |= {name: ", ".join(values) for name, values in seen.items() if values}
    about |= {"made": time.strftime("%Y-%m-%d %H:%M %Z"), "by": f"scaling-orchestrator {version}"}
    typed = " ".join(source.names)
    again = f"scaling fit {typed}{' --pooled' if source.question.pooled else ''} && scaling report {typed}"
    about |= {"made again by": again}
    if source.plan is None:
        return about
    first = source.workspace.run(source.plan["runs"][0]["run_id"])
    if first.spec_file.exists():
        spec = first.spec()
        data = spec.physics.data
        if about.get("tokenizer") == data.tokenizer:
            about["tokenizer"] = spec.tokenizer_title
        about["data"] = f"{data.corpus} {data.revision}" + (f", prepared {about['data']}" if "data" in about else "")
    uri, artifacts = source.workspace.tracking_uri, source.workspace.artifacts
    shown = embedded.shown(source.name, uri, artifacts)
    if shown is not None:
        about["in MLflow"] = f"http://127.0.0.1:5000{charts_link(shown.experiment)}"
        about["which is served by"] = "scaling ui"
    elif uri.startswith(("http://", "https://")):
        about["in MLflow"] = masked(uri)
    return about
