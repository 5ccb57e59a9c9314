"""What is lost on a real Ray cluster, a node, a controller or the head, and a sweep that is cancelled there."""

import os
import signal
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from gates import held_at
from ray_processes import nothing_is_left, raylet_of, start_cluster, submits, trainers_past
from waiting import wait_until

from orchestrator.execution.controller import Controller
from orchestrator.executors.local import LocalExecutor
from orchestrator.planning.plan import make_plan
from orchestrator.standing.status import look
from sweeps.sweep import Sweep
from xlstm.data import prepare
from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.processes import tagged
from xlstm.run.records import Metric, State

WriteSweep = Callable[..., str]

pytestmark = [pytest.mark.serial, pytest.mark.slow, pytest.mark.usefixtures("gated")]


def losses(run: RunDirectory) -> list[tuple[int, float]]:
    return [(row["step"], row[Metric.LOSS]) for row in run.metrics() if Metric.LOSS in row]


def test_a_gang_survives_a_lost_node_and_a_lost_controller_and_equals_the_run_trained_here(
    cluster: Any, scaling: Any, write_sweep: WriteSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 160
    changed = [
        ("tokens: [2560, 5120]", f"tokens: [{steps * 256}]"),
        ("checkpoint_every: 5", "checkpoint_every: 20"),
    ]
    here = Workspace(scaling.workspace.parent / "here")
    made = make_plan(Sweep.load(write_sweep(*changed, ("set: {", "set: {devices: 2, "))), here)
    (planned,) = made.launches
    prepare(planned.spec.physics.data, planned.spec.execution.data_paths, here)
    alone = Controller(here, LocalExecutor(gpus=0, cores=2), made.launches)()
    assert alone[planned.run_id].state is State.COMPLETED

    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    path = write_sweep(*changed, ("set: {", "set: {nodes: 2, "))
    there = Workspace(scaling.workspace)
    run = there.run(planned.run_id)
    with held_at(there, 90):  # it must not end before the next controller has come
        with held_at(there, 30):
            said = scaling.run("submit", path, "--on", "ray", "--detach")
            assert said.code == 0, said
            assert "the cluster carries out tiny" in said.out
            trainers = trainers_past(run, 25)
            node = raylet_of(cluster, trainers[-1])
            cluster.remove_node(node, allow_graceful=False)
            wait_until(lambda: not any(psutil.pid_exists(pid) for pid in trainers))

        trainers_past(run, 80)
        log = there.sweep("tiny").submission_log
        adoptions = log.read_text().count(f"{run.run_id}: adopted")
        (controller,) = [process for process in psutil.process_iter() if submits(process, there)]
        os.kill(controller.ppid(), signal.SIGKILL)
        wait_until(lambda: not controller.is_running())
        wait_until(lambda: log.read_text().count(f"{run.run_id}: adopted") > adoptions)
    wait_until(lambda: run.status().state is State.COMPLETED)

    assert run.status().attempt == 2  # the node cost one, the controller none
    assert losses(run) == losses(here.run(run.run_id))
    result, expected = run.result(), here.run(run.run_id).result()
    assert result is not None
    assert expected is not None
    assert result.validation == expected.validation
    ledger = look(there, "tiny").ledger
    assert 0 < ledger.wasted.tokens == ledger.spent.tokens - steps * 256
    wait_until(lambda: not any(submits(process, there) for process in psutil.process_iter()))
    wait_until(lambda: nothing_is_left(cluster))


def test_what_a_lost_controller_had_asked_for_leaves_as_soon_as_it_is_granted(
    cluster: Any, scaling: Any, write_sweep: WriteSweep, trivial: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from orchestrator.executors.ray_runtime import connect

    path = write_sweep(trivial.runs(6))
    workspace = Workspace(scaling.workspace)
    runs = make_plan(Sweep.load(path), workspace).runs
    trivial.prepare([run.spec for run in runs], {run.run_id: "wait for go" for run in runs})
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    first = scaling.start("submit", path, "--on", "ray")
    directories = [workspace.run(run.run_id) for run in runs]
    wait_until(lambda: sum(run.path.exists() and run.status().state is State.RUNNING for run in directories) == 3)
    connect(cluster.address)
    wait_until(lambda: len(ray.util.list_named_actors(all_namespaces=True)) == 6)  # three carry, three wait
    ray.shutdown()
    first.kill()
    first.wait()
    (trivial.folder / "go").touch()
    wait_until(lambda: nothing_is_left(cluster))
    ray.shutdown()
    said = scaling.run("submit", path, "--on", "ray")
    assert said.code == 0, said
    assert trivial.executed() == {run.run_id: trivial.once for run in runs}


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
    trivial.prepare([run.spec for run in made.runs], {trunk.run_id: "wait for go"})
    process = scaling.start("submit", path, "--on", "ray")
    steps = trivial.folder / "executed.log"
    wait_until(
        lambda: process.poll() is not None or (steps.exists() and len(trivial.executed().get(trunk.run_id, ())) > 1),
        lambda: str([run.status() for run in (trunk, *forks)]),
    )
    assert process.poll() is None, process.communicate()
    assert {fork.status().state for fork in forks} == {State.QUEUED}
    cancelling = scaling.start("cancel", "tiny")
    wait_until(trunk.cancel_requested)
    (trivial.folder / "go").touch()
    out, err = cancelling.communicate(timeout=300)
    assert (cancelling.returncode, out) == (0, "2 runs cancelled\n"), err
    assert process.wait(timeout=300) == 0
    assert [run.status().state for run in (trunk, *forks)] == [State.COMPLETED, State.CANCELLED, State.CANCELLED]
    assert set(trivial.executed()) == {trunk.run_id}
    wait_until(lambda: nothing_is_left(cluster))


def test_when_the_head_is_lost_the_next_submission_goes_on_in_a_new_cluster(
    cluster: Any, scaling: Any, write_sweep: WriteSweep, trivial: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last test here, as it takes the cluster down."""
    import ray

    path = write_sweep(trivial.runs(2))
    workspace = Workspace(scaling.workspace)
    first, second = make_plan(Sweep.load(path), workspace).runs
    trivial.prepare([first.spec, second.spec], {second.run_id: "wait for go"})
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    assert scaling.run("submit", path, "--on", "ray", "--detach").code == 0
    wait_until(lambda: workspace.run(first.run_id).status().state is State.COMPLETED)
    wait_until(lambda: workspace.run(second.run_id).is_held())
    lease = workspace.run(second.run_id).status().lease
    assert lease is not None
    wait_until(lambda: trivial.executed().get(second.run_id) == trivial.once[:2])
    ray.shutdown()
    cluster.shutdown()
    wait_until(lambda: not [*tagged(lease.token), *(p for p in psutil.process_iter() if submits(p, workspace))])
    assert scaling("status", "tiny", "--json").json["runs"][1]["state"] in ("PREEMPTED", "QUEUED")

    (trivial.folder / "go").touch()
    anew = start_cluster({"num_cpus": 1, "include_dashboard": False})
    try:
        monkeypatch.setenv("RAY_ADDRESS", anew.address)
        said = scaling.run("submit", path, "--on", "ray")
    finally:
        anew.shutdown()
    assert said.code == 0, said
    assert trivial.executed() == {first.run_id: trivial.once, second.run_id: trivial.once}
