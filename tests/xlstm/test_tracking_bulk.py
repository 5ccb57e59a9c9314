"""What is written into the workspace's own store by SQL is what mlflow's client writes, for many runs at once."""

from collections.abc import Sequence
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from tests.xlstm.test_tracking_sync import children, history, make, of_files, write_rows
from xlstm.run import tracking
from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.tracking import bulk, sync_all
from xlstm.run.tracking.bulk import Child, Dataset
from xlstm.run.tracking.store import Place

CHILD = Child(
    name="a-run",
    status="FINISHED",
    start=1_000_000,
    end=2_000_000,
    dataset=Dataset("text", "0123", '{"corpus": "text"}'),
    tags={"kind": "run", "run_id": "a-run", "mlflow.user": "somebody", "mlflow.note.content": "# a card"},
    params={"family": "llama", "tokens": "800"},
    points=[
        *(("train/loss", 3.5, 1000, 1), ("train/loss", 3.25, 2000, 2), ("train/loss", 3.25, 2000, 2)),
        *(("validation/loss", 3.0, 500, 2), ("validation/loss", 2.0, 3000, 1)),
    ],
)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """With a store of its own, for all tests of the module."""
    return Workspace(tmp_path_factory.mktemp("workspace"))


def seen(place: Place, child: str) -> dict[str, Any]:
    """All that the client tells of a child, without what is new for each."""
    found = place.client.get_run(child)
    said = found.to_dictionary()
    for own in ("run_id", "run_uuid"):
        said["info"].pop(own, None)
    said["info"]["artifact_uri"] = said["info"]["artifact_uri"].replace(child, "")
    history = {name: place.client.get_metric_history(child, name) for name in found.data.metrics}
    said["history"] = {
        name: sorted((metric.step, metric.timestamp, metric.value) for metric in metrics)
        for name, metrics in history.items()
    }
    return said


def test_a_child_written_by_sql_is_the_one_that_the_client_writes(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = workspace.tracking_uri
    fast = Place("a-sweep", uri, workspace.artifacts)
    assert fast.parent
    by_sql = fast.make_all([CHILD, CHILD])
    assert by_sql is not None
    monkeypatch.setitem(bulk._TABLES, "tags", "key value run_uuid another_column")  # as of another version
    by_client = fast.make(CHILD)
    assert seen(fast, by_sql[0]) == seen(fast, by_sql[1]) == seen(fast, by_client)
    experiment = MlflowClient(uri).get_experiment_by_name("a-sweep").experiment_id
    assert {run.info.run_id for run in MlflowClient(uri).search_runs([experiment], "tags.run_id = 'a-run'")} == {
        *by_sql,
        by_client,
    }


def test_runs_logged_at_once_are_each_what_they_are_alone_also_after_a_kill(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [make(workspace, seed) for seed in range(4)]
    for run in runs:
        write_rows(run, 1, range(1, 10))
    runs[1].append_metrics({"step": 2**70, "time": 1e9, "attempt": 1, "train/loss": 1.0})  # more than SQLite holds
    at_once: list[int] = []
    write, keep = bulk.make, tracking._keep_files

    def counted(new: Sequence[Child], *where: Any) -> Any:
        at_once.append(len(new))
        return write(new, *where)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    def place() -> Place:
        return Place("a-sweep", workspace.tracking_uri, workspace.artifacts)

    def whole(run: RunDirectory) -> bool:
        return history(workspace.tracking_uri, run) == of_files(run)

    monkeypatch.setattr(bulk, "make", counted)
    monkeypatch.setattr(tracking, "_keep_files", killed)
    with pytest.raises(KeyboardInterrupt):  # all were logged, and nothing says so
        list(sync_all(runs[2:], place()))
    assert at_once == [2]
    monkeypatch.setattr(tracking, "_keep_files", keep)
    assert [synced.ok for synced in sync_all(runs, place())] == [True, False, True, True]
    assert at_once == [2, 4, 1, 1, 1, 1]  # all of them, and, as one cannot be logged, each by itself
    assert [whole(run) for run in (runs[0], runs[2], runs[3])] == [True] * 3
    assert not children(workspace.tracking_uri, runs[1])
