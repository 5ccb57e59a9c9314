"""What an MLflow experiment holds: its runs, and the history of one metric of all of them.

A database is read by a handful of SQL statements, which is tens of times faster than MLflow's client, for that asks per
run and makes an object of every point; nothing is written. A server is asked through the client. Both give the same.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from analysis.findings import RefusalError
from xlstm.run.tracking import remedy
from xlstm.run.tracking.secrets import masked

DATABASES = ("sqlite", "postgresql", "mysql")
"""Schemes of the databases that are read directly; all else goes through the client."""
HISTORY = {"run": pl.String, "step": pl.Int64, "value": pl.Float64}
_ROWS_PER_FETCH = 20_000


@dataclass
class TrackedRun:
    """An active run of an experiment, with the last value of each metric."""

    run: str
    """MLflow's own id."""
    status: str
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def value(self, column: str) -> Any:
        """The value at `params.NAME`, `metrics.NAME` or `tags.NAME`; None where the run has none of that name."""
        kind, _, name = column.partition(".")
        return getattr(self, kind).get(name)


def is_database(tracking_uri: str) -> bool:
    """Whether the URI names a database that can be read directly."""
    return tracking_uri.partition(":")[0].partition("+")[0] in DATABASES


def read_runs(experiment: str, tracking_uri: str) -> list[TrackedRun]:
    """The active runs of an experiment, in the order in which they were started. RefusalError where there is none."""
    if not is_database(tracking_uri):
        return _runs_by_client(experiment, tracking_uri)
    with _connection(tracking_uri) as connection:
        within = _within(connection, experiment, tracking_uri)
        found = _rows(connection, f"SELECT run_uuid, status FROM runs WHERE {within} ORDER BY start_time, run_uuid")
        runs = {run: TrackedRun(run, status) for run, status in found}
        selected = f"WHERE run_uuid IN (SELECT run_uuid FROM runs WHERE {within})"
        quoted = connection.dialect.identifier_preparer.quote("key")
        for table in ("params", "tags"):
            for run, name, value in _rows(connection, f"SELECT run_uuid, {quoted}, value FROM {table} {selected}"):
                getattr(runs[run], table)[name] = value
        statement = f"SELECT run_uuid, {quoted}, value, is_nan FROM latest_metrics {selected}"
        for run, name, value, is_nan in _rows(connection, statement):
            runs[run].metrics[name] = float("nan") if is_nan else value
    return list(runs.values())


def read_history(experiment: str, tracking_uri: str, metric: str) -> pl.DataFrame:
    """Every finite point of `metric` of an experiment's active runs: columns run (MLflow's id), step and value.

    Sorted by run and step; of a step that was logged twice the later point counts.
    """
    if not is_database(tracking_uri):
        return _history_by_client(experiment, tracking_uri, metric)
    with _connection(tracking_uri) as connection:
        within = _within(connection, experiment, tracking_uri)
        quoted = connection.dialect.identifier_preparer.quote("key")
        escaped = metric.replace("'", "''")
        parts = [
            pl.DataFrame(dict(zip(HISTORY, zip(*rows, strict=True), strict=True)), schema=HISTORY)
            for rows in _batches(
                connection,
                f"SELECT run_uuid, step, value FROM metrics WHERE {quoted} = '{escaped}' AND NOT is_nan "
                f"AND run_uuid IN (SELECT run_uuid FROM runs WHERE {within}) ORDER BY timestamp",
            )
        ]
    return _latest(pl.concat([pl.DataFrame(schema=HISTORY), *parts]))


def _latest(history: pl.DataFrame) -> pl.DataFrame:
    ordered = history.filter(pl.col("value").is_finite()).sort("run", "step", maintain_order=True)
    return ordered.unique(["run", "step"], keep="last", maintain_order=True)


@contextmanager
def _connection(tracking_uri: str) -> Iterator[Any]:
    """A connection that cannot write. SQLAlchemy comes with MLflow."""
    import sqlalchemy

    if tracking_uri.startswith("sqlite:///") and not Path(tracking_uri.removeprefix("sqlite:///")).exists():
        raise RefusalError(
            "no-such-store", f"{masked(tracking_uri)}: there is no such database; has a sweep been submitted?"
        )
    engine = sqlalchemy.create_engine(tracking_uri)
    try:
        with engine.connect() as connection:
            if engine.dialect.name == "sqlite":
                connection.exec_driver_sql("PRAGMA query_only = ON")
            yield connection
    except (sqlalchemy.exc.SQLAlchemyError, engine.dialect.loaded_dbapi.Error) as error:
        first = str(error).strip().splitlines()[0]
        first += remedy(tracking_uri, error)
        raise RefusalError("unreadable-store", f"{engine.url!r}: not a readable MLflow database: {first}") from None
    finally:
        engine.dispose()


def _within(connection: Any, experiment: str, tracking_uri: str) -> str:
    """The condition on `runs` that selects the active ones of an experiment."""
    known = dict(_rows(connection, "SELECT name, experiment_id FROM experiments WHERE lifecycle_stage = 'active'"))
    if experiment not in known:
        raise _no_experiment(experiment, tracking_uri, list(known))
    return f"experiment_id = {int(known[experiment])} AND lifecycle_stage = 'active'"


def _rows(connection: Any, statement: str) -> list[Any]:
    return [row for batch in _batches(connection, statement) for row in batch]


def _batches(connection: Any, statement: str) -> Iterator[list[Any]]:
    """Rows in batches, straight from the driver: an SQLAlchemy row per point would double the time."""
    cursor = connection.connection.cursor()
    collecting = gc.isenabled()
    gc.disable()  # millions of short-lived tuples, none in a cycle
    try:
        cursor.execute(statement)
        while rows := cursor.fetchmany(_ROWS_PER_FETCH):
            yield rows
    finally:
        cursor.close()
        if collecting:
            gc.enable()


def _runs_by_client(experiment: str, tracking_uri: str) -> list[TrackedRun]:
    client, identity = _client(experiment, tracking_uri)
    runs: list[TrackedRun] = []
    token = None
    while True:
        page = client.search_runs(
            [identity], max_results=1000, page_token=token, order_by=["attributes.start_time ASC", "run_id ASC"]
        )
        for run in page:
            data = run.data
            runs.append(TrackedRun(run.info.run_id, run.info.status, dict(data.params), dict(data.metrics), data.tags))
        token = page.token
        if not token:
            return runs


def _history_by_client(experiment: str, tracking_uri: str, metric: str) -> pl.DataFrame:
    client, _ = _client(experiment, tracking_uri)
    points = [
        (point.timestamp, run.run, point.step, point.value)
        for run in _runs_by_client(experiment, tracking_uri)
        if metric in run.metrics
        for point in client.get_metric_history(run.run, metric)
    ]
    history = pl.DataFrame(points, schema={"timestamp": pl.Int64} | HISTORY, orient="row")
    return _latest(history.sort("timestamp", maintain_order=True).drop("timestamp"))


def _client(experiment: str, tracking_uri: str) -> tuple[Any, str]:
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri)
    try:
        found = client.get_experiment_by_name(experiment)
        if found is None or found.lifecycle_stage != "active":
            raise _no_experiment(experiment, tracking_uri, [one.name for one in client.search_experiments()])
    except MlflowException as error:
        first = str(error).strip().splitlines()[0]
        raise RefusalError("unreadable-store", f"{masked(tracking_uri)}: {masked(first)}") from None
    return client, str(found.experiment_id)


def _no_experiment(experiment: str, tracking_uri: str, known: list[str]) -> RefusalError:
    listed = ", ".join(sorted(known)) or "none"
    return RefusalError(
        "no-such-experiment", f"no experiment {experiment!r} at {masked(tracking_uri)}; there are: {listed}"
    )
