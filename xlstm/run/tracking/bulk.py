"""Children written into the workspace's own store as one transaction of SQL.

mlflow's client takes fourteen transactions and 70 ms of CPU time for a run with a hundred rows of metrics; this takes
one for many runs. It is for tables as this version of mlflow makes them: where theirs are others, `make` does nothing,
and the client is used. `tests/xlstm/test_tracking_bulk.py` holds that both give the same.
"""

import contextlib
import sqlite3
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

Point: TypeAlias = tuple[str, float, int, int]
"""Name, value, milliseconds since the epoch, and step."""

_CACHE_KIB = 65536
"""Pages of the store that are kept in memory: those of many runs, so that each is written once."""
LONGEST = 8000
"""Characters of a tag or parameter that mlflow keeps."""
_TABLES = {
    "runs": "run_uuid name source_type source_name entry_point_name user_id status start_time end_time deleted_time "
    "source_version lifecycle_stage artifact_uri experiment_id",
    "tags": "key value run_uuid",
    "params": "key value run_uuid",
    "metrics": "key timestamp step run_uuid value is_nan",
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


def make(children: Sequence[Child], store: Path, experiment: str, artifacts: Path, now: int) -> list[str] | None:
    """Write all children or none; returns mlflow's ids. None where the tables are not as expected: none is written."""
    with contextlib.closing(sqlite3.connect(store, timeout=30, isolation_level=None)) as connection:
        for table, columns in _TABLES.items():
            found = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
            if found != set(columns.split()):
                return None
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        connection.execute("BEGIN IMMEDIATE")
        with connection:
            runs = {uuid.uuid4().hex: child for child in children}
            _insert(connection, runs, experiment, artifacts, now)
            return list(runs)


def _insert(
    connection: sqlite3.Connection, children: Mapping[str, Child], experiment: str, artifacts: Path, now: int
) -> None:
    def into(table: str, rows: Iterable[Sequence[object]]) -> None:
        columns = _TABLES[table].split()
        places = ", ".join("?" * len(columns))
        connection.executemany(f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) VALUES ({places})", rows)

    def about(run: str, child: Child) -> Sequence[object]:
        uri, user = (artifacts / run / "artifacts").as_uri(), child.tags.get("mlflow.user", "unknown")
        said = (run, child.name, "UNKNOWN", "", "", user, child.status, child.start or now, child.end, None, "")
        return (*said, "active", uri, experiment)

    def texts(run: str, said: Mapping[str, str]) -> Iterator[Sequence[object]]:
        return ((key, value[:LONGEST], run) for key, value in said.items())

    each = children.items()
    into("runs", (about(run, child) for run, child in each))
    into("tags", (row for run, child in each for row in texts(run, {"mlflow.runName": child.name} | child.tags)))
    into("params", (row for run, child in each for row in texts(run, child.params)))
    points = ((key, time, step, run, value, 0) for run, child in each for key, value, time, step in child.points)
    into("metrics", sorted(points))  # in the order of the table's primary key
    into("latest_metrics", (row for run, child in each for row in _latest(run, child.points)))
    known: dict[Dataset, str] = {}
    for data in dict.fromkeys(child.dataset for child in children.values()):
        made = (uuid.uuid4().hex, experiment, data.name, data.digest, data.source_type, data.source, None, None)
        into("datasets", [made])
        (known[data],) = connection.execute(
            "SELECT dataset_uuid FROM datasets WHERE experiment_id = ? AND name = ? AND digest = ?",
            (experiment, data.name, data.digest),
        ).fetchone()
    given = [(uuid.uuid4().hex, run, child.dataset) for run, child in each]
    into("inputs", ((one, "DATASET", known[data], "RUN", run, 0) for one, run, data in given))
    into("input_tags", ((one, "mlflow.data.context", data.context) for one, _, data in given))


def _latest(run: str, points: Iterable[Point]) -> Iterator[Sequence[object]]:
    latest: dict[str, Point] = {}
    for point in points:
        key, value, time, step = point
        if key not in latest or (step, time, value) > (latest[key][3], latest[key][2], latest[key][1]):
            latest[key] = point
    return ((key, value, time, step, 0, run) for key, value, time, step in latest.values())
