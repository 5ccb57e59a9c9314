"""What the runs of a submitted sweep measured, as a table of families by tasks."""

from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import InputError
from xlstm.run.directory import Workspace

if TYPE_CHECKING:
    from analysis.report.table import MeasureTable


def measure_table(workspace: Workspace, sweep: str, measure: str | None, column: str | None) -> "MeasureTable":
    """The table of a submitted sweep, as far as its runs have results.

    InputError where there is no such sweep, or the table that is asked for cannot be made.
    """
    from analysis.report.table import Measured, build_table

    plan = workspace.sweep(sweep).known_plan()
    if plan is None:
        raise InputError(f"no sweep `{sweep}` was submitted here")
    runs = []
    for planned in plan["runs"]:
        result = workspace.run(planned["run_id"]).known_result()
        metrics = result.validation.metrics() if result else {}
        measures = {name.removeprefix("validation/"): value for name, value in metrics.items()}
        point = {name: planned[name] for name in ("model", "size", "seed")} | planned.get("point", {})
        runs.append(Measured(point, measures))
    try:
        return build_table(runs, measure, column, plan.get("best_of"))
    except ValueError as error:
        raise InputError(f"{sweep}: {error}") from None


def write_table(table: "MeasureTable", file: Path) -> None:
    """Write a table in the format of the file's ending. InputError for any other ending."""
    texts = {".md": table.markdown, ".tex": table.latex, ".csv": table.csv}
    if file.suffix in texts:
        file.write_text(texts[file.suffix]())
    elif file.suffix in (".png", ".pdf", ".svg"):
        table.draw(file)
    else:
        raise InputError(f"{file}: a table is written as .md, .tex, .csv, .png, .pdf or .svg")
