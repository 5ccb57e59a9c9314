"""Where there is nothing to do, nothing is asked: of MLflow, which takes seconds to import, and of runs that wait."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from orchestrator import Plan, Sweep
from orchestrator.execution import controller
from orchestrator.execution.controller import Controller
from orchestrator.executors.local import LocalExecutor
from orchestrator.standing import status
from orchestrator.standing.status import Lookout, look
from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.executor import Job
from xlstm.run.records import State

WriteSweep = Callable[..., str]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def finished(scaling: Any, finish: Callable[..., None], write_sweep: WriteSweep) -> Plan:
    """A finished sweep that was logged."""
    made = Sweep.load(write_sweep()).plan()
    made.save()
    for run in made.runs:
        finish(made.workspace, run)
    assert scaling("sync").code == 0
    return made


def without_mlflow(*arguments: str) -> tuple[int, str]:
    """A call of `scaling` where mlflow cannot be imported."""
    program = f"import sys; sys.modules['mlflow'] = None; from orchestrator.cli import app; app({list(arguments)!r})"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_sync_with_nothing_new_does_without_mlflow(finished: Plan, scaling: Any) -> None:
    assert without_mlflow("sync")[0] == 0
    run = finished.workspace.run(finished.runs[0].run_id)
    run.append_metrics({"step": 99, "time": time.time(), "attempt": 1, "train/loss": 2.5})
    code, said = without_mlflow("sync")
    assert (code, "mlflow" in said) == (2, True)
    assert scaling("sync").code == 0
    assert without_mlflow("sync")[0] == 0
    client = MlflowClient(finished.workspace.tracking_uri)
    experiment = client.get_experiment_by_name("tiny").experiment_id
    (child,) = client.search_runs([experiment], f"tags.run_id = '{run.run_id}'")
    assert child.data.metrics["train/loss"] == 2.5
    client.delete_run(child.info.run_id)  # by hand: the files are as before, and it is there again
    assert scaling("sync").code == 0
    assert len(client.search_runs([experiment], f"tags.run_id = '{run.run_id}'")) == 1


def test_artifacts_are_where_mlflow_looks_for_them(finished: Plan) -> None:
    client = MlflowClient(finished.workspace.tracking_uri)
    experiment = client.get_experiment_by_name("tiny").experiment_id
    (parent,) = client.search_runs([experiment], "tags.kind = 'sweep'")
    assert {one.path for one in client.list_artifacts(parent.info.run_id)} == {"sweep.yaml", "plan.json", "ledger.json"}
    for child in client.search_runs([experiment], "tags.kind = 'run'"):
        assert [one.path for one in client.list_artifacts(child.info.run_id)] == ["model-card.md"]


def test_a_further_look_reads_what_changed_and_nothing_else(
    finished: Plan, finish: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    stand = status.stand
    monkeypatch.setattr(status, "stand", lambda run, planned: read.append(run.run_id) or stand(run, planned))
    again = Lookout(finished.workspace, "tiny")
    first, run = again(), finished.workspace.run(finished.runs[0].run_id)
    assert len(read) == 2
    assert again().document() == first.document()
    assert len(read) == 2
    run.set_state(State.FAILED, "because")
    assert again().document() == look(finished.workspace, "tiny").document() != first.document()
    assert read[2] == run.run_id


class Sleeping(LocalExecutor):
    """Starts a process that waits instead of a trainer."""

    def _start(self, job: Job, slots: tuple[int, ...]) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(["sleep", "60"])


def test_a_poll_looks_at_no_run_that_waits_until_somebody_cancels(
    scaling: Any, write_sweep: WriteSweep, trivial: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Sweep.load(write_sweep(trivial.runs(12))).plan()
    made.save()
    monkeypatch.setattr(controller, "POLL_SECONDS", 0.01)
    asked: list[str] = []
    requested = RunDirectory.cancel_requested
    monkeypatch.setattr(
        RunDirectory, "cancel_requested", lambda run: asked.append(run.run_id) or requested(run), raising=True
    )
    ticks: list[int] = []
    waiting = Workspace(made.workspace.root).run(made.runs[-1].run_id)

    def tick() -> None:
        ticks.append(len(asked))
        if len(ticks) == 10:
            waiting.request_cancel()
        if len(ticks) > 10 and waiting.status().state is State.CANCELLED:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Controller(made.workspace, Sleeping(gpus=0, cores=1), made.launches, tick=tick)()
    assert ticks[9] == ticks[1]
    assert waiting.status().state is State.CANCELLED
