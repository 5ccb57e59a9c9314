"""Runs that are forked from one server: equal to those that were started anew, and alone with what befalls them."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.execution.warm import COLD_START_VARIABLE
from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.records import Metric, State

pytestmark = [pytest.mark.serial, pytest.mark.slow]

HERE = Path(__file__).parent
SEEDS = range(6)


def numbers(run: RunDirectory) -> tuple[Any, ...]:
    """All that a run computed."""
    rows = [(row["step"], row[Metric.LOSS]) for row in run.metrics() if Metric.LOSS in row]
    result = run.result()
    assert result is not None
    tensors = {path.name: path.read_bytes() for path in sorted(run.checkpoints.glob("*/*.distcp"))}
    return rows, result.validation, tensors


def workspace_of(process: psutil.Process) -> str:
    """Where a process that was told by its environment finds its workspace."""
    try:
        return process.environ().get("SCALING_WORKSPACE", "") if process.pid != os.getpid() else ""
    except psutil.Error:
        return ""


def test_what_befalls_a_run_befalls_no_other(
    scaling: Any, write_sweep: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_sweep(
        ("tokens: [2560, 5120]", f"tokens: [2560]\n  seed: {list(SEEDS)}"), ("set: {", "set: {watchdog_seconds: 20, ")
    )
    ids = [run["run_id"] for run in scaling("plan", path, "--json").json["runs"]]
    faults = dict(zip(ids[1:5], ("crash", "leak", "kill", "hang"), strict=True))
    (tmp_path / "faults.json").write_text(json.dumps(faults))
    monkeypatch.setenv("FAULTS", str(tmp_path / "faults.json"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE / "faulty"), str(HERE.parents[1])]))
    said = scaling.run("submit", path)
    assert said.code == 0, said
    disturbed = [Workspace(scaling.workspace).run(run_id) for run_id in ids]
    assert [run.status().attempt for run in disturbed] == [1, 2, 1, 2, 2, 1]
    assert {run.status().state for run in disturbed} == {State.COMPLETED}
    reasons = [verdict.reason for run in disturbed if (verdict := run.verdict(1)) is not None]
    assert "it was ended by SIGABRT" in reasons[1]
    assert "it was ended by SIGKILL" in reasons[3]
    assert "hang" in reasons[4] or "no step" in reasons[4]

    monkeypatch.delenv("PYTHONPATH")
    monkeypatch.setenv("SCALING_WORKSPACE", str(tmp_path / "undisturbed"))
    assert scaling.run("submit", path).code == 0
    monkeypatch.setenv("SCALING_WORKSPACE", str(tmp_path / "cold"))
    monkeypatch.setenv(COLD_START_VARIABLE, "1")
    assert scaling.run("submit", write_sweep(("tokens: [2560, 5120]", "tokens: [2560]"))).code == 0
    for run in disturbed:
        assert numbers(run) == numbers(Workspace(tmp_path / "undisturbed").run(run.run_id))
    assert numbers(disturbed[0]) == numbers(Workspace(tmp_path / "cold").run(ids[0]))
    assert not [process for process in psutil.process_iter() if str(tmp_path) in workspace_of(process)]
