"""A run that was interrupted ends as if it had not been."""

import hashlib
import json
import shutil
import signal
from collections.abc import Callable

import pytest
import torch
from gates import held_at
from launching import losses, make_run, start, start_under_torchrun
from waiting import wait_until

from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.locks import locked
from xlstm.run.processes import tagged
from xlstm.run.records import State, write_json

pytestmark = pytest.mark.serial

Undisturbed = Callable[[int], RunDirectory]


def assert_same_run(run: RunDirectory, reference: RunDirectory) -> None:
    result, expected = run.result(), reference.result()
    assert result is not None
    assert expected is not None
    assert losses(run) == losses(reference)
    assert [step for step, _ in losses(run)] == list(range(1, 21))
    assert result.validation == expected.validation


@pytest.mark.parametrize("ranks", [1, 2])
def test_ten_steps_sigkill_and_ten_more_equal_twenty_steps_bit_for_bit(
    workspace: Workspace, undisturbed: Undisturbed, ranks: int
) -> None:
    run = make_run(workspace)
    with held_at(workspace, 11):
        start(run, ranks).wait_for_step(11).wait_for_checkpoint().kill()
    assert start(run, ranks).completed().attempts == 2
    assert_same_run(run, undisturbed(ranks))
    (resume,) = run.events("resume")
    assert resume["step"] in (5, 10)


def test_signals_end_in_a_checkpoint_and_a_verdict_that_says_preempted(
    workspace: Workspace, undisturbed: Undisturbed
) -> None:
    run = make_run(workspace, checkpoint_every=None)
    for number, step in ((signal.SIGTERM, 2), (signal.SIGUSR2, 7)):
        with held_at(workspace, step):
            attempt = start(run, 2).wait_for_step(step)
            attempt.ranks[1].send_signal(number)  # one rank hears it, all agree
        attempt.wait()
        assert attempt.verdict.step == step
        assert [process.returncode for process in attempt.ranks] == [0, 0]
        assert attempt.verdict.state is State.PREEMPTED
        assert run.result() is None
        assert (run.checkpoints / f"step-{attempt.verdict.step:08d}" / "COMPLETE").exists()
    start(run, 2).completed()
    assert_same_run(run, undisturbed(2))
    assert len(run.events("resume")) == 2


def test_nothing_survives_a_killed_torchrun(workspace: Workspace) -> None:
    run = make_run(workspace)
    with held_at(workspace, 3):
        attempt = start_under_torchrun(run, 2).wait_for_step(3)
        assert len(list(tagged(attempt.token))) == 3
        attempt.kill()
        wait_until(lambda: not list(tagged(attempt.token)))


def test_torchrun_hands_a_preemption_on(workspace: Workspace) -> None:
    run = make_run(workspace)
    with held_at(workspace, 3):
        attempt = start_under_torchrun(run, 2).wait_for_step(3)
        attempt.kill(signal.SIGUSR2)
    assert (attempt.verdict.state, attempt.verdict.step) == (State.PREEMPTED, 3)


KILLED_WHILE_SAVING = {
    "before the shards": "storage.JsonIndexWriter.write_data",
    "before the index": "storage.JsonIndexWriter.finish",
    "before the rename": "checkpoints._sync",
    "before the marker": "checkpoints.Checkpointer._mark_complete",
    "before the pruning": "checkpoints.Checkpointer._prune",
}


def test_a_kill_at_any_point_of_a_save_leaves_the_last_complete_checkpoint(
    workspace: Workspace, undisturbed: Undisturbed
) -> None:
    run = make_run(workspace, checkpoint_every=2, keep_checkpoints=1)
    complete = 0
    for point, (place, function) in {k: v.rsplit(".", 1) for k, v in KILLED_WHILE_SAVING.items()}.items():
        module, *attributes = place.split(".")
        owner = ".".join(["module", *attributes])
        # The second save of the attempt is the one that is cut off.
        killer = f"""
import os, signal, importlib
module = importlib.import_module("xlstm.training.{module}")
original, calls = {owner}.{function}, []
def killed(*arguments, **options):
    calls.append(1)
    if len(calls) > {4 if function == "_sync" else 1}:  # a save that ends syncs four times
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **options)
{owner}.{function} = killed
"""
        attempt = start(run, wrapper=killer).wait()
        assert attempt.ranks[0].returncode == -signal.SIGKILL, (point, attempt.log())
        steps = [int(p.parent.name[5:]) for p in run.checkpoints.glob("step-*/COMPLETE")]
        assert steps, point
        assert max(steps) > complete, f"{point}: {steps} after {complete}"
        complete = max(steps)
    start(run).completed()
    assert_same_run(run, undisturbed(1))
    assert run.events("resume")[-1]["step"] == complete
    # Nothing half-written is left: the last one, and the one rolling checkpoint before it.
    assert {path.name for path in run.checkpoints.iterdir()} == {"step-00000018", "step-00000020"}


@pytest.mark.parametrize("damage", ["flip", "marker"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    workspace: Workspace, undisturbed: Undisturbed, damage: str
) -> None:
    reference = undisturbed(2)
    shutil.copytree(reference.path.parent.parent, workspace.root)
    run = workspace.run(reference.run_id)
    last = run.checkpoints / "step-00000020"
    (shard, *_) = sorted(last.glob("*.distcp"))
    target = shard
    if damage == "flip":
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    else:
        target = last / "COMPLETE"
        target.write_text("{")
    (run.path / "result.json").unlink()
    start(run, 2).completed()
    assert_same_run(run, reference)
    (event,) = run.events("damaged-checkpoint")
    assert str(target) in event["reason"]
    assert run.events("resume")[0]["step"] == 15
    assert (result := run.result()) is not None
    assert "damaged-checkpoint" in result.quality


def test_a_full_disk_fails_the_attempt_and_loses_nothing(workspace: Workspace, undisturbed: Undisturbed) -> None:
    run = make_run(workspace)
    with held_at(workspace, 6):
        start(run).wait_for_checkpoint().kill()
    before = sorted(p.parent.name for p in run.checkpoints.glob("step-*/COMPLETE"))
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))"
    verdict = start(run, wrapper=full).wait().verdict
    assert verdict.state is State.FAILED
    assert "File too large" in verdict.reason
    assert sorted(p.parent.name for p in run.checkpoints.glob("step-*/COMPLETE")) == before
    start(run).completed()
    assert_same_run(run, undisturbed(1))


def test_changed_physics_under_the_same_name_are_refused_with_the_difference(workspace: Workspace) -> None:
    run = make_run(workspace)
    path = run.path / "spec.json"
    content = json.loads(path.read_text())
    content["physics"]["optimizer"]["learning_rate"] = 0.5
    attempt_spec = path.read_text()
    attempt = start(run, wrapper=f"open({str(path)!r}, 'w').write({json.dumps(content)!r})").wait()
    assert attempt.verdict.state is State.FAILED
    assert "physics.optimizer.learning_rate: 0.01 became 0.5" in attempt.verdict.reason
    path.write_text(attempt_spec)


def test_changed_data_are_refused_by_name(workspace: Workspace) -> None:
    run = make_run(workspace)
    with held_at(workspace, 6):
        start(run).wait_for_step(6).kill()
    (shard,) = workspace.data.glob("*/train-00000.tokens")
    content = bytearray(shard.read_bytes())
    content[0] ^= 1
    shard.write_bytes(content)
    verdict = start(run).wait().verdict
    assert verdict.state is State.FAILED
    assert str(shard) in verdict.reason


def test_a_run_on_other_data_does_not_continue_from_this_ones_checkpoint(workspace: Workspace) -> None:
    run = make_run(workspace)
    with held_at(workspace, 6):
        start(run).wait_for_checkpoint().kill()
    for record in run.checkpoints.glob("step-*/record.json"):
        changed = json.loads(record.read_text()) | {"data_fingerprint": "0000"}
        record.write_text(json.dumps(changed))
        marker = record.with_name("COMPLETE")
        listed = json.loads(marker.read_text())
        listed["files"]["record.json"] = {
            "size": record.stat().st_size,
            "sha256": hashlib.sha256(record.read_bytes()).hexdigest(),
        }
        marker.write_text(json.dumps(listed))
    verdict = start(run).wait().verdict
    assert verdict.state is State.FAILED
    assert "was trained on data 0000" in verdict.reason


def test_the_lease_taken_by_another_stops_the_trainer_before_it_writes(workspace: Workspace) -> None:
    run = make_run(workspace, checkpoint_every=None)
    with held_at(workspace, 3):
        attempt = start(run).wait_for_step(3)
        with locked(run.status_lock):  # the trainer renews it meanwhile
            status = run.status()
            assert status.lease is not None
            stolen = status.model_copy(update={"lease": status.lease.model_copy(update={"token": "another"})})
            write_json(run.status_file, stolen.model_dump(mode="json"))
        attempt.wait()
    assert attempt.ranks[0].returncode == 1
    assert run.verdict(attempt.number) is None
    assert not list(run.checkpoints.glob("step-*"))


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="the probe measures the memory of a GPU; this machine has none"
)
def test_a_gpus_micro_batch_is_measured_and_kept_over_a_restart(workspace: Workspace) -> None:
    run = make_run(workspace, device="cuda")
    with held_at(workspace, 11):
        start(run).wait_for_step(11).wait_for_checkpoint().kill()
    start(run).completed()
    chosen = [json.loads(path.read_text())["micro_batch_sequences"] for path in run.checkpoints.glob("*/record.json")]
    assert set(chosen) == {8}
