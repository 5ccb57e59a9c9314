"""The Ray executor on a real cluster: several raylets on this machine."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray_processes import add_node, lives, members, nothing_is_left
from waiting import wait_until

from orchestrator.errors import InputError
from orchestrator.planning.plan import make_plan
from sweeps.sweep import Sweep
from xlstm.data import prepare
from xlstm.run.directory import WORKSPACE_VARIABLE, Workspace
from xlstm.run.executor import PlannedRun
from xlstm.run.records import State
from xlstm.run.spec import RunSpec

WriteSweep = Callable[..., str]

pytestmark = [pytest.mark.serial, pytest.mark.slow]

ANOTHER_TRAINER = """

ours = run_attempt


def run_attempt(*arguments):
    print("trained by", __file__, flush=True)
    return ours(*arguments)
"""


@pytest.fixture
def planned(scaling: Any, write_sweep: WriteSweep) -> Callable[..., tuple[Workspace, PlannedRun]]:
    """One run in a workspace, its data prepared, with the resources asked for."""

    def make(name: str, steps: int, resources: str) -> tuple[Workspace, PlannedRun]:
        workspace = Workspace(scaling.workspace.parent / name)
        path = write_sweep(("tokens: [2560, 5120]", f"tokens: [{steps * 256}]"), ("set: {", "set: {" + resources))
        (run,) = make_plan(Sweep.load(path), workspace).launches
        prepare(run.spec.physics.data, run.spec.execution.data_paths, workspace)
        return workspace, run

    return make


def test_a_cancelled_job_leaves_a_checkpoint_and_no_process(
    cluster: Any, planned: Callable[..., tuple[Workspace, PlannedRun]]
) -> None:
    from orchestrator.executors.ray import RayExecutor
    from xlstm.run.executor import Job, JobState

    workspace, run = planned("cancelled", 400_000, "")
    directory = workspace.run(run.run_id)
    directory.create(run.spec)
    executor = RayExecutor(workspace, cluster.address)
    (handle,) = executor.submit([Job(directory, run.spec, "token-of-the-cancelled")])
    wait_until(lambda: executor.poll([handle]) == [JobState.RUNNING] and bool(directory.metrics()))
    lease = directory.status().lease
    assert lease is not None
    carrying = [psutil.Process(lease.pid), *psutil.Process(lease.pid).children(recursive=True)]
    executor.cancel([handle])
    assert directory.status().state is State.PREEMPTED
    verdict = directory.verdict(1)
    assert verdict is not None
    assert verdict.step is not None
    assert directory.has_checkpoint(verdict.step)
    assert len(carrying) > 1
    wait_until(lambda: not any(lives(process) for process in carrying))
    wait_until(lambda: nothing_is_left(cluster))


def test_a_job_that_is_cancelled_while_its_server_imports_torch_ends_as_soon_as_it_has_begun(
    cluster: Any, planned: Callable[..., tuple[Workspace, PlannedRun]]
) -> None:
    from orchestrator.executors.ray import RayExecutor
    from xlstm.run.executor import Job, JobState

    workspace, run = planned("cancelled-early", 400_000, "")
    directory = workspace.run(run.run_id)
    directory.create(run.spec)
    executor = RayExecutor(workspace, cluster.address)
    (handle,) = executor.submit([Job(directory, run.spec, "token-of-the-early")])
    wait_until(lambda: executor.poll([handle]) and directory.supervisor_log.exists())
    executor.cancel([handle])
    assert executor.poll([handle]) == [JobState.ENDED]
    assert directory.status().lease is None
    assert directory.status().state in (State.PLANNED, State.PREEMPTED)
    wait_until(lambda: nothing_is_left(cluster))


def test_a_gang_carries_one_run_after_another_and_the_next_controller_finds_the_latest(
    cluster: Any,
    planned: Callable[..., tuple[Workspace, PlannedRun]],
    trivial: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    from orchestrator.executors import ray_groups
    from orchestrator.executors.ray import RayExecutor
    from xlstm.run.executor import Job, JobState

    workspace, run = planned("carried", len(trivial.once), "")
    ray.shutdown()  # what starts from here on finds the trivial trainer
    specs = [
        RunSpec(physics=run.spec.physics.model_copy(update={"seed": seed}), execution=run.spec.execution)
        for seed in range(8)
    ]
    faults = {spec.run_id: "wait for three" for spec in specs[:3]}
    trivial.prepare(specs, {**faults, specs[-1].run_id: "wait for go"})
    jobs = [Job(workspace.run(spec.run_id), spec, f"job-{number}") for number, spec in enumerate(specs)]
    for job in jobs:
        job.run.create(job.spec)
    executor = RayExecutor(workspace, cluster.address)
    assert executor.has_room(run.spec)
    handles = executor.submit(jobs)
    assert not executor.has_room(run.spec)
    actors: set[int] = set()

    def look() -> list[JobState]:
        actors.update(members(cluster))
        return executor.poll(handles)

    wait_until(lambda: look() == [JobState.RUNNING] * 3 + [JobState.WAITING] * 5)
    (trivial.folder / "three").touch()
    ended = [JobState.ENDED] * 7
    wait_until(lambda: look() == [*ended, JobState.RUNNING])
    assert len(actors) == 3  # as many as cores

    following = RayExecutor(workspace, cluster.address)
    monkeypatch.setattr(ray_groups, "ANSWER_SECONDS", 0.0)  # actors are always late: the run is held, so they are heard
    (adopted,) = following.adopt([job.run for job in jobs])
    assert adopted == handles[-1]
    assert following.poll([adopted]) == [JobState.RUNNING]
    (trivial.folder / "go").touch()
    wait_until(lambda: following.poll([adopted]) == [JobState.ENDED])
    wait_until(lambda: look() == [*ended, JobState.ENDED])
    ray.shutdown()
    assert trivial.executed() == {spec.run_id: trivial.once for spec in specs}
    wait_until(lambda: nothing_is_left(cluster))


def test_runs_that_need_something_else_are_not_starved_by_those_that_take_over_from_each_other(
    cluster: Any, scaling: Any, write_sweep: WriteSweep, trivial: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = "resources: [{when: {size: large}, set: {nodes: 2, priority: 1}}, {set: {"
    path = write_sweep(("size: [small]", "size: [small, large]"), ("resources: [{set: {", pairs), trivial.runs(6))
    workspace = Workspace(scaling.workspace)
    runs = make_plan(Sweep.load(path), workspace).runs
    trivial.prepare([run.spec for run in runs], {})
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    said = scaling.run("submit", path, "--on", "ray")
    assert said.code == 0, said
    assert {run_id: set(steps) for run_id, steps in trivial.executed().items()} == {
        run.run_id: set(trivial.once) for run in runs
    }
    wait_until(lambda: nothing_is_left(cluster))


def test_what_was_trained_here_is_measured_there_and_not_trained_again(
    cluster: Any, scaling: Any, write_sweep: WriteSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_sweep(("tokens: [2560, 5120]", "tokens: [2560]"))
    assert scaling("submit", path).code == 0
    workspace = Workspace(scaling.workspace)
    (row,) = workspace.sweep("tiny").plan()["runs"]
    run = workspace.run(row["run_id"])
    trained = [row for row in run.history() if "train/loss" in row]
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    said = scaling.run("evaluate", path, "evaluations.rare.kind=token-frequency", "--on", "ray")
    assert said.code == 0, said
    assert "evaluation/rare/loss" in run.history()[-1]
    assert [row for row in run.history() if "train/loss" in row] == trained
    verdict = run.verdict(2)
    assert verdict is not None
    assert verdict.state is State.COMPLETED
    wait_until(lambda: nothing_is_left(cluster))


def test_the_code_that_submits_is_the_code_that_trains_wherever_it_lies(
    cluster: Any, scaling: Any, write_sweep: WriteSweep, tmp_path: Path
) -> None:
    from orchestrator.executors.ray_runtime import PACKAGES

    code = tmp_path / "code"
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(Path(__file__).parents[2] / package, code / package, ignore=ignored)
    with open(code / "xlstm" / "training" / "attempt.py", "a") as trainer:
        trainer.write(ANOTHER_TRAINER)
    path = write_sweep(("tokens: [2560, 5120]", "tokens: [2560]"))
    workspace = Workspace(scaling.workspace)
    environment = os.environ | {
        "RAY_ADDRESS": cluster.address,
        "PYTHONPATH": str(code),
        WORKSPACE_VARIABLE: str(workspace.root),
    }
    command = [sys.executable, "-m", "orchestrator.cli", "submit", path, "--on", "ray", "--detach"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=300)
    shutil.rmtree(code)
    (planned,) = make_plan(Sweep.load(path), workspace).runs
    run = workspace.run(planned.run_id)
    wait_until(lambda: run.status().state is State.COMPLETED)
    said = "".join(log.read_text() for log in run.logs(1))
    assert "trained by" in said
    assert str(code) not in said
    wait_until(lambda: nothing_is_left(cluster))


def test_a_submission_leaves_no_secret_in_the_workspace_or_in_the_clusters_logs(
    cluster: Any, scaling: Any, write_sweep: WriteSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://alice:s3cretpw@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("SOME_API_KEY", "k3y-of-some-service")
    path = write_sweep(("tokens: [2560, 5120]", "tokens: [2560]"))
    said = scaling.run("submit", path, "--on", "ray", "--detach")
    assert said.code == 0, said
    (planned,) = make_plan(Sweep.load(path), Workspace(scaling.workspace)).runs
    run = Workspace(scaling.workspace).run(planned.run_id)
    wait_until(lambda: run.status().state is State.COMPLETED)
    wait_until(lambda: nothing_is_left(cluster))
    session = Path(cluster.head_node.get_session_dir_path())
    texts = {"printed": (said.out + said.err).encode()}
    for folder in (tmp_path, session):
        for place, _, names in os.walk(folder):
            for name in names:
                with suppress(OSError):  # the cluster lives, and removes what it needs no more; or it is a socket
                    texts[os.path.join(place, name)] = Path(place, name).read_bytes()
    assert any(name.startswith(str(session)) for name in texts)
    assert [name for name, text in texts.items() if b"s3cretpw" in text or b"k3y-of-some-service" in text] == []


def test_two_runs_that_say_so_hold_the_one_gpu_of_a_node_at_the_same_time(
    cluster: Any, planned: Callable[..., tuple[Workspace, PlannedRun]]
) -> None:
    """Ray takes our word for the GPU; the trainers, which find none, fail seconds later."""
    import ray

    from orchestrator.executors.ray import RayExecutor
    from xlstm.run.executor import Job

    node = add_node(cluster, num_cpus=2, num_gpus=1)
    try:
        workspace, run = planned("shared", 4000, "runs_per_device: 2, ")
        directories = []
        for seed in range(2):
            physics = run.spec.physics.model_copy(update={"seed": seed})
            spec = RunSpec(physics=physics, execution=run.spec.execution)
            directories.append((workspace.run(spec.run_id), spec))
            directories[-1][0].create(spec)
        executor = RayExecutor(workspace, cluster.address)
        handles = executor.submit(
            [Job(directory, spec, f"half-{seed}") for seed, (directory, spec) in enumerate(directories)]
        )
        wait_until(lambda: "GPU" not in ray.available_resources())  # both halves are held
        wait_until(lambda: executor.poll(handles) and all(directory.launch(1) for directory, _ in directories))
        launches = [directory.launch(1) for directory, _ in directories]
        assert [launch.execution.device for launch in launches if launch] == ["cuda", "cuda"]
        executor.cancel(handles, grace_seconds=0)
        wait_until(lambda: nothing_is_left(cluster))
    finally:
        cluster.remove_node(node)


def test_what_the_cluster_can_never_hold_is_refused_before_anything_starts(
    cluster: Any, planned: Callable[..., tuple[Workspace, PlannedRun]]
) -> None:
    from orchestrator.executors.ray import RayExecutor
    from xlstm.run.executor import Job

    workspace, run = planned("wide", 10, "devices: 4, ")
    with pytest.raises(InputError, match="asks for 1 nodes"):
        RayExecutor(workspace, cluster.address).submit([Job(workspace.run(run.run_id), run.spec, "t")])


def test_a_workspace_that_the_nodes_do_not_see_is_refused_before_anything_starts(cluster: Any, tmp_path: Path) -> None:
    from orchestrator.executors.ray import RayExecutor

    # A folder that this process reaches by a descriptor of its own, and no other process by that path.
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(InputError, match=f"cannot read /proc/self/fd/{descriptor}; set SCALING_WORKSPACE"):
            RayExecutor(Workspace(Path(f"/proc/self/fd/{descriptor}")), cluster.address)
    finally:
        os.close(descriptor)
