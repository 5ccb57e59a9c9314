"""The tracking store: a client whose calls end within seconds, the experiment of a sweep, and its parent run."""

import contextlib
import functools
import os
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import quote

from xlstm.run.locks import locked
from xlstm.run.tracking.charts import MODEL_TRAINING, TAGS

TIMEOUT_SECONDS = 5


def lies_with(tracking_uri: str, artifacts: Path | None) -> bool:
    """Whether a store is the embedded one of the workspace that keeps its artifacts there."""
    if artifacts is None or not tracking_uri.startswith("sqlite:///"):
        return False
    return Path(tracking_uri.removeprefix("sqlite:///")).parent.resolve() == artifacts.parent.resolve()


def experiments(tracking_uri: str) -> dict[str, str]:
    """Ids of the experiments that hold sweeps, by name."""
    found = client_of(tracking_uri).search_experiments()
    return {one.name: str(one.experiment_id) for one in found if MODEL_TRAINING.items() <= one.tags.items()}


def experiment_of(client: Any, sweep: str, artifacts: Path | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(sweep)
    if found is not None:
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        for key, value in TAGS.items():
            if found.tags.get(key) != value:
                client.set_experiment_tag(found.experiment_id, key, value)
        return str(found.experiment_id)
    embedded = artifacts is not None and client.tracking_uri.startswith("sqlite:")
    try:
        location = (artifacts / sweep).as_uri() if embedded and artifacts is not None else None
        return str(client.create_experiment(sweep, artifact_location=location, tags=TAGS))
    except MlflowException:  # another process was faster
        return str(client.get_experiment_by_name(sweep).experiment_id)


def parent_of(client: Any, experiment: str, sweep: str, artifacts: Path | None) -> str:
    """The parent run of a sweep of the workspace that keeps its artifacts there, made if it is missing.

    In a store of many workspaces each has its own, told by the tag `directory`.
    """
    own = artifacts is None or lies_with(client.tracking_uri, artifacts)
    directory = None if artifacts is None or own else str(artifacts.parent)
    made = None
    if not _parents(client, experiment, directory):
        tags = {"kind": "sweep", "sweep": sweep} | ({} if directory is None else {"directory": directory})
        made = client.create_run(experiment, run_name=sweep, tags=tags).info.run_id
    # Two processes may have made one each: all of them take the first.
    first = _parents(client, experiment, directory)[0]
    if made is not None and first != made:
        client.delete_run(made)
    elif directory is not None:
        client.set_tag(first, "directory", directory)
    return first


def _parents(client: Any, experiment: str, directory: str | None) -> list[str]:
    """Parent runs of a workspace, the first one first; all of the experiment where there is no `directory`.

    One of an earlier version, which says of no workspace, is that of a workspace whose runs it holds.
    """
    found = client.search_runs([experiment], "tags.kind = 'sweep'", order_by=["start_time", "run_id"])
    if directory is None:
        return [run.info.run_id for run in found]
    mine = [run.info.run_id for run in found if run.data.tags.get("directory") == directory]
    for run in () if mine else found:
        if "directory" not in run.data.tags:
            children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
            if any(child.data.tags.get("directory", "").startswith(f"{directory}/") for child in children):
                mine.append(run.info.run_id)
    return mine


@functools.lru_cache(maxsize=8)
def client_of(tracking_uri: str, artifacts: Path | None = None) -> Any:
    """A client whose calls end within seconds. The first use of an embedded store initialises it under a lock."""
    # Read by mlflow at every request; what the user has set stands.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(TIMEOUT_SECONDS))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # with the password, if it has one
    # What it logs, errors with their tracebacks among it, would tear the progress display; they are told in a line.
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.tracking import MlflowClient

    if not tracking_uri.startswith("sqlite:///"):
        return MlflowClient(tracking_uri)
    store = Path(tracking_uri.removeprefix("sqlite:///"))
    store.parent.mkdir(parents=True, exist_ok=True)
    with locked(store.with_name(f".{store.name}.lock")):
        client = MlflowClient(tracking_uri)
        client.search_experiments(max_results=1)
        if artifacts is not None and lies_with(tracking_uri, artifacts):
            _point_to(artifacts, store)
        return client


def _point_to(artifacts: Path, store: Path) -> None:
    """Have the experiments of a workspace keep their files in this workspace.

    MLflow stores where they lie as absolute URLs: in a workspace that was copied or moved, those of another place.
    """
    with contextlib.closing(sqlite3.connect(store)) as connection, connection:
        known = connection.execute("SELECT experiment_id, name, artifact_location FROM experiments").fetchall()
        for experiment, name, location in known:
            here = (artifacts / name).as_uri()
            if location == here or not (location or "").endswith(f"/{artifacts.name}/{quote(name)}"):
                continue
            connection.execute(
                "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (here, experiment)
            )
            connection.execute(
                "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) "
                "WHERE experiment_id = ? AND substr(artifact_uri, 1, ?) = ?",
                (here, len(location) + 1, experiment, len(location), location),
            )
