"""A run that asks for the CPU computes there and takes no GPU, though the machine or the cluster has some."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from waiting import wait_until

from orchestrator.executors import local
from orchestrator.executors.local import LocalExecutor
from orchestrator.executors.ray_groups import Need
from orchestrator.planning.plan import make_plan
from slurm.chains import links
from slurm.executor import SlurmExecutor
from slurm.site import Site
from sweeps.sweep import Sweep
from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.executor import Job, JobState
from xlstm.run.spec import RunSpec

WriteSweep = Callable[..., str]

ON_CPU = "resources=[{set: {device: cpu, devices: 2, threads_per_rank: 3}}]"


@pytest.fixture(autouse=True)
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine says that it has two."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")


@pytest.fixture
def spec() -> RunSpec:
    return Sweep.load("quickstart", [ON_CPU]).runs[0].spec


def test_it_is_planned_without_a_card_beside_runs_that_are_planned_with_one(tmp_path: Path) -> None:
    resources = "resources=[{when: {model: llama}, set: {device: cpu}}]"
    plan = make_plan(Sweep.load("quickstart", [resources]), Workspace(tmp_path))
    cards = {run.document()["model"]: run.document()["gpu"] for run in plan.runs}
    assert cards.pop("llama") is None
    assert set(cards.values()) == {"H100-80GB"}


def test_on_this_machine_it_sees_no_gpu_and_the_others_keep_theirs(
    tmp_path: Path, spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shown(told: list[str], **_: Any) -> list[str]:
        return ["sh", "-c", f'echo "<$CUDA_VISIBLE_DEVICES>" > {told[0]}/shown']

    monkeypatch.setattr(local, "command", shown)
    executor = LocalExecutor(cores=8)
    asked = {
        "a": spec,
        "b": spec.model_copy(update={"execution": spec.execution.model_copy(update={"device": "cuda"})}),
        "c": spec.model_copy(update={"execution": spec.execution.model_copy(update={"device": "auto"})}),
    }
    jobs = [Job(RunDirectory(tmp_path / token), spec, token) for token, spec in asked.items()]
    for job in jobs:
        job.run.path.mkdir()
    handles = executor.submit(jobs)
    wait_until(lambda: executor.poll(handles) == [JobState.ENDED] * 3)
    seen = [(job.run.path / "shown").read_text().strip() for job in jobs]
    assert seen == ["<>", "<4,7>", "<4,7>"]


def test_on_ray_it_asks_for_cores(spec: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": 16.0, "CPU": 64.0})
    need = Need.of(spec.execution)
    assert need.bundle == {"CPU": 6.0}


def test_on_slurm_it_asks_for_cores(tmp_path: Path, spec: RunSpec) -> None:
    executor = SlurmExecutor(Workspace(tmp_path), "quickstart")
    executor._has_gpus, executor._longest_array = True, 100
    planned = links([Job(RunDirectory(tmp_path / "a"), spec, "a")], {})
    ((shape, _),) = executor._arrays(planned, {id(link.job): Site() for link in planned})
    assert shape.gpus == 0
    assert Site.model_validate_json(shape.site).cpus_per_task == 6


@pytest.mark.serial
@pytest.mark.slow
def test_it_trains(scaling: Any, write_sweep: WriteSweep) -> None:
    path = write_sweep(("[{set: {", "[{set: {device: cpu, "), ("tokens: [2560, 5120]", "tokens: [2560]"))
    assert os.environ["CUDA_VISIBLE_DEVICES"]
    assert scaling("submit", path).code == 0
    (row,) = scaling("status", "tiny", "--json").json["runs"]
    assert row["state"] == "COMPLETED"
    assert Workspace(scaling.workspace).run(row["run_id"]).launch(1).execution.device == "cpu"
