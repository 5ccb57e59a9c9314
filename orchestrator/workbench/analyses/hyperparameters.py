"""Laws of the best learning rate or batch, of a sweep that searched it or of a table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from analysis.data import quality, runs
from analysis.data.columns import Reading
from analysis.data.runs import Kind
from analysis.decisions import hyperparameters
from orchestrator.errors import InputError
from orchestrator.workbench.analyses.laws import open_source, refusals_in_a_line
from xlstm.run.rates.law import RateLaws
from xlstm.run.records import write_json

AXES = ("learning_rate", "batch_tokens")


@refusals_in_a_line()
def fit(
    typed: str, columns: Mapping[str, str], axis: str, targets: list[tuple[float, float]]
) -> tuple[list[dict[str, Any]], Path]:
    """A document for each family, with the best value at each target (N, D); and the figure that was written.

    InputError where the source is no sweep or table, or does not hold the axis.
    """
    from analysis.report import hyperparameter_plots, plots

    source = open_source((typed,), {})
    if source.kind is Kind.TABLE:
        frame = runs.from_table(Path(source.name), Reading(columns, further=(axis,)))
        if axis not in frame.columns:
            raise InputError(f"{typed}: no column for {axis}; name it with --columns {axis}=…")
    elif source.kind is Kind.SWEEP:
        frame = runs.from_workspace(source.workspace, source.name)
        if axis not in AXES:
            raise InputError(f"--axis {axis}: of a sweep, {' or '.join(AXES)}")
        physics = [source.workspace.run(run_id).spec().physics for run_id in frame["run_id"]]
        values = [one.batch_tokens if axis == "batch_tokens" else one.optimizer.learning_rate for one in physics]
        frame = frame.with_columns(pl.Series(axis, values, pl.Float64))
    else:
        raise InputError(f"{typed}: hyperparameters are read from a submitted sweep or a table")
    laws = hyperparameters.fit(quality.judge(frame), axis)
    figure_stem = source.folder / f"best-{axis}"
    with plots.style():
        figure = hyperparameter_plots.cells_figure(laws)
        (path,) = plots.save(figure, figure_stem, ("png",))
    kept = RateLaws(laws=tuple(law.kept for law in laws))
    write_json(figure_stem.with_suffix(".json"), kept.model_dump(mode="json"))
    documents = []
    for law in laws:
        predicted = [(n, d, *law.predict(n, d), list(law.predict_cell(n, d))) for n, d in targets]
        names = ("parameters", "tokens", "best", "low", "high", "new_cell_interval")
        documents.append(law.to_json() | {"predictions": [dict(zip(names, one, strict=True)) for one in predicted]})
    return documents, path
