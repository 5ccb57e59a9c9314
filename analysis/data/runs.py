"""Runs as one polars frame, whatever they come from: a workspace's sweep, an MLflow experiment, or a table.

Columns: `run_id`, `family`, `size`, `seed`, `parameters` (N, total), `non_embedding` and `non_embedding_with_head` (N
by other conventions, where known), `tokens` (D), `flops` (C), `loss` (nats per token on the validation split),
`evaluation`, `tokenizer`, `schedule`, `data` (fingerprint of the prepared text), `context_length`, `precision`,
`cluster` (runs that share a trunk share it), `state` and `quality` (what is known of the run), and `excluded`: null, or
why the row is not to be fitted. No row is dropped silently: a fit reports those it left out.

A row is one run, told from others by a key: our run id, MLflow's own id for runs that are not ours, and in a table the
row itself. Names are no keys. Rows with the same numbers throughout are one run twice (`quality`), rows that differ in
the seed alone are repetitions, and of an axis that was searched the best value stands for the others (`selection`).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import polars as pl

from analysis.data import quality, selection, tables, tracking_store
from analysis.data.numbers import is_absent, read_number
from analysis.data.selection import SEARCHED
from analysis.data.tracking_store import TrackedRun
from analysis.findings import RefusalError
from xlstm.quantities import nearest
from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.records import Metric, Result
from xlstm.run.spec import canonical
from xlstm.run.tracking import is_child

SCHEMA = {
    "run_id": pl.String,
    "family": pl.String,
    "size": pl.String,
    "seed": pl.Int64,
    "parameters": pl.Float64,
    "non_embedding": pl.Float64,
    "non_embedding_with_head": pl.Float64,
    "tokens": pl.Float64,
    "flops": pl.Float64,
    "loss": pl.Float64,
    "bits_per_byte": pl.Float64,
    "evaluation": pl.String,
    "tokenizer": pl.String,
    "schedule": pl.String,
    "data": pl.String,
    "context_length": pl.Int64,
    "precision": pl.String,
    "cluster": pl.String,
    "state": pl.String,
    "quality": pl.String,
    "excluded": pl.String,
}
NUMBERS = ("parameters", "tokens", "flops", "loss")
"""What a law is fitted to: a row whose cell of one of these is no number is left out, with the cell."""
MEASURES = ("loss", "bits_per_byte")
"""Numbers that are no counts: a comma in one may be a decimal comma."""
EXTRA = {"unique_tokens": pl.Float64, "weight": pl.Float64}
"""Columns that a table may have beside those of `SCHEMA`, for the forms and the fits that need them."""
CURVES = {"run_id": pl.String, "tokens": pl.Float64, "loss": pl.Float64}
MLFLOW_COLUMNS = {
    "run_id": "tags.run_id",
    "family": "params.family",
    "size": "params.size",
    "seed": "params.seed",
    "parameters": "params.parameters.total",
    "non_embedding": "params.parameters.non_embedding",
    "non_embedding_with_head": "params.parameters.non_embedding_with_head",
    "tokens": "params.tokens",
    "flops": "params.flops.exact",
    "loss": f"metrics.{Metric.VALIDATION_LOSS}",
    "bits_per_byte": f"metrics.{Metric.VALIDATION_BITS_PER_BYTE}",
    "evaluation": "params.evaluation",
    "tokenizer": "params.tokenizer",
    "schedule": "params.schedule",
    "data": "params.data_fingerprint",
    "context_length": "params.context_length",
    "precision": "params.precision",
    "cluster": "tags.trunk_id",
    "state": "tags.state",
    "quality": "tags.quality",
}
"""Where tracking puts each column. Experiments of others are read by naming theirs, such as `params.n_params`."""


class Kind(StrEnum):
    """What a source's name stands for."""

    SWEEP = "sweep"
    TABLE = "table"
    EXPERIMENT = "experiment"

    @classmethod
    def of(cls, source: str) -> "Kind":
        """`mlflow:EXPERIMENT`, a file that ends as a table does, else the name of a sweep."""
        if source.startswith("mlflow:"):
            return cls.EXPERIMENT
        return cls.TABLE if tables.format_of(source) else cls.SWEEP


@dataclass(frozen=True)
class Reading:
    """How the columns of a source that is not ours are read."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """Our names to the source's own, such as `{"parameters": "Model Size"}`, or `{"parameters": "params.n"}`."""
    decimal_comma: bool = False
    """Whether 3,857 is 3.857."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.columns) - set(SCHEMA | EXTRA))
        if unknown:
            raise RefusalError("unknown-column", f"{unknown[0]!r} is none of ours; known are: {', '.join(SCHEMA)}")

    def theirs(self, ours: str) -> str:
        """What a table calls a column of ours."""
        return self.columns.get(ours, ours)

    def number(self, ours: str, cell: object, *, grouped: bool = True) -> float | None:
        """The number in a cell of a column of ours; None for an empty cell. ValueError for what is no number."""
        count = ours not in MEASURES
        return read_number(cell, count=count, decimal_comma=self.decimal_comma, grouped=grouped)


@dataclass(frozen=True)
class Rows:
    """The rows of a source, judged, and what is to be said of them."""

    frame: pl.DataFrame
    notes: list[str]
    at_edge: frozenset[str] = frozenset()
    """Runs whose best value of a searched axis is the last of those tried."""


def load(
    source: str,
    *,
    columns: Mapping[str, str] | None = None,
    workspace: Workspace | None = None,
    rules: quality.Rules | None = None,
) -> pl.DataFrame:
    """Load runs from a sweep's name, `mlflow:EXPERIMENT`, or a table; `read` with its defaults.

    `columns` maps our names to a file's own, such as `{"parameters": "Model Size"}`, or to an experiment's, such as
    `{"parameters": "params.n"}`; with two of parameters, tokens and flops given, the third follows from C = 6ND.
    `rules` decide which rows are excluded. RefusalError says what is missing.
    """
    return read(source, Reading(columns or {}), workspace=workspace, rules=rules).frame


def read(
    source: str,
    reading: Reading | None = None,
    *,
    workspace: Workspace | None = None,
    rules: quality.Rules | None = None,
    best_of: Sequence[str] = (),
) -> Rows:
    """Load and judge the runs of a source, and have the best value of each searched axis stand for the others.

    `best_of` names the axes: of a sweep its own, of a table its columns, of an experiment such as `params.lr`. Left
    out, they are what the plan of the sweep says, and none where there is no plan. RefusalError says what is missing.
    """
    reading, workspace, kind = reading or Reading(), workspace or Workspace.default(), Kind.of(source)
    name = source.removeprefix("mlflow:")
    plan = None if kind is Kind.TABLE else _plan(workspace, name)
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
    chosen = selection.best_of(quality.judge(frame, rules), axes)
    return Rows(chosen.frame, chosen.edges, chosen.at_edge)


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
    rows = []
    for planned in directory.plan()["runs"]:
        run = workspace.run(planned["run_id"])
        result = run.known_result()
        if result is not None:
            rows.append(_row(run, result))
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
    return pl.DataFrame(rows, schema=SCHEMA)


def from_table(path: Path, reading: Reading | None = None, searched: Sequence[str] = ()) -> pl.DataFrame:
    """One row per row of a table, the columns `searched` beside ours. Only the columns that are named are parsed."""
    reading = reading or Reading()
    known = SCHEMA | EXTRA
    table = tables.read(path, {*map(reading.theirs, known), *searched})
    for ours, theirs in (*reading.columns.items(), *(("--best-of", axis) for axis in searched)):
        if theirs not in table.cells:
            listed = ", ".join(table.names[:40]) + (", …" if len(table.names) > 40 else "")
            raise RefusalError("missing-column", f"{path}: no column {theirs!r} for {ours}; there are: {listed}")
    cells = {ours: table.cells[reading.theirs(ours)] for ours in known if reading.theirs(ours) in table.cells}
    if "loss" not in cells:
        raise RefusalError("missing-column", f"{path}: no column for loss; name it with --columns loss=…")
    columns: dict[str, pl.Series] = {}
    reasons: list[str | None] = [None] * table.height
    for ours, values in cells.items():
        if known[ours] == pl.Int64:
            columns[ours] = _whole_numbers(ours, values)
        elif known[ours] == pl.String:
            columns[ours] = pl.Series(ours, [_words(cell) for cell in values], pl.String)
        else:
            columns[ours] = _numbers(ours, values, reading, reasons, grouped=table.commas_group)
    columns["run_id"] = pl.Series("run_id", _row_keys(columns.get("run_id"), table.height), pl.String)
    if "state" in columns:
        done = columns["state"].str.to_uppercase().is_in(["FINISHED", "COMPLETED"])
        columns["state"] = pl.Series(
            "state",
            ["COMPLETED" if one else other for one, other in zip(done, columns["state"], strict=True)],
            pl.String,
        )
    given = columns.get("excluded", pl.Series("excluded", [None] * table.height, pl.String))
    columns["excluded"] = pl.Series(
        "excluded", [_stated(one) or reason for one, reason in zip(given, reasons, strict=True)], pl.String
    )
    for axis in searched:
        columns[SEARCHED + axis] = _axis(axis, table.cells[axis], reading)
    return _completed(pl.DataFrame(columns), str(path))


def from_mlflow(
    experiment: str,
    tracking_uri: str,
    columns: Mapping[str, str] | Reading | None = None,
    *,
    workspace: Workspace | None = None,
    searched: Sequence[str] = (),
) -> pl.DataFrame:
    """One row per run of an MLflow experiment; of ours, the child runs.

    `columns` maps our names to `params.NAME`, `metrics.NAME` or `tags.NAME` where they differ from `MLFLOW_COLUMNS`.
    Where `workspace` has submitted a sweep of this name, its plan says which runs are of it, in which order; others
    are excluded.
    """
    reading = columns if isinstance(columns, Reading) else Reading(columns or {})
    places = MLFLOW_COLUMNS | dict(reading.columns)
    misplaced = [
        place for place in (*places.values(), *searched) if place.partition(".")[0] not in ("params", "metrics", "tags")
    ]
    if misplaced:
        raise RefusalError(
            "unknown-column", f"{misplaced[0]!r}: of an experiment, name params.NAME, metrics.NAME or tags.NAME"
        )
    children = _children(experiment, tracking_uri, workspace)
    tracked = [child.run for child in children]
    reasons = [child.excluded for child in children]
    cells = {ours: [run.value(place) for run in tracked] for ours, place in places.items()}
    for name, place in (
        *((name, places[name]) for name in ("loss", *reading.columns)),
        *(("--best-of", a) for a in searched),
    ):
        if tracked and not any(run.value(place) is not None for run in tracked):
            kind = place.partition(".")[0]
            present = sorted({f"{kind}.{key}" for run in tracked for key in getattr(run, kind)})
            raise RefusalError(
                "missing-column",
                f"{experiment}: no run has {place} for {name}; {kind} are: {', '.join(present) or 'none'}",
            )
    named = "run_id" in reading.columns
    keys = _unique(cells["run_id"], [run.run for run in tracked]) if named else [child.key for child in children]
    texts = cells | {
        "run_id": keys,
        "cluster": [cluster or key for cluster, key in zip(cells["cluster"], keys, strict=True)],
        "state": [
            state or ("COMPLETED" if run.status == "FINISHED" else run.status)
            for state, run in zip(cells["state"], tracked, strict=True)
        ],
        "quality": [(found or "").replace(",", ", ") for found in cells["quality"]],
    }
    frame = pl.DataFrame(
        {
            ours: _whole_numbers(ours, texts[ours])
            if (SCHEMA | EXTRA)[ours] == pl.Int64
            else pl.Series(ours, [_words(cell) for cell in texts[ours]], pl.String)
            if (SCHEMA | EXTRA)[ours] == pl.String
            else _numbers(ours, texts[ours], reading, reasons)
            for ours in places
        }
        | {SEARCHED + axis: _axis(axis, [run.value(axis) for run in tracked], reading) for axis in searched}
    )
    frame = frame.with_columns(pl.Series("excluded", reasons, pl.String))
    empty = [name for name in ("parameters", "tokens", "flops") if frame[name].is_null().all()]
    return _completed(frame.drop(empty) if len(empty) == 1 else frame, experiment)


def curves_from_mlflow(experiment: str, tracking_uri: str, workspace: Workspace | None = None) -> pl.DataFrame:
    """Every validation of an experiment's runs: columns run_id, tokens, loss. Tokens follow from the step."""
    history = tracking_store.read_history(experiment, tracking_uri, Metric.VALIDATION_LOSS)
    known = {
        child.key: (child.run.run, child.key, _number_or_none(child.run.params.get("batch_tokens")))
        for child in reversed(_children(experiment, tracking_uri, workspace))
        if child.excluded is None
    }
    schema = {"run": pl.String, "run_id": pl.String, "batch_tokens": pl.Float64}
    runs = pl.DataFrame(list(known.values()), schema=schema, orient="row")
    joined = history.join(runs, on="run", how="inner", maintain_order="left")
    return joined.select("run_id", tokens=pl.col("step") * pl.col("batch_tokens"), loss="value").drop_nulls()


@dataclass(frozen=True)
class _Child:
    """A run of an experiment that is no parent: its key, and why it is not of the sweep that was asked for."""

    run: TrackedRun
    key: str
    excluded: str | None = None


def _children(experiment: str, tracking_uri: str, workspace: Workspace | None) -> list[_Child]:
    """The runs of an experiment: those of the workspace's plan first, in its order, where it has one."""
    tracked = [run for run in tracking_store.read_runs(experiment, tracking_uri) if run.tags.get("kind") != "sweep"]
    ours = [run.tags.get("run_id") if run.tags.get("kind") == "run" else None for run in tracked]
    others = _unique([run.tags.get("run_id") for run in tracked], [run.run for run in tracked])
    keys = [own or other for own, other in zip(ours, others, strict=True)]
    plan = _plan(workspace, experiment) if workspace is not None else None
    if workspace is None or plan is None:
        return list(map(_Child, tracked, keys))
    place = {run["run_id"]: index for index, run in enumerate(plan["runs"])}
    here = [is_child(run.tags, workspace.run(key), tracking_uri) for run, key in zip(tracked, keys, strict=True)]
    children = []
    for run, key, is_here in zip(tracked, keys, here, strict=True):
        reason = None
        if any(here) and not is_here:
            # Where none is, the workspace was moved, and what it tracked stands under its old place.
            reason = f"of another workspace ({run.tags.get('directory', 'not stated')})"
        elif key not in place:
            reason = f"not of the sweep {experiment} as it was last submitted"
        children.append(_Child(run, key, reason))
    return sorted(children, key=lambda child: place.get(child.key, len(place)))


def _plan(workspace: Workspace, sweep: str) -> dict[str, Any] | None:
    directory = workspace.sweep(sweep)
    return directory.plan() if directory.plan_file.is_file() else None


def _is_axis(plan: Mapping[str, Any], axis: str) -> bool:
    return any(axis in run["point"] for run in plan["runs"])


def _with_points(frame: pl.DataFrame, plan: Mapping[str, Any], axes: Sequence[str]) -> pl.DataFrame:
    """The frame with the value of each searched axis, and with what runs that differ in these alone agree in."""
    if not axes:
        return frame
    points = {run["run_id"]: run["point"] for run in plan["runs"]}
    found = [points.get(run_id, {}) for run_id in frame["run_id"]]
    others = [canonical({name: value for name, value in point.items() if name not in axes}) for point in found]
    values = [_axis(axis, [point.get(axis) for point in found], Reading()) for axis in axes]
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
        "cluster": result.trunk_id or result.run_id,
        "state": "COMPLETED",
        "quality": ", ".join(result.quality),
    }


def _completed(frame: pl.DataFrame, source: str) -> pl.DataFrame:
    """The frame with every column of `SCHEMA`: of parameters, tokens and flops, one that is absent follows by 6ND."""
    n, d, c = (pl.col(name) for name in ("parameters", "tokens", "flops"))
    thirds = {"parameters": c / (6 * d), "tokens": c / (6 * n), "flops": 6 * n * d}
    missing = [name for name in thirds if name not in frame.columns]
    if len(missing) > 1:
        raise RefusalError(
            "missing-column", f"{source}: two of parameters, tokens and flops are needed; no column for {missing}"
        )
    frame = frame.with_columns(pl.lit(None, dtype=pl.Float64).alias(name) for name in missing)
    # A cell that is no number has its reason already; one that is empty follows from the other two.
    frame = frame.with_columns(pl.coalesce(name, third).alias(name) for name, third in thirds.items())
    kinds = SCHEMA | {name: kind for name, kind in EXTRA.items() if name in frame.columns}
    absent = [pl.lit(None, dtype=kind).alias(name) for name, kind in kinds.items() if name not in frame.columns]
    frame = frame.with_columns(*absent).with_columns(pl.col("family").fill_null("all"))
    helpers = [name for name in frame.columns if name.startswith(SEARCHED)]
    return frame.select(*(pl.col(name).cast(kind) for name, kind in kinds.items()), *helpers)


def _numbers(
    ours: str, cells: Iterable[object], reading: Reading, reasons: list[str | None], *, grouped: bool = True
) -> pl.Series:
    """A column of numbers, null where a cell is none; in a column that a law is fitted to, `reasons` then say so."""
    numbers: list[float | None] = []
    for row, cell in enumerate(cells):
        try:
            numbers.append(reading.number(ours, cell, grouped=grouped))
        except ValueError:
            numbers.append(None)
            if ours in NUMBERS and reasons[row] is None:
                comma = not reading.decimal_comma and isinstance(cell, str) and "," in cell
                hint = "; if its comma is a decimal comma, say --decimal-comma" if comma else ""
                reasons[row] = f"{ours} is no number ({str(_words(cell))[:40]!r}{hint})"
    return pl.Series(ours, numbers, pl.Float64)


def _number_or_none(cell: object) -> float | None:
    try:
        return read_number(cell, count=True)
    except ValueError:
        return None


def _whole_numbers(ours: str, cells: Sequence[object]) -> pl.Series:
    """Seeds or context lengths; where one is none, distinct texts are numbered: only which are equal matters."""
    words = [_words(cell) for cell in cells]
    numbers = [_whole(word) for word in words]
    if any(word is not None and number is None for word, number in zip(words, numbers, strict=True)):
        order = {word: index for index, word in enumerate(dict.fromkeys(words))}
        numbers = [None if word is None else order[word] for word in words]
    return pl.Series(ours, numbers, pl.Int64)


def _whole(word: str | None) -> int | None:
    if word is not None and word.isdecimal() and len(word) < 19:
        return int(word)
    number = _number_or_none(word)
    return int(number) if number is not None and number.is_integer() and abs(number) < 2**53 else None


def _axis(axis: str, cells: Sequence[object], reading: Reading) -> pl.Series:
    """The values of a searched axis: numbers where all of them are, else texts."""
    name = SEARCHED + axis
    try:
        numbers = [read_number(cell, count=True, decimal_comma=reading.decimal_comma) for cell in cells]
    except ValueError:
        return pl.Series(name, [_words(cell) for cell in cells], pl.String)
    return pl.Series(name, numbers, pl.Float64)


def _words(cell: object) -> str | None:
    """A cell as text, which can be written as UTF-8; None for an empty one."""
    if cell is None or cell == "":
        return None
    text = cell.decode("latin-1") if isinstance(cell, bytes) else str(cell)
    return text.encode("utf-8", "replace").decode()


def _stated(reason: str | None) -> str | None:
    """A table's own reason for leaving a row out; some only say that they do."""
    word = (reason or "").strip().lower()
    if is_absent(word) or word in ("false", "no", "0", "0.0"):
        return None
    return "excluded in the table" if word in ("true", "yes", "1", "1.0") else reason


def _row_keys(names: pl.Series | None, height: int) -> list[str]:
    """A key for each row of a table: its name where no other row has it, else with the row's number."""
    return _unique(
        [None] * height if names is None else names.to_list(),
        [f"row {row}" for row in range(height)],
        named=[str(row) for row in range(height)],
    )


def _unique(names: Sequence[object], keys: Sequence[str], named: Sequence[str] | None = None) -> list[str]:
    """Each name that is there once; another with its key in brackets, and the key where there is no name.

    `named` are the keys as they stand alone.
    """
    words = [_words(name) for name in names]
    times = Counter(words)
    alone = keys if named is None else named
    found = [
        own if word is None else word if times[word] == 1 else f"{word} ({key})"
        for word, key, own in zip(words, keys, alone, strict=True)
    ]
    return found if len(set(found)) == len(found) else list(alone)
