"""What runs measured, as a table of families by tasks: of a submitted sweep, or of an experiment in MLflow."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import InputError
from xlstm.quantities import nearest
from xlstm.run.directory import Workspace

if TYPE_CHECKING:
    from analysis.report.table import Measured, MeasureTable
    from xlstm.run.records import Measured as Evaluated

_VALIDATION = "validation/"
_PARAMS = ("size", "seed", "task", "tokens", "steps", "context_length", "learning_rate", "weight_decay", "precision")
"""What MLflow holds of a run's coordinates, besides the fields of its task and the family."""

_WIDTH = "width"
"""The embedding dimension as an axis, in the place of the names of sizes."""


def measure_table(
    workspace: Workspace,
    source: str,
    measure: str | None,
    column: str | None,
    best_of: str | None,
    evaluation: str | None = None,
) -> "MeasureTable":
    """The table of a submitted sweep or of `mlflow:EXPERIMENT`, as far as runs have results.

    `column` is an axis of the sweep, `width`, or `length` or `position` of the tests; of an `evaluation` of a submitted
    sweep, columns are what its own table tells apart, such as contexts.

    `best_of` is the axis that was searched, where it is another than the sweep's own. InputError where there is no such
    source, or the table that is asked for cannot be made.
    """
    from analysis.report.table import build_table

    if source.startswith("mlflow:"):
        if evaluation is not None:
            raise InputError(f"--evaluation {evaluation}: it lies in the folders of runs; give the submitted sweep")
        runs = _tracked(workspace, source.removeprefix("mlflow:"), column)
    else:
        plan = _submitted(workspace, source)
        best_of = best_of or plan.get("best_of")
        if evaluation is None:
            runs = _planned(workspace, plan["runs"], column)
        else:
            runs, axis = _evaluated(workspace, plan["runs"], evaluation, column)
            measure, column = measure or "perplexity", column or axis
    try:
        return build_table(runs, measure, column, best_of)
    except ValueError as error:
        raise InputError(f"{source}: {error}") from None


def _submitted(workspace: Workspace, sweep: str) -> dict[str, Any]:
    """The plan of a sweep. InputError where it was not submitted."""
    if (plan := workspace.sweep(sweep).known_plan()) is None:
        raise InputError(f"no sweep `{sweep}` was submitted here")
    return plan


def _planned(workspace: Workspace, rows: list[dict[str, Any]], column: str | None) -> "list[Measured]":
    from analysis.report.table import Measured

    runs = []
    for planned in rows:
        run = workspace.run(planned["run_id"])
        result = run.known_result()
        measures = {} if result is None else result.validation.metrics()
        named = {name.removeprefix(_VALIDATION): value for name, value in measures.items()}
        point = _point(planned)
        if column == _WIDTH:
            point[_WIDTH] = run.spec().physics.model.embedding_dim
            del point["size"]
        runs.append(Measured(point, named | run.evaluation_metrics()))
    return runs


def latest(workspace: Workspace, rows: list[dict[str, Any]], evaluation: str) -> "dict[str, Evaluated]":
    """What the evaluation of a name measured on each run of a plan. InputError, with the names there are, for none."""
    known: dict[str, None] = {}
    found = {}
    for planned in rows:
        for one in workspace.run(planned["run_id"]).measured():
            known[one.name] = None
            if one.name == evaluation:
                found[planned["run_id"]] = one
    if not found:
        raise InputError(f"--evaluation {evaluation}: no run has it; {nearest(evaluation, known)}")
    return found


def wins(workspace: Workspace, sweep: str, evaluation: str) -> tuple[list[dict[str, Any]], str]:
    """In how many domains each run of a submitted sweep is better than each other one: documents, and a matrix.

    InputError as `latest`, and where fewer than two runs have been measured by domain.
    """
    from analysis.report.wins import count_wins, markdown

    plan = _submitted(workspace, sweep)
    losses = {
        run_id: {str(row["domain"]): float(row["loss"]) for row in one.tables["domain"] if row.get("loss") is not None}  # type: ignore[arg-type]
        for run_id, one in latest(workspace, plan["runs"], evaluation).items()
        if "domain" in one.tables
    }
    if len(losses) < 2:
        raise InputError(f"--wins: {evaluation} has measured {len(losses)} runs by domain; two are compared")
    counted = count_wins(losses)
    return [asdict(one) for one in counted], markdown(counted)


def _evaluated(
    workspace: Workspace, rows: list[dict[str, Any]], evaluation: str, column: str | None
) -> "tuple[list[Measured], str | None]":
    """Each run once for each row of one of the evaluation's tables, and that table's axis; once where it has none.

    It is the table whose axis `column` is, else the first.
    """
    from analysis.report.table import Measured

    found = latest(workspace, rows, evaluation)
    axes = [axis for one in found.values() for axis in one.tables]
    axis = column if column in axes else next(iter(axes), None)
    runs = []
    for planned in rows:
        if (one := found.get(planned["run_id"])) is None:
            continue
        told: list[tuple[dict[str, Any], Mapping[str, Any]]] = [({}, one.measures)]
        if axis is not None:
            told = [({axis: row[axis]}, row) for row in one.tables.get(axis, [])]
        for further, values in told:
            numbers = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
            runs.append(Measured(_point(planned) | further, numbers))
    return runs, axis


def _point(planned: Mapping[str, Any]) -> dict[str, Any]:
    return {name: planned[name] for name in ("model", "size", "seed")} | dict(planned.get("point") or {})


def _tracked(workspace: Workspace, experiment: str, column: str | None) -> "list[Measured]":
    """The runs of an experiment that this program tracked. InputError where there is none."""
    from analysis.data.tracking_store import read_runs
    from analysis.findings import RefusalError
    from analysis.report.table import Measured

    try:
        tracked = read_runs(experiment, workspace.tracking_uri)
    except RefusalError as refusal:
        raise InputError(str(refusal)) from None
    runs = []
    for run in tracked:
        if run.tags.get("kind") != "run":
            continue
        params = {name: value for name, value in run.params.items() if name in _PARAMS or name.startswith("task.")}
        point: dict[str, object] = {"model": run.params.get("family")}
        point |= {name.removeprefix("task."): value for name, value in params.items()}
        point.pop("name", None)  # that of the task, which stands as `task`
        if column == _WIDTH:
            point[_WIDTH] = int(run.params["model.embedding_dim"])
            point.pop("size", None)
        measures = {
            name.removeprefix(_VALIDATION): v for name, v in run.metrics.items() if name.startswith(_VALIDATION)
        }
        runs.append(Measured(point, measures))
    return runs


def write_table(table: "MeasureTable", file: Path) -> None:
    """Write a table in the format of the file's ending. InputError for any other ending."""
    texts = {".md": table.markdown, ".tex": table.latex, ".csv": table.csv}
    if file.suffix in texts:
        file.write_text(texts[file.suffix]())
    elif file.suffix in (".png", ".pdf", ".svg"):
        from analysis.report.measure_figures import draw

        draw(table, file)
    else:
        raise InputError(f"{file}: a table is written as .md, .tex, .csv, .png, .pdf or .svg")
