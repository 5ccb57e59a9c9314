"""The tracking store: a client whose calls end within seconds, the experiment of a sweep, and its parent run."""

import contextlib
import functools
import os
import shutil
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from xlstm.run.locks import locked
from xlstm.run.tracking import bulk, embedded
from xlstm.run.tracking.bulk import Child, Point
from xlstm.run.tracking.charts import MODEL_TRAINING, TAGS
from xlstm.run.tracking.embedded import lies_with

TIMEOUT_SECONDS = 5
POINTS_PER_BATCH = 1000
"""The most that a server takes at once."""


@dataclass(frozen=True)
class Place:
    """Where a sweep is tracked. What the store holds of it is asked once: it serves for one round over the runs."""

    sweep: str
    tracking_uri: str
    artifacts: Path

    @cached_property
    def own(self) -> bool:
        """Whether that is the workspace's own store."""
        return lies_with(self.tracking_uri, self.artifacts)

    @cached_property
    def client(self) -> Any:
        return client_of(self.tracking_uri, self.artifacts)

    @cached_property
    def experiment(self) -> str:
        """MLflow's id, made if it is missing."""
        from mlflow.exceptions import MlflowException

        client = self.client
        if (found := client.get_experiment_by_name(self.sweep)) is not None:
            if found.lifecycle_stage == "deleted":
                client.restore_experiment(found.experiment_id)
            for key, value in TAGS.items():
                if found.tags.get(key) != value:
                    client.set_experiment_tag(found.experiment_id, key, value)
            return str(found.experiment_id)
        location = (self.artifacts / self.sweep).as_uri() if client.tracking_uri.startswith("sqlite:") else None
        try:
            return str(client.create_experiment(self.sweep, artifact_location=location, tags=TAGS))
        except MlflowException:  # another process was faster
            return str(client.get_experiment_by_name(self.sweep).experiment_id)

    @cached_property
    def parent(self) -> str:
        """MLflow's id of the sweep's parent run, made if it is missing.

        In a store of many workspaces each has its own, told by the tag `directory`.
        """
        if self.shown is not None and self.shown.parent:
            return self.shown.parent
        client, directory = self.client, None if self.own else str(self.artifacts.parent)
        made = None
        if not _parents(client, self.experiment, directory):
            tags = {"kind": "sweep", "sweep": self.sweep} | ({} if directory is None else {"directory": directory})
            made = client.create_run(self.experiment, run_name=self.sweep, tags=tags).info.run_id
        # Two processes may have made one each: all of them take the first.
        first = _parents(client, self.experiment, directory)[0]
        if made is not None and first != made:
            client.delete_run(made)
        elif directory is not None:
            client.set_tag(first, "directory", directory)
        return first

    @cached_property
    def shown(self) -> embedded.Shown | None:
        """What was shown when the round began; None where mlflow has to be asked."""
        return embedded.shown(self.sweep, self.tracking_uri, self.artifacts)

    @cached_property
    def active(self) -> frozenset[str]:
        """Children that were there when the round began, as far as that is known without asking for each."""
        return self.shown.active if self.shown is not None else frozenset()

    def children(self, run_id: str) -> list[tuple[str, str | None]]:
        """MLflow's ids of the children of a run, and where each says that its run lies."""
        if self._before is not None:
            return [(child, None) for child in self._before.get(run_id, ())]
        found = self.client.search_runs([self.experiment], f"tags.run_id = '{run_id}'")
        return [(run.info.run_id, run.data.tags.get("directory")) for run in found]

    def keep(self, run: str, name: str, content: str | Path) -> None:
        """Put a text, or a file that is called the same, among the artifacts of a child or the parent."""
        if self._before is not None:
            # What mlflow's client does, without asking the store for the run first.
            target = self.artifacts / self.sweep / run / "artifacts" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content) if isinstance(content, str) else shutil.copyfile(content, target)
        elif isinstance(content, str):
            self.client.log_text(run, content, name)
        else:
            self.client.log_artifact(run, str(content), str(Path(name).parent) if "/" in name else None)

    def make_all(self, children: Sequence[Child]) -> list[str] | None:
        """Log runs for the first time, all or none; returns mlflow's ids. None where its client has to do that."""
        if self._before is None:
            return None
        store = Path(self.tracking_uri.removeprefix("sqlite:///"))
        return bulk.make(children, store, self.experiment, self.artifacts / self.sweep, int(time.time() * 1000))

    def make(self, child: Child) -> str:
        """Log a run for the first time; returns mlflow's id of it."""
        if (by_sql := self.make_all([child])) is not None:
            return by_sql[0]
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        made = self.client.create_run(
            self.experiment, start_time=child.start, run_name=child.name, tags=child.tags
        ).info.run_id
        self.client.log_batch(made, params=[Param(*item) for item in child.params.items()])
        data = child.dataset
        dataset = Dataset(name=data.name, digest=data.digest, source_type=data.source_type, source=data.source)
        self.client.log_inputs(made, [DatasetInput(dataset, [InputTag("mlflow.data.context", data.context)])])
        self.log_points(made, child.points)
        self.end(made, child.status, child.end)
        return str(made)

    def log_points(self, child: str, points: Sequence[Point]) -> None:
        """Add points to a child's metrics."""
        from mlflow.entities import Metric

        for start in range(0, len(points), POINTS_PER_BATCH):
            batch = [Metric(*point) for point in points[start : start + POINTS_PER_BATCH]]
            self.client.log_batch(child, metrics=batch)

    def end(self, child: str, status: str, end: int | None) -> None:
        """Say how a child stands, and when it ended, where it has."""
        if end is None:
            self.client.update_run(child, status)
        else:
            self.client.set_terminated(child, status, end)

    @cached_property
    def _before(self) -> Mapping[str, tuple[str, ...]] | None:
        """Children by run when they were first asked for; None where mlflow has to be asked for those of each run."""
        known = self.shown
        if known is None or known.parent is None:
            known = embedded.shown(self.sweep, self.tracking_uri, self.artifacts) if self.own and self.parent else None
        return None if known is None else known.children


def experiments(tracking_uri: str, artifacts: Path | None = None) -> dict[str, str]:
    """Ids of the experiments that hold sweeps, by name."""
    if artifacts is not None and (known := embedded.experiments(tracking_uri, artifacts)) is not None:
        return known
    found = client_of(tracking_uri).search_experiments()
    return {one.name: str(one.experiment_id) for one in found if MODEL_TRAINING.items() <= one.tags.items()}


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
        sqlite3.connect(store).close()  # raises at once where it cannot be opened; MLflow would try for two minutes
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
