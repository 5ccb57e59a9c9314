"""The Ray executor on a real cluster: several raylets on this machine."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray_processes import members, nothing_is_left, raylet_of, submits, trainers_past
from waiting import wait_until

from orchestrator.errors import InputError
from orchestrator.execution.controller import Controller
from orchestrator.executors.local import LocalExecutor
from orchestrator.planning.plan import make_plan
from orchestrator.standing.status import look
from sweeps.sweep import Sweep
from xlstm.data import prepare
from xlstm.run.directory import WORKSPACE_VARIABLE, RunDirectory, Workspace
from xlstm.run.executor import PlannedRun
from xlstm.run.processes import tagged
from xlstm.run.records import Metric, State
from xlstm.run.spec import RunSpec

WriteSweep = Callable[..., str]

pytestmark = [pytest.mark.serial, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without cores, and three nodes with one core each."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    # A lost node is noticed after two seconds, not after twenty.
    notice = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": notice}
    made = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(3):
        made.add_node(num_cpus=1)
    yield made
    ray.shutdown()
    made.shutdown()


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


def losses(run: RunDirectory) -> list[tuple[int, float]]:
    return [(row["step"], row[Metric.LOSS]) for row in run.metrics() if Metric.LOSS in row]


def test_a_sweep_of_gangs_survives_a_lost_node_and_a_lost_controller_and_equals_the_one_trained_here(
    cluster: Any, scaling: Any, write_sweep: WriteSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = [
        ("tokens: [2560, 5120]", f"tokens: [{100 * 256}, {120 * 256}]"),
        ("checkpoint_every: 5", "checkpoint_every: 20"),
    ]
    here = Workspace(scaling.workspace.parent / "here")
    made = make_plan(Sweep.load(write_sweep(*changed, ("set: {", "set: {devices: 2, "))), here)
    for run in made.launches:
        prepare(run.spec.physics.data, run.spec.execution.data_paths, here)
    alone = Controller(here, LocalExecutor(gpus=0, cores=2), made.launches)()
    assert {status.state for status in alone.values()} == {State.COMPLETED}

    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    path = write_sweep(*changed, ("set: {", "set: {nodes: 2, "))
    said = scaling.run("submit", path, "--on", "ray", "--detach")
    assert said.code == 0, said
    assert "the cluster carries out tiny" in said.out
    there = Workspace(scaling.workspace)
    first, second = (there.run(run.run_id) for run in made.runs)

    trainers = trainers_past(first, 25)
    node = raylet_of(cluster, trainers[-1])
    cluster.remove_node(node, allow_graceful=False)
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in trainers))

    trainers = trainers_past(second, 10)
    (controller,) = [process for process in psutil.process_iter() if submits(process, there)]
    os.kill(controller.ppid(), signal.SIGKILL)
    wait_until(lambda: not controller.is_running())
    for pid in trainers:
        os.kill(pid, signal.SIGSTOP)  # it must not end before the next controller has come
    wait_until(lambda: f"{second.run_id}: adopted" in there.sweep("tiny").submission_log.read_text())
    for pid in trainers:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: all(there.run(run_id).status().state is State.COMPLETED for run_id in alone))

    assert first.status().attempt == 2
    assert second.status().attempt == 1
    for run in (first, second):
        assert losses(run) == losses(here.run(run.run_id))
        result, expected = run.result(), here.run(run.run_id).result()
        assert result is not None
        assert expected is not None
        assert result.validation == expected.validation
    ledger = look(there, "tiny").ledger
    assert 0 < ledger.wasted.tokens == ledger.spent.tokens - (100 + 120) * 256
    wait_until(lambda: not any(submits(process, there) for process in psutil.process_iter()))
    wait_until(lambda: nothing_is_left(cluster))
    cluster.add_node(num_cpus=1)


def test_a_cancelled_job_leaves_a_checkpoint_and_no_process(
    cluster: Any, planned: Callable[..., tuple[Workspace, PlannedRun]]
) -> None:
    from orchestrator.executors.ray import RayExecutor
    from xlstm.run.executor import Job, JobState

    workspace, run = planned("cancelled", 4000, "")
    directory = workspace.run(run.run_id)
    directory.create(run.spec)
    executor = RayExecutor(workspace, cluster.address)
    (handle,) = executor.submit([Job(directory, run.spec, "token-of-the-cancelled")])
    wait_until(lambda: executor.poll([handle]) == [JobState.RUNNING] and bool(directory.metrics()))
    executor.cancel([handle])
    assert directory.status().state is State.PREEMPTED
    verdict = directory.verdict(1)
    assert verdict is not None
    assert verdict.step is not None
    assert directory.has_checkpoint(verdict.step)
    assert not list(tagged("token-of-the-cancelled"))
    wait_until(lambda: nothing_is_left(cluster))


def test_a_gang_carries_one_run_after_another_and_the_next_controller_finds_the_latest(
    cluster: Any, planned: Callable[..., tuple[Workspace, PlannedRun]], trivial: Any
) -> None:
    import ray

    from orchestrator.executors.ray import RayExecutor
    from xlstm.run.executor import Job, JobState

    workspace, run = planned("carried", len(trivial.once), "")
    ray.shutdown()  # what starts from here on finds the trivial trainer
    specs = [
        RunSpec(physics=run.spec.physics.model_copy(update={"seed": seed}), execution=run.spec.execution)
        for seed in range(8)
    ]
    trivial.prepare(specs, {specs[-1].run_id: "wait"})
    jobs = [Job(workspace.run(spec.run_id), spec, f"job-{number}") for number, spec in enumerate(specs)]
    for job in jobs:
        job.run.create(job.spec)
    executor = RayExecutor(workspace, cluster.address)
    handles = executor.submit(jobs)
    actors: set[int] = set()

    def look() -> list[JobState]:
        actors.update(members(cluster))
        return executor.poll(handles)

    ended = [JobState.ENDED] * 7
    wait_until(lambda: look() == [*ended, JobState.RUNNING])
    assert len(actors) == 3  # as many as cores

    following = RayExecutor(workspace, cluster.address)
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


def test_what_a_lost_controller_had_asked_for_leaves_as_soon_as_it_is_granted(
    cluster: Any, scaling: Any, write_sweep: WriteSweep, trivial: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from orchestrator.executors.ray_runtime import connect

    path = write_sweep(trivial.runs(10))
    workspace = Workspace(scaling.workspace)
    runs = make_plan(Sweep.load(path), workspace).runs
    trivial.prepare([run.spec for run in runs], {run.run_id: "wait" for run in runs})
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    monkeypatch.setenv(WORKSPACE_VARIABLE, str(workspace.root))
    command = [sys.executable, "-m", "orchestrator.cli", "submit", path, "--on", "ray"]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    directories = [workspace.run(run.run_id) for run in runs]
    wait_until(lambda: sum(run.path.exists() and run.status().state is State.RUNNING for run in directories) == 3)
    connect(cluster.address)
    assert len(ray.util.list_named_actors(all_namespaces=True)) == 10  # three carry, seven wait
    ray.shutdown()
    first.kill()
    first.wait()
    (trivial.folder / "go").touch()
    wait_until(lambda: nothing_is_left(cluster))
    ray.shutdown()
    said = scaling.run("submit", path, "--on", "ray")
    assert said.code == 0, said
    assert trivial.executed() == {run.run_id: trivial.once for run in runs}


def test_the_code_that_submits_is_the_code_that_trains_wherever_it_lies(
    cluster: Any, scaling: Any, write_sweep: WriteSweep, tmp_path: Path
) -> None:
    from orchestrator.executors.ray_runtime import PACKAGES

    code = tmp_path / "code"
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(Path(__file__).parents[2] / package, code / package, ignore=ignored)
    (code / "xlstm" / "training" / "__init__.py").write_text(
        '"""Another trainer."""\nprint("trained by", __file__, flush=True)\n'
    )
    path = write_sweep()
    workspace = Workspace(scaling.workspace)
    environment = os.environ | {
        "RAY_ADDRESS": cluster.address,
        "PYTHONPATH": str(code),
        WORKSPACE_VARIABLE: str(workspace.root),
    }
    command = [sys.executable, "-m", "orchestrator.cli", "submit", path, "--on", "ray", "--detach"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=300)
    shutil.rmtree(code)
    runs = [workspace.run(run.run_id) for run in make_plan(Sweep.load(path), workspace).runs]
    wait_until(lambda: all(run.status().state is State.COMPLETED for run in runs))
    for run in runs:
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
    files = [path for folder in (tmp_path, session) for path in folder.rglob("*") if path.is_file()]
    texts = {str(path): path.read_bytes() for path in files} | {"printed": (said.out + said.err).encode()}
    assert [name for name, text in texts.items() if b"s3cretpw" in text or b"k3y-of-some-service" in text] == []


def test_two_runs_that_say_so_hold_the_one_gpu_of_a_node_at_the_same_time(
    cluster: Any, planned: Callable[..., tuple[Workspace, PlannedRun]]
) -> None:
    """Ray takes our word for the GPU; the trainers, which find none, fail seconds later."""
    import ray

    from orchestrator.executors.ray import RayExecutor
    from xlstm.run.executor import Job

    node = cluster.add_node(num_cpus=2, num_gpus=1)
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
        wait_until(lambda: all(directory.launch(1) for directory, _ in directories))
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


def test_when_the_head_is_lost_the_next_submission_goes_on_in_a_new_cluster(
    cluster: Any, scaling: Any, write_sweep: WriteSweep, trivial: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray.cluster_utils import Cluster

    path = write_sweep(trivial.runs(2))
    workspace = Workspace(scaling.workspace)
    first, second = make_plan(Sweep.load(path), workspace).runs
    trivial.prepare([first.spec, second.spec], {second.run_id: "wait"})
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    assert scaling.run("submit", path, "--on", "ray", "--detach").code == 0
    wait_until(lambda: workspace.run(first.run_id).status().state is State.COMPLETED)
    wait_until(lambda: workspace.run(second.run_id).is_held())
    lease = workspace.run(second.run_id).status().lease
    assert lease is not None
    wait_until(lambda: second.run_id in trivial.executed())
    ray.shutdown()
    cluster.shutdown()
    wait_until(lambda: not [*tagged(lease.token), *(p for p in psutil.process_iter() if submits(p, workspace))])
    assert scaling("status", "tiny", "--json").json["runs"][1]["state"] in ("PREEMPTED", "QUEUED")

    (trivial.folder / "go").touch()
    anew = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        monkeypatch.setenv("RAY_ADDRESS", anew.address)
        said = scaling.run("submit", path, "--on", "ray")
    finally:
        anew.shutdown()
    assert said.code == 0, said
    assert trivial.executed() == {first.run_id: trivial.once, second.run_id: trivial.once}


def test_a_sweep_that_is_cancelled_while_its_trunk_trains_starts_no_fork(
    cluster: Any, scaling: Any, write_sweep: WriteSweep, trivial: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trunk ends just then, which is what its forks had waited for."""
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    path = write_sweep(
        ("warmup_steps: 2", "warmup_steps: 2, schedule: wsd, decay_fraction: 0.2"),
        ("tokens: [2560, 5120]", "tokens: [2560, 5120, 20480]"),
    )
    made = make_plan(Sweep.load(path), Workspace(scaling.workspace))
    trunk, *forks = (made.workspace.run(run.run_id) for run in made.runs)
    trivial.prepare([run.spec for run in made.runs], {trunk.run_id: "wait"})
    process = scaling.start("submit", path, "--on", "ray")
    steps = trivial.folder / "executed.log"
    wait_until(
        lambda: process.poll() is not None or (steps.exists() and len(trivial.executed()[trunk.run_id]) > 1),
        lambda: str([run.status() for run in (trunk, *forks)]),
    )
    assert process.poll() is None, process.communicate()
    assert {fork.status().state for fork in forks} == {State.QUEUED}
    cancelling = scaling.start("cancel", "tiny")
    wait_until(trunk.cancel_requested)
    (trivial.folder / "go").touch()
    out, err = cancelling.communicate(timeout=240)
    assert (cancelling.returncode, out) == (0, "2 runs cancelled\n"), err
    assert process.wait(timeout=240) == 0
    assert [run.status().state for run in (trunk, *forks)] == [State.COMPLETED, State.CANCELLED, State.CANCELLED]
    assert set(trivial.executed()) == {trunk.run_id}
    wait_until(lambda: nothing_is_left(cluster))
