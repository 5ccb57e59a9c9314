"""Runs as one polars frame, whatever they come from: a workspace's sweep, an MLflow experiment, or a table.

Columns: `run_id`, `family`, `size`, `seed`, `parameters` (N, total), `non_embedding` and `non_embedding_with_head` (N
by other conventions, where known), `tokens` (D), `flops` (C), `loss` (nats per token on the validation split),
`evaluation`, `tokenizer`, `schedule`, `cluster` (runs that share a trunk share it), `state` and `quality` (what is
known of the run), and `excluded`: null, or why the row is not to be fitted. No row is dropped silently: a fit reports
those it left out.
"""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

import polars as pl

from analysis import quality, tracking_store
from analysis.findings import RefusalError
from xlstm.run.directory import Workspace
from xlstm.run.records import Metric, Result

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
    "cluster": pl.String,
    "state": pl.String,
    "quality": pl.String,
    "excluded": pl.String,
}
NUMBERS = ("parameters", "tokens", "flops", "loss")
EXTRA = {"unique_tokens": pl.Float64}
"""Columns that a table may have beside those of `SCHEMA`, for the forms that need them."""
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
        """`mlflow:EXPERIMENT`, a CSV or Parquet file, else the name of a sweep."""
        if source.startswith("mlflow:"):
            return cls.EXPERIMENT
        return cls.TABLE if Path(source).suffix.lower() in (".csv", ".parquet") else cls.SWEEP


def load(
    source: str,
    *,
    columns: Mapping[str, str] | None = None,
    workspace: Workspace | None = None,
    rules: quality.Rules | None = None,
) -> pl.DataFrame:
    """Load runs from a sweep's name, `mlflow:EXPERIMENT`, or a CSV or Parquet file.

    `columns` maps our names to a file's own, such as `{"parameters": "Model Size"}`, or to an experiment's, such as
    `{"parameters": "params.n"}`; with two of parameters, tokens and flops given, the third follows from C = 6ND.
    `rules` decide which rows are excluded. RefusalError says what is missing.
    """
    kind = Kind.of(source)
    if kind is Kind.EXPERIMENT:
        uri = (workspace or Workspace.default()).tracking_uri
        frame = from_mlflow(source.removeprefix("mlflow:"), uri, columns or {})
    elif kind is Kind.TABLE:
        frame = from_table(Path(source), columns or {})
    else:
        frame = from_workspace(workspace or Workspace.default(), source)
    return quality.judge(frame, rules)


def load_curves(source: str, frame: pl.DataFrame, *, workspace: Workspace | None = None) -> pl.DataFrame:
    """Every validation during training of the usable runs in `frame`: columns run_id, tokens, loss.

    Empty for a table, which has no curves.
    """
    workspace = workspace or Workspace.default()
    usable = frame.filter(pl.col("excluded").is_null())
    if Kind.of(source) is Kind.EXPERIMENT:
        return curves_from_mlflow(source.removeprefix("mlflow:"), workspace.tracking_uri).join(
            usable.select("run_id"), on="run_id", how="semi"
        )
    rows = [
        {"run_id": run_id, "tokens": row.get(Metric.TOKENS), "loss": row[Metric.VALIDATION_LOSS]}
        for run_id in usable["run_id"]
        if workspace.run(run_id).metrics_file.exists()
        for row in workspace.run(run_id).metrics()
        if Metric.VALIDATION_LOSS in row
    ]
    return pl.DataFrame(rows, schema=CURVES).drop_nulls()


def from_workspace(workspace: Workspace, sweep: str) -> pl.DataFrame:
    """One row per run of a sweep, read from the run directories; unfinished runs carry their state."""
    directory = workspace.sweep(sweep)
    if not directory.plan_file.exists():
        known = sorted(folder.name for folder in workspace.sweeps.glob("*/")) if workspace.sweeps.exists() else []
        listed = ", ".join(known) or "none"
        raise RefusalError("no-such-sweep", f"no sweep {sweep!r} in {workspace.root}; there are: {listed}")
    rows = []
    for planned in directory.plan()["runs"]:
        run = workspace.run(planned["run_id"])
        result = run.known_result()
        if result is not None:
            rows.append(_row(result))
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


def from_table(path: Path, columns: Mapping[str, str]) -> pl.DataFrame:
    """One row per line of a CSV or Parquet file."""
    if not path.exists():
        raise RefusalError("no-such-file", f"{path}: no such file")
    table = pl.read_parquet(path) if path.suffix.lower() == ".parquet" else pl.read_csv(path)
    known = SCHEMA | EXTRA
    unknown = sorted(set(columns) - set(known))
    if unknown:
        raise RefusalError("unknown-column", f"{unknown[0]!r} is none of ours; known are: {', '.join(SCHEMA)}")
    for ours, theirs in columns.items():
        if theirs not in table.columns:
            raise RefusalError(
                "missing-column", f"{path}: no column {theirs!r} for {ours}; there are: {', '.join(table.columns)}"
            )
    named = {ours: columns.get(ours, ours) for ours in known if columns.get(ours, ours) in table.columns}
    frame = table.select(pl.col(theirs).alias(ours) for ours, theirs in named.items())
    if "loss" not in frame.columns:
        raise RefusalError("missing-column", f"{path}: no column for loss; name it with --columns loss=…")
    return _completed(frame, str(path))


def from_mlflow(experiment: str, tracking_uri: str, columns: Mapping[str, str] | None = None) -> pl.DataFrame:
    """One row per run of an MLflow experiment; of ours, the child runs.

    `columns` maps our names to `params.NAME`, `metrics.NAME` or `tags.NAME` where they differ from `MLFLOW_COLUMNS`.
    """
    places = MLFLOW_COLUMNS | dict(columns or {})
    misplaced = [place for place in places.values() if place.partition(".")[0] not in ("params", "metrics", "tags")]
    unknown = sorted(set(places) - set(SCHEMA))
    if unknown:
        raise RefusalError("unknown-column", f"{unknown[0]!r} is none of ours; known are: {', '.join(SCHEMA)}")
    if misplaced:
        raise RefusalError(
            "unknown-column", f"{misplaced[0]!r}: of an experiment, name params.NAME, metrics.NAME or tags.NAME"
        )
    tracked = [run for run in tracking_store.read_runs(experiment, tracking_uri) if run.tags.get("kind") != "sweep"]
    rows = []
    for run in tracked:
        row = {name: run.value(place) for name, place in places.items()}
        row["run_id"] = row["run_id"] or run.name
        row["cluster"] = row["cluster"] or row["run_id"]
        row["state"] = row["state"] or ("COMPLETED" if run.status == "FINISHED" else run.status)
        row["quality"] = (row["quality"] or "").replace(",", ", ")
        rows.append(row)
    for name in ("loss", *(name for name in columns or {})):
        if tracked and not any(row[name] is not None for row in rows):
            present = sorted({f"metrics.{key}" for run in tracked for key in run.metrics})
            raise RefusalError(
                "missing-column",
                f"{experiment}: no run has {places[name]} for {name}; metrics are: {', '.join(present) or 'none'}",
            )
    frame = pl.DataFrame(
        {
            name: [None if row[name] is None else str(row[name]) for row in rows]
            if kind == pl.String
            else [_number(row[name]) for row in rows]
            for name, kind in SCHEMA.items()
            if name in places
        },
        schema={name: pl.String if SCHEMA[name] == pl.String else pl.Float64 for name in SCHEMA if name in places},
    )
    empty = [name for name in ("parameters", "tokens", "flops") if frame[name].is_null().all()]
    return _completed(frame.drop(empty) if len(empty) == 1 else frame, experiment)


def curves_from_mlflow(experiment: str, tracking_uri: str) -> pl.DataFrame:
    """Every validation of an experiment's runs: columns run_id, tokens, loss. Tokens follow from the step."""
    history = tracking_store.read_history(experiment, tracking_uri, Metric.VALIDATION_LOSS)
    known = [
        (run.run, run.tags.get("run_id") or run.name, _number(run.params.get("batch_tokens")))
        for run in tracking_store.read_runs(experiment, tracking_uri)
    ]
    runs = pl.DataFrame(known, schema={"run": pl.String, "run_id": pl.String, "batch_tokens": pl.Float64}, orient="row")
    joined = history.join(runs, on="run", how="inner", maintain_order="left")
    return joined.select("run_id", tokens=pl.col("step") * pl.col("batch_tokens"), loss="value").drop_nulls()


def _row(result: Result) -> dict[str, object]:
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
        "cluster": result.trunk_id or result.run_id,
        "state": "COMPLETED",
        "quality": ", ".join(result.quality),
    }


def _completed(frame: pl.DataFrame, source: str) -> pl.DataFrame:
    """The frame with every column of `SCHEMA`: of parameters, tokens and flops, one that is absent follows by 6ND."""
    frame = frame.with_columns(pl.col(name).cast(pl.Float64, strict=False) for name in NUMBERS if name in frame.columns)
    n, d, c = (pl.col(name) for name in ("parameters", "tokens", "flops"))
    thirds = {"parameters": c / (6 * d), "tokens": c / (6 * n), "flops": 6 * n * d}
    missing = [name for name in thirds if name not in frame.columns]
    if len(missing) > 1:
        raise RefusalError(
            "missing-column", f"{source}: two of parameters, tokens and flops are needed; no column for {missing}"
        )
    if missing:
        frame = frame.with_columns(thirds[missing[0]].alias(missing[0]))
    rows = [pl.int_range(frame.height).cast(pl.String).alias("run_id")] if "run_id" not in frame.columns else []
    frame = frame.with_columns(*rows)
    absent = [pl.lit(None, dtype=kind).alias(name) for name, kind in SCHEMA.items() if name not in frame.columns]
    frame = frame.with_columns(*absent).with_columns(pl.col("family").fill_null("all"))
    kinds = SCHEMA | {name: kind for name, kind in EXTRA.items() if name in frame.columns}
    return frame.select(pl.col(name).cast(kind) for name, kind in kinds.items())


def _number(text: object) -> float | None:
    """None for what is no number: a rule then excludes the row, with the reason."""
    try:
        return None if text is None else float(str(text))
    except ValueError:
        return None
