"""A child written into the workspace's own store as one transaction of SQL.

mlflow's client takes fourteen transactions and 70 ms of CPU time for a run with a hundred rows of metrics; this takes
one. It is for tables as this version of mlflow makes them: where theirs are others, `make` does nothing, and the client
is used. `tests/xlstm/test_tracking_bulk.py` holds that both give the same.
"""

import contextlib
import sqlite3
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

Point: TypeAlias = tuple[str, float, int, int]
"""Name, value, milliseconds since the epoch, and step."""

LONGEST = 8000
"""Characters of a tag or parameter that mlflow keeps."""
_TABLES = {
    "runs": "run_uuid name source_type source_name entry_point_name user_id status start_time end_time deleted_time "
    "source_version lifecycle_stage artifact_uri experiment_id",
    "tags": "key value run_uuid",
    "params": "key value run_uuid",
    "metrics": "key value timestamp run_uuid step is_nan",
    "latest_metrics": "key value timestamp step is_nan run_uuid",
    "datasets": "dataset_uuid experiment_id name digest dataset_source_type dataset_source dataset_schema "
    "dataset_profile",
    "inputs": "input_uuid source_type source_id destination_type destination_id step",
    "input_tags": "input_uuid name value",
}
"""The tables that a child is written to, with all of their columns."""


@dataclass(frozen=True)
class Dataset:
    """What a run was trained on."""

    name: str
    digest: str
    source: str
    """As JSON."""
    source_type: str = "corpus"
    context: str = "training"


@dataclass(frozen=True)
class Child:
    """All that MLflow is to say of a run when it is logged for the first time."""

    name: str
    status: str
    start: int | None
    """Milliseconds since the epoch, as `end`."""
    end: int | None
    dataset: Dataset
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    points: Sequence[Point] = ()


def make(child: Child, store: Path, experiment: str, artifacts: Path, now: int) -> str | None:
    """Write a child; returns mlflow's id. None, and nothing is written, where the tables are not as expected."""
    with contextlib.closing(sqlite3.connect(store, timeout=30, isolation_level=None)) as connection:
        for table, columns in _TABLES.items():
            found = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
            if found != set(columns.split()):
                return None
        connection.execute("BEGIN IMMEDIATE")
        with connection:
            return _insert(connection, child, experiment, artifacts, now)


def _insert(connection: sqlite3.Connection, child: Child, experiment: str, artifacts: Path, now: int) -> str:
    run = uuid.uuid4().hex

    def into(table: str, rows: Sequence[Sequence[object]]) -> None:
        columns = _TABLES[table].split()
        places = ", ".join("?" * len(columns))
        connection.executemany(f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) VALUES ({places})", rows)

    uri, user, start = (artifacts / run / "artifacts").as_uri(), child.tags.get("mlflow.user", "unknown"), child.start
    about = (run, child.name, "UNKNOWN", "", "", user, child.status, start or now, child.end, None, "")
    into("runs", [(*about, "active", uri, experiment)])
    tags = {"mlflow.runName": child.name} | child.tags
    into("tags", [(key, value[:LONGEST], run) for key, value in tags.items()])
    into("params", [(key, value[:LONGEST], run) for key, value in child.params.items()])
    into("metrics", [(key, value, time, run, step, False) for key, value, time, step in child.points])
    latest: dict[str, Point] = {}
    for point in child.points:
        key, value, time, step = point
        if key not in latest or (step, time, value) > (latest[key][3], latest[key][2], latest[key][1]):
            latest[key] = point
    into("latest_metrics", [(key, value, time, step, False, run) for key, value, time, step in latest.values()])
    data = child.dataset
    made = (uuid.uuid4().hex, experiment, data.name, data.digest, data.source_type, data.source, None, None)
    into("datasets", [made])
    known = (experiment, data.name, data.digest)
    (dataset,) = connection.execute(
        "SELECT dataset_uuid FROM datasets WHERE experiment_id = ? AND name = ? AND digest = ?", known
    ).fetchone()
    given = uuid.uuid4().hex
    into("inputs", [(given, "DATASET", dataset, "RUN", run, 0)])
    into("input_tags", [(given, "mlflow.data.context", data.context)])
    return run
