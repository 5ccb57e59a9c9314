"""Runs of an MLflow experiment as rows, whether ours or others' made them."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from analysis.data import tracking_store
from analysis.data.columns import Reading, axis_values, column_of, completed, number_or_none, unique_keys
from analysis.data.selection import SEARCHED
from analysis.data.tracking_store import TrackedRun
from analysis.findings import RefusalError
from xlstm.run.directory import Workspace
from xlstm.run.records import Metric
from xlstm.run.tracking import is_child

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
    "computed_on": "params.computed_on",
    "cluster": "tags.trunk_id",
    "state": "tags.state",
    "quality": "tags.quality",
}
"""Where tracking puts each column. Experiments of others are read by naming theirs, such as `params.n_params`."""


def from_mlflow(
    experiment: str,
    tracking_uri: str,
    reading: Reading,
    *,
    workspace: Workspace | None = None,
    searched: Sequence[str] = (),
) -> pl.DataFrame:
    """One row per run of an MLflow experiment; of ours, the child runs.

    Columns are read from `params.NAME`, `metrics.NAME` or `tags.NAME` where they differ from `MLFLOW_COLUMNS`.
    Where `workspace` has submitted a sweep of this name, its plan says which runs are of it, in which order; others
    are excluded.
    """
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
    keys = unique_keys(cells["run_id"], [run.run for run in tracked]) if named else [child.key for child in children]
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
        {ours: column_of(ours, texts[ours], reading, reasons) for ours in places}
        | {SEARCHED + axis: axis_values(axis, [run.value(axis) for run in tracked], reading) for axis in searched}
    )
    frame = frame.with_columns(pl.Series("excluded", reasons, pl.String))
    empty = [name for name in ("parameters", "tokens", "flops") if frame[name].is_null().all()]
    return completed(frame.drop(empty) if len(empty) == 1 else frame, experiment)


def curves_from_mlflow(experiment: str, tracking_uri: str, workspace: Workspace | None = None) -> pl.DataFrame:
    """Every validation of an experiment's runs: columns run_id, tokens, loss. Tokens follow from the step."""
    history = tracking_store.read_history(experiment, tracking_uri, Metric.VALIDATION_LOSS)
    known = {
        child.key: (child.run.run, child.key, number_or_none(child.run.params.get("batch_tokens")))
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
    others = unique_keys([run.tags.get("run_id") for run in tracked], [run.run for run in tracked])
    keys = [own or other for own, other in zip(ours, others, strict=True)]
    plan = workspace.sweep(experiment).known_plan() if workspace is not None else None
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
