"""The Ray executor on a real cluster: several raylets on this machine."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.controller import Controller, PlannedRun
from orchestrator.errors import InputError
from orchestrator.executors.local import LocalExecutor
from orchestrator.plan import make_plan
from sweeps.sweep import Sweep
from xlstm.data import prepare
from xlstm.processes import tagged
from xlstm.records import Metric, RunDirectory, State, Workspace

WriteSweep = Callable[..., str]

pytestmark = [pytest.mark.serial, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without cores, and three nodes with one core each."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
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


def raylet_of(cluster: Any, pid: int) -> Any:
    """The node of the cluster whose raylet is an ancestor of a process."""
    ancestors = {parent.pid for parent in psutil.Process(pid).parents()}
    for node in cluster.worker_nodes:
        if any(one.process.pid in ancestors for one in node.all_processes["raylet"]):
            return node
    raise AssertionError(f"process {pid} belongs to no raylet")


def test_a_gang_of_two_nodes_survives_the_loss_of_one_and_equals_two_ranks_here(
    cluster: Any, planned: Callable[..., tuple[Workspace, PlannedRun]]
) -> None:
    from orchestrator.executors.ray import RayExecutor

    steps = 400
    here, alone = planned("here", steps, "devices: 2, ")
    assert Controller(here, LocalExecutor(gpus=0, cores=2), [alone])()[alone.run_id].state is State.COMPLETED

    there, run = planned("there", steps, "nodes: 2, ")
    assert run.run_id == alone.run_id
    directory = there.run(run.run_id)
    lost: list[int] = []

    def lose_a_node_in_mid_run() -> None:
        status = directory.status()
        begun = any(row["step"] >= 20 and row["attempt"] == 1 for row in directory.metrics())
        if lost or not begun or status.lease is None:
            return
        workers = [pid for pid in tagged(status.lease.token) if "xlstm.training" in psutil.Process(pid).cmdline()]
        node = raylet_of(cluster, workers[-1])
        lost.extend(workers)
        cluster.remove_node(node, allow_graceful=False)

    executor = RayExecutor(there, cluster.address)
    statuses = Controller(there, executor, [run], tick=lose_a_node_in_mid_run)()
    assert statuses[run.run_id].state is State.COMPLETED, statuses
    assert len(lost) == 4  # a launcher and a worker on each of two nodes
    assert statuses[run.run_id].attempt > 1
    assert not any(psutil.pid_exists(pid) for pid in lost)
    assert losses(directory) == losses(here.run(alone.run_id))
    result, expected = directory.result(), here.run(alone.run_id).result()
    assert result is not None
    assert expected is not None
    assert result.validation == expected.validation
    cluster.add_node(num_cpus=1)


def test_a_cancelled_job_leaves_a_checkpoint_and_no_process(
    cluster: Any, planned: Callable[..., tuple[Workspace, PlannedRun]]
) -> None:
    from orchestrator.executors.contract import Job
    from orchestrator.executors.ray import RayExecutor

    workspace, run = planned("cancelled", 4000, "")
    directory = workspace.run(run.run_id)
    directory.create(run.spec)
    executor = RayExecutor(workspace, cluster.address)
    (handle,) = executor.submit([Job(directory, run.spec, "token-of-the-cancelled")])
    deadline = time.monotonic() + 120
    while not directory.metrics():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    executor.cancel([handle])
    assert directory.status().state is State.PREEMPTED
    verdict = directory.verdict(1)
    assert verdict is not None
    assert verdict.step is not None
    assert directory.has_checkpoint(verdict.step)
    assert not list(tagged("token-of-the-cancelled"))


def test_what_the_cluster_can_never_hold_is_refused_before_anything_starts(
    cluster: Any, planned: Callable[..., tuple[Workspace, PlannedRun]]
) -> None:
    from orchestrator.executors.contract import Job
    from orchestrator.executors.ray import RayExecutor

    workspace, run = planned("wide", 10, "devices: 4, ")
    with pytest.raises(InputError, match="asks for 1 nodes"):
        RayExecutor(workspace, cluster.address).submit([Job(workspace.run(run.run_id), run.spec, "t")])


def test_a_workspace_that_the_nodes_do_not_see_is_refused(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator.executors import ray as executor

    # The nodes of this cluster share this machine's files, so one of them is asked for a file that is not there.
    monkeypatch.setattr(executor, "_sees", lambda probe: Path(probe + "-elsewhere").exists())
    with pytest.raises(InputError, match="cannot read"):
        executor.RayExecutor(Workspace(tmp_path / "w"), cluster.address)
