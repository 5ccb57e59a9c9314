"""A sweep of real runs: submitted twice trains nothing, extended trains what is new, stopped continues."""

import signal
from collections.abc import Callable
from typing import Any

import pytest
from waiting import wait_until

from orchestrator.execution.warm import COLD_START_VARIABLE
from xlstm.run.directory import Workspace
from xlstm.run.records import Metric, State

WriteSweep = Callable[..., str]

pytestmark = [pytest.mark.serial, pytest.mark.slow]


def test_a_sweep_is_trained_once_and_extended_by_what_is_new(
    scaling: Any, write_sweep: WriteSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(scaling.workspace)
    path = write_sweep()
    with monkeypatch.context() as anew:  # a forked rank shares the libraries' memory, which plans count for each
        anew.setenv(COLD_START_VARIABLE, "1")
        first = scaling("submit", path)
    assert first.code == 0, first
    status = scaling("status", "tiny", "--json").json
    assert {run["state"] for run in status["runs"]} == {"COMPLETED"}
    assert all(run["validation"]["perplexity"] > 1 for run in status["runs"])
    assert status["ledger"]["spent"]["tokens"] == 2560 + 5120
    assert status["ledger"]["wasted"]["tokens"] == 0
    assert_the_plan_was_right(workspace, scaling("plan", path, "--json").json)
    results = {run["run_id"]: (workspace.run(run["run_id"]).path / "result.json").stat() for run in status["runs"]}

    again = scaling("submit", path)
    assert again.code == 0
    assert "2 runs, all complete: nothing to train" in again.out

    more = scaling("submit", write_sweep(("size: [small]", "size: [small, large]")))
    assert more.code == 0, more
    assert "4 runs, 2 complete; to train: 2 runs" in more.out
    for run_id, before in results.items():
        assert (workspace.run(run_id).path / "result.json").stat() == before
        assert workspace.run(run_id).status().attempt == 1

    text = scaling("generate", status["runs"][0]["run_id"], "--prompt", "12 squared", "--tokens", "8")
    assert text.code == 0
    assert text.out.startswith("12 squared")
    assert "step 10: validation loss" in scaling("logs", status["runs"][0]["run_id"]).out
    assert "physics.tokens: 2560 | 5120" in scaling("diff", *(run["run_id"] for run in status["runs"])).out


def assert_the_plan_was_right(workspace: Workspace, plan: Any) -> None:
    """Metrics and checkpoints are those expected, and what is measured takes the place of what was stated."""
    for planned in plan["runs"]:
        run = workspace.run(planned["run_id"])
        rows = run.metrics()
        assert planned["expected_points"].keys() <= {name for row in rows for name in row}
        for name, points in planned["expected_points"].items():
            assert sum(name in row for row in rows) == points, name
        peak = max(row.get(Metric.PEAK_MEMORY, 0.0) for row in rows)
        assert planned["memory_gib_per_device"] == pytest.approx(peak, rel=0.2)
        stored = sum(file.stat().st_size for file in run.checkpoints.rglob("*") if file.is_file())
        kept = len([folder for folder in run.checkpoints.iterdir() if run.has_checkpoint(int(folder.name[5:]))])
        tensors = 12 * planned["parameters"]["total"] * kept
        assert planned["disk_gib"] * 2**30 == tensors <= stored
        assert planned["device_hours_basis"] == "measured"


def test_ctrl_c_leaves_checkpoints_and_says_how_to_continue(scaling: Any, write_sweep: WriteSweep) -> None:
    workspace = Workspace(scaling.workspace)
    path = write_sweep(("tokens: [2560, 5120]", "tokens: [100M]"))
    (planned,) = scaling("plan", path, "--json").json["runs"]
    run = workspace.run(planned["run_id"])
    process = scaling.start("submit", path)
    wait_until(lambda: process.poll() is not None or any(row["step"] >= 3 for row in run.metrics()))
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, (out, err)
    assert f"Continue with: scaling submit {path} --on local" in out
    status = run.status()
    assert status.state is State.PREEMPTED
    assert not run.is_held()
    verdict = run.verdict(1)
    assert verdict is not None
    assert verdict.step is not None
    assert run.has_checkpoint(verdict.step)


def test_a_run_that_fails_is_reported_and_the_others_are_trained(scaling: Any, write_sweep: WriteSweep) -> None:
    # A learning rate that makes the loss infinite: the run diverges, and the sweep ends with exit code 1.
    path = write_sweep(
        ("tokens: [2560, 5120]", "tokens: [2560]\n  learning_rate: [1e-2, 1e30]"),
        ("warmup_steps: 2", "warmup_steps: 0"),
    )
    said = scaling("submit", path)
    assert said.code == 1, said
    states = {run["state"]: run for run in scaling("status", "tiny", "--json").json["runs"]}
    assert states.keys() == {"COMPLETED", "DIVERGED"}
    assert states["DIVERGED"]["validation"] is None
    assert states["DIVERGED"]["attempts"] == 1


def test_a_detached_sweep_is_cancelled_with_a_checkpoint(scaling: Any, write_sweep: WriteSweep) -> None:
    workspace = Workspace(scaling.workspace)
    path = write_sweep(("tokens: [2560, 5120]", "tokens: [2560, 100M]"))
    assert scaling.run("submit", path, "--detach").code == 0
    short, long = (workspace.run(run["run_id"]) for run in scaling("plan", path, "--json").json["runs"])
    wait_until(
        lambda: long.metrics() and short.status().state is State.COMPLETED,
        lambda: f"{long.status()} {short.status()}",
    )
    said = scaling("cancel", "tiny")
    assert (said.code, said.out) == (0, "1 run cancelled\n")
    assert long.status().state is State.CANCELLED
    assert not long.is_held()
    assert long.checkpoints.exists()
    assert scaling("cancel", "tiny").out.startswith("nothing to cancel")
    assert "cancelled" in scaling("watch", "tiny").out  # every run has ended, so it ends too
