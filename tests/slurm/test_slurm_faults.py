"""What may happen to a job on a cluster happens here; the run ends as if it had not."""

import functools
import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster
from gates import held_at
from tiny_runs import job, last_step, losses, make_run, processes_of, story, wait_for
from waiting import wait_until

from orchestrator.executors.local import LocalExecutor
from slurm.executor import SlurmExecutor
from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.executor import Handle, JobState
from xlstm.run.processes import tagged
from xlstm.run.records import State, Verdict

pytestmark = [pytest.mark.serial, pytest.mark.slow, pytest.mark.usefixtures("gated")]

STEPS, EVERY = 120, 10
"""A few seconds of training, and how often it is saved."""


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[tuple[int, float]]]:
    """Losses of the run that every test here disturbs, trained on this machine with so many ranks."""

    @functools.cache
    def train(ranks: int) -> list[tuple[int, float]]:
        alone = Workspace(tmp_path_factory.mktemp(f"undisturbed-{ranks}"))
        run = make_run(alone, steps=STEPS, devices=ranks, checkpoint_every=EVERY)
        local = LocalExecutor()
        handles = local.submit([job(run)])
        wait_until(lambda: local.poll(handles) == [JobState.ENDED])
        assert run.status().state is State.COMPLETED
        return losses(run)

    return train


def submitted(workspace: Workspace, **execution: Any) -> tuple[SlurmExecutor, RunDirectory, Handle]:
    """The run, on two nodes unless told, handed to Slurm and past its second checkpoint."""
    run = make_run(workspace, steps=STEPS, checkpoint_every=EVERY, **(execution or {"nodes": 2}))
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


def test_a_requeued_job_and_a_controller_that_was_away_cost_no_step(
    cluster: Cluster, workspace: Workspace, undisturbed: Callable[[int], list[tuple[int, float]]]
) -> None:
    with held_at(workspace, 25, 55):
        executor, run, handle = submitted(workspace)
        cluster.command("scontrol", "requeue", handle.job)
        wait_for_attempt(run, 2)
        cluster.kill_controller()
        assert executor.poll([handle]) == [JobState.RUNNING]
        cluster.start_controller()
    wait_for(run, State.COMPLETED)
    wait_until(lambda: executor.poll([handle]) == [JobState.ENDED], lambda: story(run))
    assert losses(run) == undisturbed(2)
    assert no_step_lost(run)
    assert run.status().attempt == 2


def test_five_signals_ahead_of_the_limit_and_a_dead_worker_and_a_run_still_ends_complete(
    cluster: Cluster, workspace: Workspace, undisturbed: Callable[[int], list[tuple[int, float]]]
) -> None:
    with held_at(workspace, *range(25, 85, 10)):  # a gate for each attempt that is disturbed
        _, run, handle = submitted(workspace, devices=1)
        for attempt in range(1, 6):
            wait_for_attempt(run, attempt)
            cluster.command("scancel", "--signal=USR2", handle.job)
            verdict = verdict_of(run, attempt)
            assert verdict.state is State.PREEMPTED
            assert run.has_checkpoint(verdict.step or 0)
        wait_for_attempt(run, 6)
        os.kill(a_trainer_of(run), signal.SIGKILL)
        wait_for_attempt(run, 7)
    wait_for(run, State.COMPLETED)
    assert verdict_of(run, 6).state is State.FAILED
    assert losses(run) == undisturbed(1)
    assert no_step_lost(run)
    # Each signal cost a turn in the queue; the crash was tried again where it happened.
    assert "Restarts=5" in cluster.command("scontrol", "show", "job", handle.job)


def test_a_time_limit_too_short_costs_another_turn_in_the_queue_and_nothing_else(
    cluster: Cluster, workspace: Workspace
) -> None:
    options = {"time": 1, "signal_seconds": 50}
    run = make_run(workspace, steps=1_000_000, checkpoint_every=1000, slurm=options)  # more than any minute holds
    executor = SlurmExecutor(workspace, "limit")
    (handle,) = executor.submit([job(run)])
    verdict = verdict_of(run, 1)
    assert verdict.state is State.PREEMPTED
    wait_until(lambda: bool(run.events("resume")), lambda: story(run))
    assert run.events("resume")[0]["step"] == verdict.step
    assert re.search("Restarts=[1-9]", cluster.command("scontrol", "show", "job", handle.job))


def test_a_node_that_dies_takes_no_run_with_it(
    cluster: Cluster, workspace: Workspace, undisturbed: Callable[[int], list[tuple[int, float]]]
) -> None:
    with held_at(workspace, 25):
        _, run, _ = submitted(workspace)
        cluster.kill_node("n2")
        wait_until(lambda: not processes_of(workspace), lambda: "\n".join(processes_of(workspace)))
    cluster.restore_node("n2")
    wait_for(run, State.COMPLETED)
    assert losses(run) == undisturbed(2)
    assert no_step_lost(run)


def test_a_cancelled_job_is_a_cancelled_run_and_cancelling_leaves_a_checkpoint_and_no_process(
    cluster: Cluster, workspace: Workspace
) -> None:
    def is_cancelled() -> bool:
        executor.reconcile()
        return run.status().state is State.CANCELLED

    with held_at(workspace, 25, 55):
        executor, run, handle = submitted(workspace)
        cluster.command("scancel", handle.job)
        wait_until(lambda: executor.poll([handle]) == [JobState.ENDED], lambda: story(run))
        wait_until(is_cancelled, lambda: story(run))
        assert "cancelled in Slurm" in run.status().reason
        wait_until(lambda: not processes_of(workspace), lambda: "\n".join(processes_of(workspace)))

        attempt = run.status().attempt + 1
        (again,) = executor.submit([job(run)])
        wait_for_attempt(run, attempt)
        assert executor.submit([job(run)]) == [again]
        executor.cancel([again])
    verdict = verdict_of(run, attempt)
    assert run.status().state is State.CANCELLED
    assert verdict.state is State.PREEMPTED
    assert run.has_checkpoint(verdict.step or 0)
    assert no_step_lost(run)
    wait_until(lambda: not cluster.command("squeue", "--noheader").strip())
    wait_until(lambda: not processes_of(workspace), lambda: "\n".join(processes_of(workspace)))


def verdict_of(run: RunDirectory, attempt: int) -> Verdict:
    """Wait for the verdict of an attempt."""
    wait_until(lambda: run.verdict(attempt) is not None, lambda: story(run))
    verdict = run.verdict(attempt)
    assert verdict is not None
    return verdict


def a_trainer_of(run: RunDirectory) -> int:
    """Process id of one rank of the attempt that is under way."""
    launch = run.launch(run.status().attempt)
    assert launch is not None
    lines = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in tagged(launch.token)}
    return next(pid for pid, line in lines.items() if b"xlstm.training" in line and b"distributed.run" not in line)


@pytest.mark.usefixtures("slow_checkpoints")
def test_cancelling_waits_for_a_checkpoint_that_takes_longer_than_a_minute(
    cluster: Cluster, workspace: Workspace
) -> None:
    run = make_run(workspace, steps=1_000_000, checkpoint_every=1_000_000)
    executor = SlurmExecutor(workspace, "slow")
    (handle,) = executor.submit([job(run)])
    wait_until(lambda: last_step(run) > 3, lambda: story(run))
    executor.cancel([handle])
    verdict = verdict_of(run, 1)
    assert verdict.state is State.PREEMPTED
    assert run.has_checkpoint(verdict.step or 0)
    assert run.status().state is State.CANCELLED
