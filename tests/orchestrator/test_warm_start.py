"""Runs that are forked from one server: equal to those that were started anew, and alone with what befalls them."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray_processes import start_cluster
from waiting import wait_until

from orchestrator.execution.warm import COLD_START_VARIABLE
from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.records import Metric, State

pytestmark = [pytest.mark.serial, pytest.mark.slow]

HERE = Path(__file__).parent
SEEDS = range(6)
WORDS = {
    None: "",
    "crash": "it was ended by SIGABRT",  # `it` is a trainer without torchrun
    "leak": "",
    "kill": "it was ended by SIGKILL",
    "server": "the supervisor ended without a verdict",
    "hang": "no step",
}
"""What the verdict says of an attempt that this befell."""


def numbers(run: RunDirectory) -> tuple[Any, ...]:
    """All that a run computed."""
    rows = [(row["step"], row[Metric.LOSS]) for row in run.metrics() if Metric.LOSS in row]
    result = run.result()
    assert result is not None
    tensors = {path.name: path.read_bytes() for path in sorted(run.checkpoints.glob("*/*.distcp"))}
    return rows, result.validation, tensors


def told(process: psutil.Process, variable: str) -> str:
    """What another process was told by its environment."""
    try:
        return process.environ().get(variable, "") if process.pid != os.getpid() else ""
    except psutil.Error:
        return ""


def was_forked(process: psutil.Process) -> bool:
    """Whether it is a server whose runs are disturbed, or a process that was forked from one."""
    if str(HERE / "faulty") not in told(process, "PYTHONPATH"):
        return False
    with contextlib.suppress(psutil.Error):
        return "orchestrator.execution.warm" in process.cmdline()
    return False


@pytest.fixture
def one_core(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cluster in which one worker group carries all runs, and so forks them from one server."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    cluster = start_cluster({"num_cpus": 1, "include_dashboard": False})
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.usefixtures("one_core")
def test_what_befalls_a_run_befalls_no_other(
    scaling: Any, write_sweep: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_sweep(
        ("tokens: [2560, 5120]", f"tokens: [2560]\n  seed: {list(SEEDS)}"), ("set: {", "set: {watchdog_seconds: 20, ")
    )
    ids = [run["run_id"] for run in scaling("plan", path, "--json").json["runs"]]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE / "faulty"), str(HERE.parents[1])]))

    def disturb(engine: str, *befalls: str) -> list[RunDirectory]:
        """The runs that were carried out by this engine, all but the first and the last with one of these faults."""
        faults = dict(zip(ids[1:-1], befalls, strict=True))
        workspace = Workspace(tmp_path / engine)
        workspace.root.mkdir()
        (workspace.root / "faults.json").write_text(json.dumps(faults))
        monkeypatch.setenv("SCALING_WORKSPACE", str(workspace.root))
        said = scaling.run("submit", path, "--on", engine)
        assert said.code == 0, said
        runs = [workspace.run(run_id) for run_id in ids]
        befell = [faults.get(run_id) for run_id in ids]
        assert {run.status().state for run in runs} == {State.COMPLETED}
        assert [run.status().attempt for run in runs] == [1 if fault in (None, "leak") else 2 for fault in befell]
        for run, fault in zip(runs, befell, strict=True):
            verdict = run.verdict(1)
            assert verdict is not None
            assert WORDS[fault] in verdict.reason
        wait_until(lambda: not any(map(was_forked, psutil.process_iter())))
        return runs

    disturbed = disturb("local", "crash", "leak", "kill", "hang")
    disturbed += disturb("ray", "crash", "leak", "kill", "server")  # one run at a time, so that none loses it beside it
    wait_until(lambda: not any(str(tmp_path) in told(one, "SCALING_WORKSPACE") for one in psutil.process_iter()))

    monkeypatch.delenv("PYTHONPATH")
    monkeypatch.setenv("SCALING_WORKSPACE", str(tmp_path / "undisturbed"))
    assert scaling("submit", path).code == 0
    monkeypatch.setenv("SCALING_WORKSPACE", str(tmp_path / "cold"))
    monkeypatch.setenv(COLD_START_VARIABLE, "1")
    assert scaling("submit", write_sweep(("tokens: [2560, 5120]", "tokens: [2560]"))).code == 0
    for run in disturbed:
        assert numbers(run) == numbers(Workspace(tmp_path / "undisturbed").run(run.run_id))
    assert numbers(disturbed[0]) == numbers(Workspace(tmp_path / "cold").run(ids[0]))
