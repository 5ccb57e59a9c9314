"""What may happen to a job on a cluster happens here; the run ends as if it had not."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from tiny_runs import job, last_step, losses, make_run, processes_of, story, wait_for, wait_until

from orchestrator.executors.contract import Handle, JobState
from orchestrator.executors.local import LocalExecutor
from slurm.executor import SlurmExecutor
from slurm.testing import Cluster
from xlstm.processes import tagged
from xlstm.records import RunDirectory, State, Workspace

pytestmark = pytest.mark.serial

STEPS, EVERY = 120, 10
"""A few seconds of training, and how often it is saved."""


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, float]]:
    """Losses of the run that every test here disturbs, trained on this machine with as many ranks."""
    run = make_run(Workspace(tmp_path_factory.mktemp("undisturbed")), steps=STEPS, devices=2, checkpoint_every=EVERY)
    local = LocalExecutor()
    handles = local.submit([job(run)])
    wait_until(lambda: local.poll(handles) == [JobState.ENDED])
    assert run.status().state is State.COMPLETED
    return losses(run)


def submitted(workspace: Workspace) -> tuple[SlurmExecutor, RunDirectory, Handle]:
    """The run on two nodes, handed to Slurm, past its second checkpoint."""
    run = make_run(workspace, steps=STEPS, nodes=2, checkpoint_every=EVERY)
    executor = SlurmExecutor(workspace, "faults")
    (handle,) = executor.submit([job(run)])
    wait_until(lambda: last_step(run) > 2 * EVERY, lambda: story(run))
    return executor, run, handle


def wait_for_attempt(run: RunDirectory, number: int) -> None:
    """Wait until an attempt trains."""
    wait_until(lambda: any(row.get("attempt") == number for row in run.metrics()), lambda: story(run))


def no_step_lost(run: RunDirectory) -> bool:
    """Whether every attempt went on from the last checkpoint that was complete before it."""
    for resume in run.events("resume"):
        earlier = [
            row["step"] for row in all_rows(run) if row.get("attempt", 0) < resume["attempt"] and "event" not in row
        ]
        if resume["step"] < max(earlier) // EVERY * EVERY - EVERY:
            return False
    return True


def all_rows(run: RunDirectory) -> list[dict[str, int]]:
    return [json.loads(line) for line in run.metrics_file.read_text().splitlines()]


def test_a_requeued_job_goes_on_from_its_checkpoint(
    cluster: Cluster, workspace: Workspace, undisturbed: list[tuple[int, float]]
) -> None:
    _, run, handle = submitted(workspace)
    cluster.command("scontrol", "requeue", handle.job)
    wait_for_attempt(run, 2)
    wait_for(run, State.COMPLETED)
    assert losses(run) == undisturbed
    assert no_step_lost(run)
    assert run.status().attempt == 2


def test_five_signals_ahead_of_the_limit_and_a_run_still_ends_complete(
    cluster: Cluster, workspace: Workspace, undisturbed: list[tuple[int, float]]
) -> None:
    _, run, handle = submitted(workspace)
    for attempt in range(1, 6):
        wait_for_attempt(run, attempt)
        cluster.command("scancel", "--signal=USR2", handle.job)
        wait_until(lambda attempt=attempt: run.verdict(attempt) is not None, lambda: story(run))
        verdict = run.verdict(attempt)
        assert verdict is not None
        assert verdict.state is State.PREEMPTED
        assert run.has_checkpoint(verdict.step or 0)
    wait_for(run, State.COMPLETED, seconds=180)
    assert losses(run) == undisturbed
    assert run.status().attempt == 6


def test_a_time_limit_too_short_costs_another_turn_in_the_queue_and_nothing_else(
    cluster: Cluster, workspace: Workspace
) -> None:
    options = {"time": 1, "signal_seconds": 50}
    run = make_run(workspace, steps=3000, nodes=2, checkpoint_every=1000, slurm=options)
    executor = SlurmExecutor(workspace, "limit")
    handles = executor.submit([job(run)])
    wait_until(lambda: run.status().attempt == 2, lambda: story(run), seconds=150)
    verdict = run.verdict(1)
    assert verdict is not None
    assert verdict.state is State.PREEMPTED
    (resume,) = wait_events(run)
    assert resume["step"] == verdict.step
    executor.cancel(handles, grace_seconds=20)
    assert run.status().state is State.CANCELLED


def wait_events(run: RunDirectory) -> list[dict[str, int]]:
    wait_until(lambda: bool(run.events("resume")), lambda: story(run))
    return run.events("resume")


def test_a_node_that_dies_takes_no_run_with_it(
    cluster: Cluster, workspace: Workspace, undisturbed: list[tuple[int, float]]
) -> None:
    _, run, _ = submitted(workspace)
    cluster.kill_node("n2")
    wait_until(lambda: not processes_of(workspace), lambda: "\n".join(processes_of(workspace)))
    cluster.restore_node("n2")
    wait_for(run, State.COMPLETED)
    assert losses(run) == undisturbed
    assert no_step_lost(run)


def test_a_controller_that_dies_and_comes_back_finds_the_run_trained(
    cluster: Cluster, workspace: Workspace, undisturbed: list[tuple[int, float]]
) -> None:
    executor, run, handle = submitted(workspace)
    cluster.kill_controller()
    assert executor.poll([handle]) == [JobState.RUNNING]
    time.sleep(2.0)
    cluster.start_controller()
    wait_for(run, State.COMPLETED)
    wait_until(lambda: executor.poll([handle]) == [JobState.ENDED])
    assert losses(run) == undisturbed
    assert run.status().attempt == 1


def test_a_job_cancelled_in_slurm_is_a_cancelled_run_that_can_be_submitted_again(
    cluster: Cluster, workspace: Workspace, undisturbed: list[tuple[int, float]]
) -> None:
    executor, run, handle = submitted(workspace)
    cluster.command("scancel", handle.job)
    wait_until(lambda: executor.poll([handle]) == [JobState.ENDED], lambda: story(run))
    executor.reconcile()
    assert run.status().state is State.CANCELLED
    assert "cancelled in Slurm" in run.status().reason
    assert not processes_of(workspace)
    executor.submit([job(run)])
    wait_for(run, State.COMPLETED)
    assert losses(run) == undisturbed


def test_cancel_leaves_a_checkpoint_and_neither_jobs_nor_processes(cluster: Cluster, workspace: Workspace) -> None:
    executor, run, handle = submitted(workspace)
    executor.cancel([handle])
    assert run.status().state is State.CANCELLED
    verdict = run.verdict(1)
    assert verdict is not None
    assert verdict.state is State.PREEMPTED
    assert run.has_checkpoint(verdict.step or 0)
    assert not cluster.command("squeue", "--noheader").strip()
    assert not processes_of(workspace)


def test_workers_killed_are_tried_again_in_the_same_allocation(
    cluster: Cluster, workspace: Workspace, undisturbed: list[tuple[int, float]]
) -> None:
    _, run, handle = submitted(workspace)
    launch = run.launch(1)
    assert launch is not None
    worker = next(pid for pid in tagged(launch.token) if b"xlstm.training" in command_line(pid).split(b"\0")[:3])
    os.kill(worker, signal.SIGKILL)
    wait_for(run, State.COMPLETED)
    assert run.status().attempt == 2
    assert losses(run) == undisturbed
    assert "Restarts=0" in cluster.command("scontrol", "show", "job", handle.job)


def command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()
