"""A checkpoint that takes longer than a minute is written out, however its run is ended and whatever carries it."""

import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from ray_processes import start_cluster
from waiting import wait_until

from orchestrator.cli.terminal import INTERRUPTED
from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.records import State

pytestmark = [pytest.mark.serial, pytest.mark.slow, pytest.mark.usefixtures("slow_checkpoints")]


@pytest.fixture
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of an engine, with a cluster of two cores behind it where it needs one."""
    if request.param == "local":
        yield "local"
        return
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    cluster = start_cluster({"num_cpus": 2, "include_dashboard": False})
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield "ray"
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.parametrize("engine", ["local", "ray"], indirect=True)
def test_ctrl_c_and_cancel_wait_for_a_checkpoint_that_takes_longer_than_a_minute(
    engine: str, scaling: Any, write_sweep: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_sweep(("tokens: [2560, 5120]", "tokens: [100M]"), ("checkpoint_every: 5", "checkpoint_every: 1000000"))
    workspaces, submissions = [], []
    for name in ("interrupted", "cancelled"):
        workspaces.append(Workspace(scaling.workspace / name))
        monkeypatch.setenv("SCALING_WORKSPACE", str(workspaces[-1].root))
        submissions.append(scaling.start("submit", path, "--on", engine))
    runs = [trained_past(workspace, 3) for workspace in workspaces]
    began = time.monotonic()
    submissions[0].send_signal(signal.SIGINT)
    cancelling = scaling.start("cancel", "tiny")  # in the workspace named last
    out, err = cancelling.communicate(timeout=300)
    assert cancelling.returncode == 0, err
    assert out == "1 run cancelled\n"
    assert submissions[0].wait(timeout=300) == INTERRUPTED
    submissions[1].wait(timeout=300)
    assert time.monotonic() - began > 75
    for run in runs:
        verdict = run.verdict(1)
        assert verdict is not None
        assert verdict.state is State.PREEMPTED
        assert verdict.step is not None
        assert run.has_checkpoint(verdict.step)


def trained_past(workspace: Workspace, step: int) -> RunDirectory:
    """The only run of a workspace, as soon as it has passed a step."""
    wait_until(lambda: list(workspace.runs.glob("*/metrics.jsonl")))
    (metrics,) = workspace.runs.glob("*/metrics.jsonl")
    run = RunDirectory(metrics.parent)
    wait_until(lambda: any(row["step"] > step for row in run.metrics()))
    return run
