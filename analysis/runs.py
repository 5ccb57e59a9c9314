"""Runs as one polars frame, whatever they come from: a workspace's sweep, an MLflow experiment, or a table.

Columns: `run_id`, `family`, `size`, `seed`, `parameters` (N, total), `tokens` (D), `flops` (C), `loss` (nats per token
on the validation split), `evaluation`, `tokenizer`, `schedule`, `cluster` (runs that share a trunk share it), and
`excluded`: null, or why the row is not to be fitted. No row is dropped silently: a fit reports those it left out.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from analysis.findings import RefusalError
from xlstm.records import Result, State, Workspace

SCHEMA = {
    "run_id": pl.String,
    "family": pl.String,
    "size": pl.String,
    "seed": pl.Int64,
    "parameters": pl.Float64,
    "tokens": pl.Float64,
    "flops": pl.Float64,
    "loss": pl.Float64,
    "bits_per_byte": pl.Float64,
    "evaluation": pl.String,
    "tokenizer": pl.String,
    "schedule": pl.String,
    "cluster": pl.String,
    "excluded": pl.String,
}
NUMBERS = ("parameters", "tokens", "flops", "loss")


def load(source: str, *, columns: Mapping[str, str] | None = None, workspace: Workspace | None = None) -> pl.DataFrame:
    """Load runs from a sweep's name, `mlflow:EXPERIMENT`, or a CSV or Parquet file.

    `columns` maps our names to a file's own, such as `{"parameters": "Model Size"}`; with two of parameters, tokens and
    flops given, the third follows from C = 6ND. RefusalError says what is missing.
    """
    if source.startswith("mlflow:"):
        return from_mlflow(source.removeprefix("mlflow:"), (workspace or Workspace.default()).tracking_uri)
    path = Path(source)
    if path.suffix.lower() in (".csv", ".parquet"):
        return from_table(path, columns or {})
    return from_workspace(workspace or Workspace.default(), source)


def from_workspace(workspace: Workspace, sweep: str) -> pl.DataFrame:
    """One row per run of a sweep, read from the run directories; unfinished runs carry their state as the reason."""
    plan = workspace.sweeps / sweep / "plan.json"
    if not plan.exists():
        known = sorted(folder.name for folder in workspace.sweeps.glob("*/")) if workspace.sweeps.exists() else []
        listed = ", ".join(known) or "none"
        raise RefusalError("no-such-sweep", f"no sweep {sweep!r} in {workspace.root}; there are: {listed}")
    rows = []
    for planned in json.loads(plan.read_text())["runs"]:
        run = workspace.run(planned["run_id"])
        result = run.result()
        if result is not None:
            rows.append(_row(result))
            continue
        status = run.status()
        reason = f"{status.state}: {status.reason}" if status.reason else str(status.state)
        rows.append(
            {
                "run_id": run.run_id,
                "family": planned["model"],
                "size": planned["size"],
                "seed": planned["seed"],
                "parameters": planned["parameters"]["total"],
                "tokens": planned["tokens"],
                "excluded": "diverged" if status.state is State.DIVERGED else f"unfinished ({reason})",
            }
        )
    return _checked(pl.DataFrame(rows, schema=SCHEMA))


def from_table(path: Path, columns: Mapping[str, str]) -> pl.DataFrame:
    """One row per line of a CSV or Parquet file."""
    if not path.exists():
        raise RefusalError("no-such-file", f"{path}: no such file")
    table = pl.read_parquet(path) if path.suffix.lower() == ".parquet" else pl.read_csv(path)
    unknown = sorted(set(columns) - set(SCHEMA))
    if unknown:
        raise RefusalError("unknown-column", f"{unknown[0]!r} is none of ours; known are: {', '.join(SCHEMA)}")
    for ours, theirs in columns.items():
        if theirs not in table.columns:
            raise RefusalError(
                "missing-column", f"{path}: no column {theirs!r} for {ours}; there are: {', '.join(table.columns)}"
            )
    named = {ours: columns.get(ours, ours) for ours in SCHEMA if columns.get(ours, ours) in table.columns}
    frame = table.select(pl.col(theirs).alias(ours) for ours, theirs in named.items())
    if "loss" not in frame.columns:
        raise RefusalError("missing-column", f"{path}: no column for loss; name it with --columns loss=…")
    for name in NUMBERS:
        if name in frame.columns:
            frame = frame.with_columns(pl.col(name).cast(pl.Float64, strict=False))
    n, d, c = (pl.col(name) for name in ("parameters", "tokens", "flops"))
    thirds = {"parameters": c / (6 * d), "tokens": c / (6 * n), "flops": 6 * n * d}
    missing = [name for name in thirds if name not in frame.columns]
    if len(missing) > 1:
        raise RefusalError(
            "missing-column", f"{path}: two of parameters, tokens and flops are needed; no column for {missing}"
        )
    if missing:
        frame = frame.with_columns(thirds[missing[0]].alias(missing[0]))
    rows = [pl.int_range(frame.height).cast(pl.String).alias("run_id")] if "run_id" not in frame.columns else []
    frame = frame.with_columns(*rows)
    absent = [pl.lit(None, dtype=kind).alias(name) for name, kind in SCHEMA.items() if name not in frame.columns]
    frame = frame.with_columns(*absent).with_columns(pl.col("family").fill_null("all"))
    return _checked(frame.select(pl.col(name).cast(kind) for name, kind in SCHEMA.items()))


def from_mlflow(experiment: str, tracking_uri: str) -> pl.DataFrame:
    """One row per child run of an MLflow experiment, from the parameters and metrics that tracking records."""
    import mlflow

    client = mlflow.MlflowClient(tracking_uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        known = ", ".join(sorted(e.name for e in client.search_experiments())) or "none"
        raise RefusalError("no-such-experiment", f"no experiment {experiment!r} at {tracking_uri}; there are: {known}")
    rows, token = [], None
    while True:
        page = client.search_runs([found.experiment_id], "tags.run_id != ''", max_results=1000, page_token=token)
        for run in page:
            params, metrics = run.data.params, run.data.metrics
            loss = metrics.get("validation/loss")
            state = run.data.tags.get("state", run.info.status)
            rows.append(
                {
                    "run_id": run.data.tags["run_id"],
                    "family": params.get("family"),
                    "size": params.get("size"),
                    "seed": int(params["seed"]) if "seed" in params else None,
                    "parameters": _number(params.get("parameters.total")),
                    "tokens": _number(params.get("tokens")),
                    "flops": _number(params.get("flops.exact")),
                    "loss": loss,
                    "bits_per_byte": metrics.get("validation/bits_per_byte"),
                    "evaluation": params.get("evaluation"),
                    "tokenizer": params.get("tokenizer"),
                    "schedule": params.get("schedule"),
                    "cluster": params.get("trunk_id") or run.data.tags["run_id"],
                    "excluded": None if state in ("COMPLETED", "FINISHED") else f"unfinished ({state})",
                }
            )
        token = page.token
        if not token:
            return _checked(pl.DataFrame(rows, schema=SCHEMA))


def _row(result: Result) -> dict[str, object]:
    return {
        "run_id": result.run_id,
        "family": result.family,
        "size": result.size,
        "seed": result.seed,
        "parameters": result.parameters.total,
        "tokens": result.tokens,
        "flops": result.flops.get("exact", 6.0 * result.parameters.total * result.tokens),
        "loss": result.validation.loss,
        "bits_per_byte": result.validation.bits_per_byte,
        "evaluation": result.validation.evaluation,
        "tokenizer": result.tokenizer,
        "schedule": result.schedule,
        "cluster": result.trunk_id or result.run_id,
        "excluded": ", ".join(result.quality) or None,
    }


def _number(text: str | None) -> float | None:
    return None if text is None else float(text)


def _checked(frame: pl.DataFrame) -> pl.DataFrame:
    """Exclude, with the reason, rows whose numbers cannot be a run's: absent, not finite, not positive."""
    reason = pl.coalesce("excluded")
    for name in ("loss", "parameters", "tokens"):
        column = pl.col(name)
        bad = column.is_null() | ~column.is_finite() | (column <= 0) | (column >= math.sqrt(1.7e308))
        reason = pl.coalesce(reason, pl.when(bad).then(pl.lit(f"{name} is not a positive finite number")))
    return frame.with_columns(reason.alias("excluded"))
