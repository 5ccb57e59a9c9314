"""What reaches Slurm, and what does not: arrays, forks, lost answers, hostile names."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from cluster import Cluster
from tiny_runs import job, losses, make_run, story, wait_for
from waiting import wait_until

from slurm import commands
from slurm.batches import batches_of
from slurm.check import look
from slurm.commands import NoAccountingError, SlurmError
from slurm.executor import SlurmExecutor
from slurm.site import Site, SiteError
from xlstm.run.directory import Workspace
from xlstm.run.executor import JobState
from xlstm.run.records import Fork, State
from xlstm.run.spec import Schedule

pytestmark = pytest.mark.serial


@pytest.fixture
def nothing_starts(cluster: Cluster) -> None:
    """Jobs are taken, and wait."""
    cluster.command("scontrol", "update", "partitionname=main", "state=down")
    yield
    cluster.clear()
    cluster.command("scontrol", "update", "partitionname=main", "state=up")


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of Slurm's commands as they are called."""
    names: list[str] = []
    original = commands._call

    def call(command: Sequence[str], *, folder: Path | None = None) -> str:
        names.append(command[0])
        return original(command, folder=folder)

    monkeypatch.setattr(commands, "_call", call)
    return names


@pytest.mark.usefixtures("nothing_starts")
def test_a_thousand_runs_are_one_array_and_one_query(workspace: Workspace, called: list[str]) -> None:
    runs = [make_run(workspace, seed=seed) for seed in range(1000)]
    executor = SlurmExecutor(workspace, "many")
    handles = executor.submit([job(run) for run in runs])
    assert called.count("sbatch") == 1
    assert len({handle.job for handle in handles}) == 1000
    called.clear()
    assert executor.poll(handles) == [JobState.WAITING] * 1000
    assert called == ["squeue"]
    assert SlurmExecutor(workspace, "many").handles() == handles
    executor.cancel(handles)
    assert {run.status().state for run in runs} == {State.CANCELLED}
    assert executor.poll(handles) == [JobState.ENDED] * 1000


def test_an_array_no_longer_than_the_site_allows(nothing_starts: None, workspace: Workspace) -> None:
    executor = SlurmExecutor(workspace, "parts")
    executor._longest_array = 3
    executor.submit([job(make_run(workspace, seed=seed)) for seed in range(7)])
    assert [len(batch.contents().parts) for batch in batches_of(workspace, "parts")] == [3, 3, 1]


HOSTILE = "a b'c\"d $(touch pwned) `touch pwned`; touch pwned #\ntouch pwned\n* ü 漢"


@pytest.mark.slow
def test_a_hostile_workspace_trains_and_nothing_in_its_name_is_run(cluster: Cluster, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / HOSTILE)
    run = make_run(workspace)
    SlurmExecutor(workspace, "hostile").submit([job(run)])
    wait_for(run, State.COMPLETED)
    assert not list(tmp_path.rglob("pwned"))
    assert not Path("pwned").exists()
    (batch,) = batches_of(workspace, "hostile")
    assert "touch" not in batch.script.read_text()


@pytest.mark.parametrize("character", ["%", "\\"])
def test_a_workspace_below_which_slurm_cannot_write_is_refused(tmp_path: Path, character: str) -> None:
    workspace = Workspace(tmp_path / f"a{character}j")
    with pytest.raises(SiteError, match="Slurm cannot write logs below a path that holds"):
        SlurmExecutor(workspace, "refused").submit([job(make_run(workspace))])


@pytest.mark.parametrize("key", ["partition", "account", "qos", "constraint", "reservation", "gres", "mem", "time"])
def test_an_option_with_a_line_break_is_refused_before_anything_is_submitted(
    workspace: Workspace, called: list[str], key: str
) -> None:
    run = make_run(workspace, slurm={key: "x\ntouch pwned"})
    with pytest.raises(SiteError, match=f"resources.slurm.{key}: .*control character"):
        SlurmExecutor(workspace, "hostile").submit([job(run)])
    assert "sbatch" not in called
    assert run.status().state is State.PLANNED


def test_what_a_sweep_may_not_set_is_refused_with_the_valid_words(workspace: Workspace) -> None:
    with pytest.raises(SiteError, match=r"resources\.slurm\.setup: no such setting; valid here: account"):
        Site().for_run({"setup": "rm -rf /"})
    with pytest.raises(SiteError, match="output is set by this program"):
        Site().for_run({"sbatch": {"output": "x"}})


def test_settings_of_user_workspace_and_run_lie_over_each_other(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "scaling").mkdir(parents=True)
    (tmp_path / "home" / "scaling" / "config.yaml").write_text("slurm: {account: me, partition: slow, qos: low}")
    workspace.root.mkdir()
    (workspace.root / "config.yaml").write_text("slurm:\n  partition: fast\n  setup: [module load cuda]\n")
    site = Site.load(workspace).for_run({"qos": "high"})
    assert (site.account, site.partition, site.qos, site.setup) == ("me", "fast", "high", ["module load cuda"])


def test_a_misspelt_setting_is_named_with_its_file(workspace: Workspace) -> None:
    workspace.root.mkdir()
    (workspace.root / "config.yaml").write_text("slurm: {partitoin: fast}")
    with pytest.raises(SiteError, match=r"config\.yaml: slurm\.partitoin: no such setting; did you mean `partition`\?"):
        Site.load(workspace)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("slurms: {partition: fast}", r"config\.yaml: `slurms` is no key of this file; did you mean `slurm`\?"),
        ("partition: fast", r"config\.yaml: `partition` is no key of this file; valid here: slurm"),
        ("slurm: {time: 1 hour}", r"slurm\.time: '1 hour' is no limit of time; write minutes, such as 90"),
        ("slurm:\n  time: [", r"config\.yaml:2: not valid YAML: expected the node content"),
    ],
)
def test_what_would_be_passed_over_or_refused_by_sbatch_is_refused_first(
    workspace: Workspace, text: str, said: str
) -> None:
    workspace.root.mkdir()
    (workspace.root / "config.yaml").write_text(text)
    with pytest.raises(SiteError, match=said):
        Site.load(workspace)


@pytest.mark.parametrize("limit", ["90", 90, "90:30", "1:30:00", "2-12", "2-12:30", "2-12:30:00", "UNLIMITED"])
def test_a_limit_of_time_is_written_in_every_way_that_sbatch_reads(workspace: Workspace, limit: str | int) -> None:
    assert Site().for_run({"time": limit}).time == str(limit)


@pytest.mark.slow
def test_a_partition_that_there_is_not_is_missing(cluster: Cluster, workspace: Workspace) -> None:
    workspace.root.mkdir()
    (workspace.root / "config.yaml").write_text("slurm: {partition: mainn}")
    (settings,) = [finding for finding in look(workspace) if finding.what == "settings"]
    assert (settings.ok, settings.detail) == (False, "partition: there is no `mainn`; did you mean `main`?")


@pytest.mark.slow
def test_a_job_whose_number_got_lost_is_found_again_and_not_submitted_twice(
    cluster: Cluster, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.which("sbatch")
    forgetful = tmp_path / "bin" / "sbatch"
    forgetful.parent.mkdir()
    forgetful.write_text(
        f'#!/bin/sh\n{real} "$@" >/dev/null\necho "Socket timed out on send/recv operation" >&2\nexit 1\n'
    )
    forgetful.chmod(0o755)
    monkeypatch.setenv("PATH", f"{forgetful.parent}:{os.environ['PATH']}")
    run = make_run(workspace)
    (handle,) = SlurmExecutor(workspace, "lost").submit([job(run)])
    assert handle.job.isdigit()
    assert (
        len(
            cluster.command(
                "squeue", "--noheader", "--states=all", f"--name={SlurmExecutor(workspace, 'lost').job_name}"
            ).splitlines()
        )
        == 1
    )
    wait_for(run, State.COMPLETED)


def test_a_refused_job_says_what_sbatch_said(cluster: Cluster, workspace: Workspace) -> None:
    run = make_run(workspace, slurm={"partition": "no such place"})
    with pytest.raises(SlurmError, match="invalid partition"):
        SlurmExecutor(workspace, "refused").submit([job(run)])


@pytest.mark.usefixtures("nothing_starts")
def test_a_job_that_vanished_is_told_apart_without_accounting(
    cluster: Cluster, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(workspace)
    executor = SlurmExecutor(workspace, "gone")
    (handle,) = executor.submit([job(run)])
    cluster.command("scancel", handle.job)

    def no_accounts(numbers: Sequence[str]) -> list[commands.QueuedJob]:
        raise NoAccountingError("Slurm accounting storage is disabled")

    monkeypatch.setattr(commands, "sacct", no_accounts)
    executor.reconcile()
    assert run.status().state is State.CANCELLED


WSD = Schedule(kind="wsd", warmup_steps=3, decay_steps=4)


@pytest.mark.slow
def test_a_fork_waits_for_its_checkpoint_and_equals_the_run_trained_alone(
    cluster: Cluster, workspace: Workspace
) -> None:
    short, long = (make_run(workspace, steps=steps, schedule=WSD) for steps in (10, 24))
    jobs = [
        job(short, fork=Fork(run_id=long.run_id, step=6)),
        job(long, checkpoint_at=(6,)),
    ]
    executor = SlurmExecutor(workspace, "forks")
    handles = executor.submit(jobs)
    assert [len(handle.job.split(",")) for handle in handles] == [1, 2]
    for run in (short, long):
        wait_for(run, State.COMPLETED)
    alone = make_run(Workspace(workspace.root.with_name("alone")), steps=10, schedule=WSD)
    SlurmExecutor(Workspace(workspace.root.with_name("alone")), "alone").submit([job(alone)])
    wait_for(alone, State.COMPLETED)
    assert losses(short) == [row for row in losses(alone) if row[0] > 6]
    mine, theirs = short.result(), alone.result()
    assert mine is not None
    assert theirs is not None
    assert mine.validation == theirs.validation


@pytest.mark.slow
def test_forks_of_a_trunk_that_fails_are_cancelled_with_the_reason(cluster: Cluster, workspace: Workspace) -> None:
    short, long = (make_run(workspace, steps=steps, schedule=WSD) for steps in (10, 24))
    shutil.rmtree(workspace.data)
    executor = SlurmExecutor(workspace, "poison")
    handles = executor.submit([job(short, fork=Fork(run_id=long.run_id, step=6)), job(long, checkpoint_at=(6,))])
    wait_until(lambda: executor.poll(handles) == [JobState.ENDED] * 2, lambda: story(long))
    executor.reconcile()
    assert long.status().state is State.FAILED
    assert "same error twice" in long.status().reason
    assert short.status().state is State.CANCELLED
    assert f"step 6 of {long.run_id}, which can no longer come" in short.status().reason


@pytest.mark.slow
def test_a_fork_does_not_begin_where_its_trunk_was_cancelled_by_hand(cluster: Cluster, workspace: Workspace) -> None:
    """Slurm forgets a waiting job of an array that is cancelled, and starts what was to wait for it."""
    # Long enough for the trunk's first job to be cut after its first fork, and not to come to the second.
    short, middle, long = (
        make_run(workspace, steps=steps, schedule=WSD, checkpoint_every=500_000) for steps in (10, 500_004, 800_000)
    )
    cluster.command("scontrol", "update", "partitionname=main", "state=down")
    try:
        handles = SlurmExecutor(workspace, "by-hand").submit(
            [
                job(short, fork=Fork(run_id=long.run_id, step=6)),
                job(middle, fork=Fork(run_id=long.run_id, step=500_000)),
                job(long, checkpoint_at=(6, 500_000)),
            ]
        )
        commands.scancel(handles[2].job.split(",")[1:])
    finally:
        cluster.command("scontrol", "update", "partitionname=main", "state=up")
    wait_for(middle, State.CANCELLED)
    assert f"step 500000 of {long.run_id}, whose job left the queue" in middle.status().reason
    assert not middle.attempt_numbers()
    wait_for(short, State.COMPLETED)


def test_what_waits_for_others_leaves_the_queue_before_them(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[list[str]] = []
    monkeypatch.setattr(commands, "scancel", ended.append)
    commands.leave_queue(["9", "10_0", "10_1", "11_3", "11_0"])
    assert ended == [["11_3", "11_0"], ["10_0", "10_1"], ["9"]]


def test_a_fork_whose_checkpoint_nobody_makes_is_refused(workspace: Workspace) -> None:
    run = make_run(workspace, steps=10, schedule=WSD)
    with pytest.raises(ValueError, match="submit absent with it"):
        SlurmExecutor(workspace, "orphan").submit([job(run, fork=Fork(run_id="absent", step=6))])


@pytest.mark.parametrize(
    ("numbers", "jobs"),
    [
        ("12", ["12"]),
        ("12_3", ["12_3"]),
        ("12_[0-2,7%4]", ["12_0", "12_1", "12_2", "12_7"]),
        ("12_[5]", ["12_5"]),
    ],
)
def test_a_row_of_the_accounts_may_stand_for_many_jobs(numbers: str, jobs: list[str]) -> None:
    assert commands.expand(numbers) == jobs


def test_the_latest_of_several_submissions_of_one_second_is_found(nothing_starts: None, workspace: Workspace) -> None:
    run = make_run(workspace)
    for _ in range(8):
        executor = SlurmExecutor(workspace, "again")
        handles = executor.submit([job(run)])
        assert executor.adopt([run]) == handles
        executor.cancel(handles)


def test_runs_whose_jobs_were_cancelled_before_they_began_are_cancelled(
    nothing_starts: None, workspace: Workspace
) -> None:
    runs = [make_run(workspace, seed=seed) for seed in range(4)]
    executor = SlurmExecutor(workspace, "early")
    handles = executor.submit([job(run) for run in runs])
    commands.scancel([handles[1].job])
    executor.reconcile()
    assert [run.status().state for run in runs] == [State.QUEUED, State.CANCELLED, State.QUEUED, State.QUEUED]
    commands.scancel([handle.job for handle in handles])
    executor.reconcile()
    assert {run.status().state for run in runs} == {State.CANCELLED}


@pytest.mark.slow
def test_what_keeps_a_job_from_its_turn_is_told(nothing_starts: None, cluster: Cluster, workspace: Workspace) -> None:
    run = make_run(workspace)
    executor = SlurmExecutor(workspace, "kept")
    executor.submit([job(run)])

    def told() -> str:
        executor.reconcile()
        return run.status().reason

    wait_until(lambda: told().startswith("waiting for Slurm: Partition"))
    assert run.status().state is State.QUEUED
    executor.cancel(executor.adopt([run]))


def test_mistakes_in_the_settings_are_told_where_there_is_no_slurm(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(workspace.root))
    workspace.root.mkdir()
    (workspace.root / "config.yaml").write_text("slurm: {partitoin: fast}")
    told = {finding.what: finding for finding in look(workspace)}
    assert (told["commands"].ok, told["settings"].ok) == (False, False)
    assert "did you mean `partition`?" in told["settings"].detail
