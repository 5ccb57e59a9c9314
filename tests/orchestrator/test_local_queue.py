"""The local queue: devices do not idle while a gang waits, and small jobs do not starve it."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from orchestrator.execution.supervisor import resolve
from orchestrator.executors.local import LocalExecutor
from sweeps.sweep import Sweep
from xlstm.run.directory import RunDirectory
from xlstm.run.executor import Handle, Job, JobState
from xlstm.run.spec import RunSpec


@dataclass
class Sleeping(LocalExecutor):
    """The executor with `sleep` in place of a supervisor."""

    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    slots: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def _start(self, job: Job, slots: tuple[int, ...]) -> "subprocess.Popen[bytes]":
        self.slots[job.token] = slots
        self.processes[job.token] = subprocess.Popen(["sleep", "600"])
        return self.processes[job.token]

    def end(self, token: str) -> None:
        self.processes[token].kill()
        self.processes[token].wait()
        self.poll([])

    @property
    def started(self) -> list[str]:
        return list(self.processes)


@pytest.fixture
def queue() -> Iterator[Sleeping]:
    yield from sleeping(gpus=0, cores=4)


@pytest.fixture
def gpus() -> Iterator[Sleeping]:
    yield from sleeping(gpus=2, cores=4)


def sleeping(**machine: int) -> Iterator[Sleeping]:
    executor = Sleeping(**machine)
    yield executor
    for process in executor.processes.values():
        process.kill()
        process.wait()


@pytest.fixture
def spec() -> RunSpec:
    return Sweep.load("quickstart").runs[0].spec


def job(spec: RunSpec, token: str, ranks: int, sharing: int = 1, device: str = "auto") -> Job:
    asked = spec.execution.model_copy(update={"devices": ranks, "runs_per_device": sharing, "device": device})
    wide = spec.model_copy(update={"execution": asked})
    return Job(RunDirectory(Path(token)), wide, token)


def test_small_jobs_fill_what_a_waiting_gang_leaves_idle(queue: Sleeping, spec: RunSpec) -> None:
    queue.submit([job(spec, "first", 2), job(spec, "gang", 4), job(spec, "a", 1), job(spec, "b", 1)])
    assert queue.started == ["first", "a", "b"]


def test_small_jobs_take_no_more_slots_before_a_gang_than_it_asks_for(queue: Sleeping, spec: RunSpec) -> None:
    small = [f"small-{number}" for number in range(20)]
    handles = queue.submit([job(spec, "first", 1), job(spec, "gang", 4), *(job(spec, name, 1) for name in small)])
    order = iter(["first", *small])
    while "gang" not in queue.started:
        queue.end(next(order))
    assert queue.started == ["first", *small[:4], "gang"]
    assert queue.poll(handles[1:2]) == [JobState.RUNNING]
    queue.end("gang")
    assert queue.started[6:] == small[4:8]  # and then in the order submitted


def test_a_cancelled_job_leaves_the_queue_and_holds_up_nobody(queue: Sleeping, spec: RunSpec) -> None:
    first, gang, *_ = handles = queue.submit([job(spec, "first", 4), job(spec, "gang", 4), job(spec, "a", 1)])
    queue.cancel([gang])
    queue.end("first")
    assert queue.started == ["first", "a"]
    assert isinstance(first, Handle)
    assert queue.poll(handles) == [JobState.ENDED, JobState.ENDED, JobState.RUNNING]


def test_runs_share_a_gpu_when_they_say_so_and_a_gang_waits_for_whole_ones(gpus: Sleeping, spec: RunSpec) -> None:
    halves = [job(spec, f"half-{number}", 1, sharing=2) for number in range(3)]
    gpus.submit([*halves, job(spec, "gang", 2)])
    assert gpus.slots == {"half-0": (0,), "half-1": (0,), "half-2": (1,)}
    gpus.submit([job(spec, "third", 1, sharing=3), job(spec, "half-3", 1, sharing=2)])
    assert gpus.slots["third"] == (1,), "beside a half"
    assert "half-3" not in gpus.started, "a sixth is left"
    for token in ("half-0", "half-1", "half-2", "third"):
        assert "gang" not in gpus.started
        gpus.end(token)
    assert gpus.slots["half-3"] == (0,), "small jobs go first as far as the gang lets them past"
    gpus.end("half-3")
    assert gpus.slots["gang"] == (0, 1)


def test_a_shared_gpu_costs_each_run_its_part_and_slurm_and_cores_share_nothing(spec: RunSpec) -> None:
    asked = spec.execution.model_copy(update={"device": "cuda", "runs_per_device": 4})
    assert resolve(asked, None).devices_taken == 0.25
    assert resolve(asked, None, whole=True).devices_taken == 1
    assert resolve(asked.model_copy(update={"device": "cpu"}), None).devices_taken == 1


def test_jobs_that_ask_for_the_cpu_take_cores_beside_the_gpus_and_hold_up_nobody(gpus: Sleeping, spec: RunSpec) -> None:
    gpus.submit([job(spec, "gpu", 1), job(spec, "pair", 2), job(spec, "wide", 3, device="cpu")])
    gpus.submit([job(spec, f"cpu-{number}", 1, device="cpu") for number in range(3)])
    assert gpus.slots == {"gpu": (0,), "wide": (0, 1, 2), "cpu-0": (3,)}
    gpus.end("wide")
    assert gpus.slots["cpu-2"] == (1,), "as many as there are cores, though the pair still waits"
    gpus.submit([job(spec, "single", 1)])
    assert gpus.slots["single"] == (1,), "the pair lets past what it asks for itself, in GPUs"
    gpus.end("gpu")
    gpus.end("single")
    assert gpus.slots["pair"] == (0, 1)
