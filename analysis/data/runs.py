"""Runs as one polars frame, whatever they come from: a workspace's sweep, an MLflow experiment, or a table.

Columns: `run_id`, `family`, `size`, `seed`, `parameters` (N, total), `non_embedding` and `non_embedding_with_head` (N
by other conventions, where known), `tokens` (D), `flops` (C), `loss` (nats per token on the validation split),
`evaluation`, `tokenizer`, `schedule`, `data` (fingerprint of the prepared text), `context_length`, `precision`,
`computed_on` (device and kernels), `cluster` (runs that share a trunk share it), `state` and `quality` (what is known
of the run), and `excluded`: null, or why the row is not to be fitted. Of a sweep also `evaluation/<name>/…`, what
further evaluations measured. No row is dropped silently: a fit reports those it left out.

A row is one run, told from others by a key: our run id, MLflow's own id for runs that are not ours, and in a table the
row itself. Names are no keys. Rows with the same numbers throughout are one run twice (`quality`), rows that differ in
the seed alone are repetitions, and of an axis that was searched the best value stands for the others (`selection`).
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from analysis.data import quality, selection, tables
from analysis.data.columns import (
    EXTRA,
    SCHEMA,
    Reading,
    axis_values,
    column_of,
    completed,
    numbers_or_texts,
    unique_keys,
)
from analysis.data.experiments import curves_from_mlflow, from_mlflow
from analysis.data.numbers import ABSENT
from analysis.data.selection import SEARCHED, Rows
from analysis.findings import RefusalError
from xlstm.quantities import nearest
from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.identity import canonical
from xlstm.run.records import Metric, Result

EVALUATION = "evaluation/"
"""Begins the columns of what further evaluations measured: `evaluation/<name>/<measure>`, where there are any."""
CURVES = {"run_id": pl.String, "tokens": pl.Float64, "loss": pl.Float64}


class Kind(StrEnum):
    """What a source's name stands for."""

    SWEEP = "sweep"
    TABLE = "table"
    EXPERIMENT = "experiment"
    SEVERAL = "sources"

    @classmethod
    def of(cls, source: str) -> "Kind":
        """`mlflow:EXPERIMENT`, a file that ends as a table does, else the name of a sweep."""
        if source.startswith("mlflow:"):
            return cls.EXPERIMENT
        return cls.TABLE if tables.format_of(source) else cls.SWEEP


def load(
    source: str,
    *,
    columns: Mapping[str, str] | None = None,
    workspace: Workspace | None = None,
    rules: quality.Rules = quality.Rules(),
) -> pl.DataFrame:
    """Load runs from a sweep's name, `mlflow:EXPERIMENT`, or a table; `read` with its defaults.

    `columns` maps our names to a file's own, such as `{"parameters": "Model Size"}`, or to an experiment's, such as
    `{"parameters": "params.n"}`; with two of parameters, tokens and flops given, the third follows from C = 6ND. All
    other columns of a table are kept under their own names (up to `tables.MOST_CELLS`), of an experiment those named.
    `rules` decide which rows are excluded. RefusalError says what is missing.
    """
    return read(source, Reading(columns or {}, whole=True), workspace=workspace, rules=rules).frame


def read(
    source: str,
    reading: Reading | None = None,
    *,
    workspace: Workspace | None = None,
    rules: quality.Rules = quality.Rules(),
    best_of: Sequence[str] = (),
) -> Rows:
    """Load and judge the runs of a source, and have the best value of each searched axis stand for the others.

    `best_of` names the axes: of a sweep its own, of a table its columns, of an experiment such as `params.lr`. Left
    out, they are what the plan of the sweep says, and none where there is no plan. RefusalError says what is missing.
    """
    reading, workspace, kind = reading or Reading(), workspace or Workspace.default(), Kind.of(source)
    name = source.removeprefix("mlflow:")
    plan = None if kind is Kind.TABLE else workspace.sweep(name).known_plan()
    planned = bool(plan and plan.get("best_of"))
    axes = tuple(best_of) or ((plan["best_of"],) if plan and planned else ())
    if kind is Kind.TABLE:
        frame = from_table(Path(source), reading, axes)
    elif kind is Kind.EXPERIMENT:
        of_plan = plan is not None and all(_is_axis(plan, axis) for axis in axes)
        given = () if of_plan else axes
        frame = from_mlflow(name, workspace.tracking_uri, reading, workspace=workspace, searched=given)
        frame = _with_points(frame, plan, axes) if plan and of_plan else frame
    else:
        frame = from_workspace(workspace, name)
        for axis in axes:
            if plan and not _is_axis(plan, axis):
                known = sorted({key for run in plan["runs"] for key in run["point"]})
                raise RefusalError("missing-column", f"{name}: no axis {axis!r} in the plan; {nearest(axis, known)}")
        frame = _with_points(frame, plan, axes) if plan else frame
    described = {*SCHEMA, *EXTRA, *reading.further, selection.POINT}
    described |= {name for name in frame.columns if name.startswith(EVALUATION)}
    return selection.best_of(quality.judge(frame, rules), axes, described=described)


def load_curves(source: str, frame: pl.DataFrame, *, workspace: Workspace | None = None) -> pl.DataFrame:
    """Every validation during training of the usable runs in `frame`: columns run_id, tokens, loss.

    Empty for a table, which has no curves.
    """
    workspace = workspace or Workspace.default()
    usable = frame.filter(pl.col("excluded").is_null())
    if Kind.of(source) is Kind.EXPERIMENT:
        curves = curves_from_mlflow(source.removeprefix("mlflow:"), workspace.tracking_uri, workspace)
        return curves.join(usable.select("run_id"), on="run_id", how="semi")
    rows = [
        {"run_id": run_id, "tokens": row.get(Metric.TOKENS), "loss": row[Metric.VALIDATION_LOSS]}
        for run_id in usable["run_id"]
        if Kind.of(source) is Kind.SWEEP and workspace.run(run_id).metrics_file.exists()
        for row in workspace.run(run_id).metrics()
        if Metric.VALIDATION_LOSS in row
    ]
    return pl.DataFrame(rows, schema=CURVES).drop_nulls()


def from_workspace(workspace: Workspace, sweep: str) -> pl.DataFrame:
    """One row per run of a sweep, read from the run directories; unfinished runs carry their state."""
    directory = workspace.sweep(sweep)
    if not directory.plan_file.exists():
        known = sorted(folder.name for folder in workspace.sweeps.glob("*/")) if workspace.sweeps.exists() else []
        if Path(sweep).is_file():
            raise RefusalError("unknown-format", f"{sweep}: tables are read as {tables.known_formats()}")
        listed = ", ".join(known) or "none"
        raise RefusalError("no-such-sweep", f"no sweep {sweep!r} in {workspace.root}; there are: {listed}")
    rows: list[dict[str, object]] = []
    for planned in directory.plan()["runs"]:
        run = workspace.run(planned["run_id"])
        result = run.known_result()
        if result is not None:
            rows.append(_row(run, result) | run.evaluation_metrics())
            continue
        damage = run.noticed.get(run.result_file)
        status = run.status()
        rows.append(
            {
                "run_id": run.run_id,
                "family": planned["model"],
                "size": planned["size"],
                "seed": planned["seed"],
                "parameters": planned["parameters"]["total"],
                "tokens": planned["tokens"],
                "state": f"{status.state}: {status.reason}" if status.reason else str(status.state),
                "excluded": f"damaged ({damage})" if damage else None,
            }
        )
    measured = dict.fromkeys((name for row in rows for name in row if name.startswith(EVALUATION)), pl.Float64)
    return pl.DataFrame(rows, schema=SCHEMA | measured)


def from_table(path: Path, reading: Reading, searched: Sequence[str] = ()) -> pl.DataFrame:
    """One row per row of a table, the columns `searched` beside ours.

    Only the columns that are named are parsed, unless the reading is of the whole table.
    """
    known = reading.kinds
    table = tables.read(path, {*map(reading.theirs, known), *searched})
    for ours, theirs in (*reading.columns.items(), *(("--best-of", axis) for axis in searched)):
        if theirs not in table.cells:
            raise RefusalError("missing-column", f"{path}: no column {theirs!r} for {ours}; there are: {table.listed}")
    cells = {ours: table.cells[reading.theirs(ours)] for ours in known if reading.theirs(ours) in table.cells}
    if "loss" not in cells:
        named = f"name it with --columns loss=…; there are: {table.listed}"
        raise RefusalError("missing-column", f"{path}: no column for loss; {named}")
    reasons: list[str | None] = [None] * table.height
    columns = {
        ours: column_of(ours, values, reading, reasons, grouped=table.commas_group, lines=table.lines)
        for ours, values in cells.items()
    }
    names = columns["run_id"].to_list() if "run_id" in columns else [None] * table.height
    rows = [str(row) for row in range(table.height)]
    columns["run_id"] = pl.Series("run_id", unique_keys(names, [f"row {row}" for row in rows], named=rows), pl.String)
    if "state" in columns:
        done = columns["state"].str.to_uppercase().is_in(["FINISHED", "COMPLETED"])
        columns["state"] = columns["state"].set(done, "COMPLETED")
    given = columns.get("excluded", pl.Series("excluded", [None] * table.height, pl.String))
    columns["excluded"] = pl.Series(
        "excluded", [_stated(one) or reason for one, reason in zip(given, reasons, strict=True)], pl.String
    )
    for axis in searched:
        columns[SEARCHED + axis] = axis_values(axis, table.cells[axis], reading)
    if reading.whole:
        taken = {*map(reading.theirs, known), *known}
        others = tables.others(path, [name for name in table.names if name not in taken])
        columns |= {
            name: numbers_or_texts(name, found, partial(reading.number, name)) for name, found in others.items()
        }
    return completed(pl.DataFrame(columns), str(path), table.listed)


def _is_axis(plan: Mapping[str, Any], axis: str) -> bool:
    return any(axis in run["point"] for run in plan["runs"])


def _with_points(frame: pl.DataFrame, plan: Mapping[str, Any], axes: Sequence[str]) -> pl.DataFrame:
    """The frame with the value of each searched axis, and with what runs that differ in these alone agree in."""
    if not axes:
        return frame
    points = {run["run_id"]: run["point"] for run in plan["runs"]}
    found = [points.get(run_id, {}) for run_id in frame["run_id"]]
    others = [canonical({name: value for name, value in point.items() if name not in axes}) for point in found]
    values = [axis_values(axis, [point.get(axis) for point in found], Reading()) for axis in axes]
    return frame.with_columns(pl.Series(selection.POINT, others, pl.String), *values)


def _row(run: RunDirectory, result: Result) -> dict[str, object]:
    context_length, precision = result.context_length, result.precision
    if context_length is None and run.spec_file.exists():  # a result of an earlier version
        physics = run.spec().physics
        context_length, precision = physics.data.context_length, physics.precision
    return {
        "run_id": result.run_id,
        "family": result.family,
        "size": result.size,
        "seed": result.seed,
        "parameters": result.parameters.total,
        "non_embedding": result.parameters.non_embedding,
        "non_embedding_with_head": result.parameters.non_embedding_with_head,
        "tokens": result.tokens,
        "flops": result.flops.get("exact", 6.0 * result.parameters.total * result.tokens),
        "loss": result.validation.loss,
        "bits_per_byte": result.validation.bits_per_byte,
        "evaluation": result.validation.evaluation,
        "tokenizer": result.tokenizer,
        "schedule": result.schedule,
        "data": result.data_fingerprint,
        "context_length": context_length,
        "precision": precision,
        "computed_on": result.computed_on,
        "cluster": result.trunk_id or result.run_id,
        "state": "COMPLETED",
        "quality": ", ".join(result.quality),
    }


def _stated(reason: str | None) -> str | None:
    """A table's own reason for leaving a row out; some only say that they do."""
    word = (reason or "").strip().lower()
    if word in ABSENT | {"false", "no", "0", "0.0"}:
        return None
    return "excluded in the table" if word in ("true", "yes", "1", "1.0") else reason
