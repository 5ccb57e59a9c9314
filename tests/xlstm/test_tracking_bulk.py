"""What is written into the workspace's own store by SQL is what mlflow's client writes."""

from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from xlstm.run.tracking import bulk
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, artifacts = f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "mlartifacts"
    fast = Place("a-sweep", uri, artifacts)
    assert fast.parent
    by_sql = [fast.make(CHILD) for _ in range(2)]
    monkeypatch.setitem(bulk._TABLES, "tags", "key value run_uuid another_column")  # as of another version
    by_client = fast.make(CHILD)
    assert seen(fast, by_sql[0]) == seen(fast, by_sql[1]) == seen(fast, by_client)
    experiment = MlflowClient(uri).get_experiment_by_name("a-sweep").experiment_id
    assert {run.info.run_id for run in MlflowClient(uri).search_runs([experiment], "tags.run_id = 'a-run'")} == {
        *by_sql,
        by_client,
    }
