"""The sweep's parent run in MLflow: its plan, its ledger and the law so far, as the command line would give them."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from waiting import wait_until

from orchestrator import Plan, Sweep
from orchestrator.execution import shipping
from orchestrator.workbench.analyses.live_fit import live_fit
from xlstm.run.directory import RunDirectory
from xlstm.run.records import Validation
from xlstm.run.tracking.store import Place

Complete = Callable[[Mapping[str, Any]], RunDirectory]


@pytest.fixture
def plan(scaling: Any, store: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Plan:
    """The quickstart's plan, under a name of its own in a store that all tests share."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    made = Sweep.load("quickstart", [f"name={request.node.name}"]).plan()
    made.save()
    for run in made.runs:
        made.workspace.run(run.run_id).create(run.spec)
    return made


@pytest.fixture
def complete(plan: Plan, finish: Callable[..., None]) -> Complete:
    """Leaves what a complete run leaves, for a row of the plan; its loss follows a law."""
    planned = {run.run_id: run for run in plan.runs}

    def leave(row: Mapping[str, Any]) -> RunDirectory:
        spec = planned[row["run_id"]].spec
        loss = 1.5 + 30 / row["parameters"]["total"] ** 0.3 + 40 / row["tokens"] ** 0.3
        measured = {"loss": loss, "perplexity": math.exp(loss), "tokens": 1}
        validation = Validation(**measured, evaluation=spec.evaluation_fingerprint)
        finish(plan.workspace, planned[row["run_id"]], validation=validation, wall_seconds=60.0, device_hours=1 / 60)
        return plan.workspace.run(row["run_id"])

    return leave


class Parent:
    """The parent run as MLflow shows it."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        workspace = plan.workspace
        self.client, self.folder = MlflowClient(workspace.tracking_uri), folder
        self.id = Place(plan.name, workspace.tracking_uri, workspace.artifacts).parent

    @property
    def status(self) -> str:
        return str(self.client.get_run(self.id).info.status)

    @property
    def artifacts(self) -> set[str]:
        return set(self._names(""))

    def _names(self, folder: str) -> Iterator[str]:
        for artifact in self.client.list_artifacts(self.id, folder):
            yield from self._names(artifact.path) if artifact.is_dir else [artifact.path]

    def json(self, name: str) -> Any:
        return json.loads(Path(self.client.download_artifacts(self.id, name, str(self.folder))).read_text())


def test_the_parent_run_carries_plan_ledger_and_the_law_so_far(
    plan: Plan, complete: Complete, scaling: Any, tmp_path: Path
) -> None:
    workspace, rows = plan.workspace, plan.document()["runs"]
    with shipping.Shipper(workspace, plan.name, lambda: live_fit(workspace, plan.name)) as shipper:
        shipper.touch(complete(rows[0]), live=False)
    parent = Parent(plan, tmp_path)
    assert shipper.complaint is None
    assert parent.artifacts == {"sweep.yaml", "plan.json", "ledger.json"}
    assert parent.status == "RUNNING"
    assert parent.json("plan.json")["runs"] == rows
    one = parent.json("ledger.json")["spent"]["tokens"]
    assert one == rows[0]["tokens"]

    for row in rows[1:]:
        complete(row)
    assert scaling("sync").code == 0
    assert parent.artifacts == {"sweep.yaml", "plan.json", "ledger.json", "fit/fit.json", "fit/law.png"}
    assert parent.status == "FINISHED"
    assert parent.json("ledger.json") == scaling("status", plan.name, "--json").json["ledger"]
    assert parent.json("fit/fit.json") == scaling("fit", plan.name, "--json").json
    metrics = parent.client.get_run(parent.id).data.metrics
    (llama,) = (one for one in parent.json("fit/fit.json") if one["family"] == "llama")
    assert {name: metrics[f"law/llama/{name}"] for name in llama["parameters"]} == llama["parameters"]
    (chosen,) = (one for one in llama["forms"] if one["chosen"])
    described = parent.client.get_run(parent.id).data.tags["mlflow.note.content"]
    assert f"L(N, D) = {chosen['law']}, intervals" in described
    assert f"| family | {' | '.join(chosen['parameters'])} | runs |" in described


def test_artifacts_are_refreshed_while_runs_end(
    plan: Plan, complete: Complete, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipping, "SHIP_SECONDS", 0.05)
    monkeypatch.setattr(shipping, "PUBLISH_SECONDS", 0.0)
    workspace, rows = plan.workspace, plan.document()["runs"]
    parent = Parent(plan, tmp_path)
    with shipping.Shipper(workspace, plan.name) as shipper:
        for count in (1, 2):
            row = rows[count - 1]
            shipper.touch(complete(row), live=False)
            expected = sum(row["tokens"] for row in rows[:count])
            wait_until(lambda: "ledger.json" in parent.artifacts)
            wait_until(lambda expected=expected: parent.json("ledger.json")["spent"]["tokens"] == expected)


def test_a_fit_that_breaks_is_a_complaint_and_ships_the_runs_all_the_same(plan: Plan, complete: Complete) -> None:
    def broken() -> dict[str, str | Path]:
        raise ZeroDivisionError("no law")

    rows = plan.document()["runs"]
    with shipping.Shipper(plan.workspace, plan.name, broken) as shipper:
        for row in rows:
            shipper.touch(complete(row), live=False)
    assert shipper.complaint == "the law so far could not be fitted: ZeroDivisionError: no law"
    client = MlflowClient(plan.workspace.tracking_uri)
    (experiment,) = client.search_experiments(filter_string=f"name = '{plan.name}'")
    children = client.search_runs([experiment.experiment_id], "tags.kind = 'run'")
    assert {child.data.tags["state"] for child in children} == {"COMPLETED"}
    assert len(children) == len(rows)
