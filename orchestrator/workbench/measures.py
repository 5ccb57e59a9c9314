"""What runs measured, as a table of families by tasks: of a submitted sweep, or of an experiment in MLflow."""

from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import InputError
from xlstm.run.directory import Workspace

if TYPE_CHECKING:
    from analysis.report.table import Measured, MeasureTable

_VALIDATION = "validation/"
_PARAMS = ("size", "seed", "task", "tokens", "steps", "context_length", "learning_rate", "weight_decay", "precision")
"""What MLflow holds of a run's coordinates, besides the fields of its task and the family."""

_WIDTH = "width"
"""The embedding dimension as an axis, in the place of the names of sizes."""


def measure_table(
    workspace: Workspace, source: str, measure: str | None, column: str | None, best_of: str | None
) -> "MeasureTable":
    """The table of a submitted sweep or of `mlflow:EXPERIMENT`, as far as runs have results.

    `column` is an axis of the sweep, `width`, or `length` or `position` of the tests.

    `best_of` is the axis that was searched, where it is another than the sweep's own. InputError where there is no such
    source, or the table that is asked for cannot be made.
    """
    from analysis.report.table import build_table

    if source.startswith("mlflow:"):
        runs = _tracked(workspace, source.removeprefix("mlflow:"), column)
    else:
        plan = workspace.sweep(source).known_plan()
        if plan is None:
            raise InputError(f"no sweep `{source}` was submitted here")
        runs, best_of = _planned(workspace, plan["runs"], column), best_of or plan.get("best_of")
    try:
        return build_table(runs, measure, column, best_of)
    except ValueError as error:
        raise InputError(f"{source}: {error}") from None


def _planned(workspace: Workspace, rows: list[dict[str, object]], column: str | None) -> "list[Measured]":
    from analysis.report.table import Measured

    runs = []
    for planned in rows:
        run = workspace.run(str(planned["run_id"]))
        result = run.known_result()
        measures = {} if result is None else result.validation.metrics()
        point = {name: planned[name] for name in ("model", "size", "seed")} | dict(planned.get("point") or {})  # type: ignore[call-overload]
        if column == _WIDTH:
            point[_WIDTH] = run.spec().physics.model.embedding_dim
            del point["size"]
        runs.append(Measured(point, {name.removeprefix(_VALIDATION): value for name, value in measures.items()}))
    return runs


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
        point: dict[str, object] = {
            "model": run.params.get("family"),
            **{name.removeprefix("task."): params[name] for name in params},
        }
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
