"""A new evaluation of a trained run trains nothing; one that was made before runs nothing."""

import math
import shutil
from collections.abc import Callable

import numpy as np
import pytest
import torch
from launching import CONTEXT, losses, make_run, start

from orchestrator.execution.controller import Controller
from orchestrator.executors.local import LocalExecutor
from xlstm.data import open_prepared
from xlstm.generation import TrainedRun
from xlstm.run.directory import Lease, RunDirectory, Workspace
from xlstm.run.executor import PlannedRun
from xlstm.run.records import State
from xlstm.run.spec import Evaluation, RunSpec
from xlstm.run.tracking import sync

pytestmark = pytest.mark.serial

Undisturbed = Callable[[int], RunDirectory]


def measured_by_hand(run: RunDirectory, sequences: int) -> float:
    """Mean loss over the middles of so many equal parts of the validation split, one window at a time."""
    model = TrainedRun.load(run, "cpu").model
    stream = open_prepared(run.spec().physics.data, Workspace(run.path.parent.parent)).stream("validation")
    covering = -(-(len(stream) - 1) // CONTEXT)
    sums = []
    for part in range(sequences):
        window = int((part + 0.5) * covering / sequences)
        span = torch.from_numpy(stream.read(window * CONTEXT, (window + 1) * CONTEXT + 1).astype(np.int64))
        with torch.no_grad():
            logits, _ = model(span[None, :-1])
        sums.append(torch.nn.functional.cross_entropy(logits[0].double(), span[1:], reduction="sum").item())
    return math.fsum(sums) / (sequences * CONTEXT)


def submitted(run: RunDirectory, spec: RunSpec) -> None:
    controller = Controller(Workspace(run.path.parent.parent), LocalExecutor(), [PlannedRun(spec)])
    assert controller()[run.run_id].state is State.COMPLETED


def test_a_changed_evaluation_measures_the_trained_weights_and_trains_nothing(
    workspace: Workspace, undisturbed: Undisturbed
) -> None:
    shutil.copytree(undisturbed(1).path.parent.parent, workspace.root)
    run = workspace.run(undisturbed(1).run_id)
    lease = run.status().lease
    assert lease is not None
    Lease(run, lease.token, 1).release(State.COMPLETED)
    store = f"sqlite:///{workspace.root / 'mlflow.db'}"
    assert sync(run, "measured", store).ok
    spec, before = run.spec(), run.result()
    assert before is not None
    trained = (losses(run), sorted(run.checkpoints.rglob("*")), run.launch(1))

    other = spec.model_copy(update={"evaluation": Evaluation(name="other", sequences=7)})
    submitted(run, other)
    after = run.result()
    assert after is not None
    assert after.validation.evaluation == other.evaluation_fingerprint
    assert math.isclose(after.validation.loss, measured_by_hand(run, 7), rel_tol=1e-5)
    assert after.model_copy(update={"validation": before.validation}) == before  # what training cost stands
    assert (losses(run), sorted(run.checkpoints.rglob("*")), run.launch(1)) == trained
    assert [row["validation/loss"] for row in run.metrics() if "validation/loss" in row] == [after.validation.loss]
    assert run.status().attempt == 2
    assert f"{after.validation.loss:.4f} nats per token" in (run.path / "model-card.md").read_text()

    submitted(run, spec)  # measured before: nothing is run
    assert run.result() == before
    assert run.status().attempt == 2
    assert [row["validation/loss"] for row in run.metrics() if "validation/loss" in row] == [before.validation.loss]
    assert shown(run, store) == [(before.steps, before.validation.loss)]


def shown(run: RunDirectory, store: str) -> list[tuple[int, float]]:
    """Validation losses that MLflow shows after a sync, with their steps."""
    from mlflow.tracking import MlflowClient

    child = sync(run, "measured", store).child
    assert child is not None
    client = MlflowClient(store)
    data = client.get_run(child).data
    assert data.params["evaluation"] == run.spec().evaluation_fingerprint
    assert data.tags["mlflow.note.content"] == (run.path / "model-card.md").read_text()
    assert 0 <= data.metrics["system/cpu_utilization_percentage"] <= 100
    return [(point.step, point.value) for point in client.get_metric_history(child, "validation/loss")]


def test_a_run_that_ended_before_its_result_is_measured_and_logged_once(
    workspace: Workspace, undisturbed: Undisturbed
) -> None:
    run = make_run(workspace)
    kill = """
import os, signal
from xlstm.training import attempt
attempt._Attempt._result = lambda self: os.kill(os.getpid(), signal.SIGKILL)
"""
    start(run, wrapper=kill).wait()
    assert run.result() is None
    assert start(run).completed().validation == undisturbed(1).result().validation  # type: ignore[union-attr]
    assert len([row for row in run.metrics() if "validation/loss" in row]) == 1
