"""When a rank fails, hangs or diverges, everything ends soon and the record says which rank and why."""

import json
import os
import signal

import pytest
from launching import losses, make_run, start

from xlstm.run.directory import Workspace
from xlstm.run.records import State
from xlstm.run.spec import Schedule

pytestmark = pytest.mark.serial


def at_step(step: int, rank: int, action: str) -> str:
    """Python that makes a rank act when it has done so many steps."""
    return f"""
import os
from xlstm.training import trainer
original = trainer.Trainer._optimizer_step
def disturbed(self):
    if self.step == {step} and self.world.rank == {rank}:
        import os, signal, time
        {action}
    return original(self)
trainer.Trainer._optimizer_step = disturbed
"""


def test_one_ranks_error_ends_all_in_seconds_with_its_traceback(workspace: Workspace) -> None:
    run = make_run(workspace, steps=5000)
    raising = at_step(5, 1, 'self.failed_at = time.time(); raise KeyError("the wrong drawer")')
    attempt = start(run, 2, wrapper=raising).wait()  # not as long as the watchdog is patient
    assert [process.returncode for process in attempt.ranks] == [1, 1]
    verdict = attempt.verdict
    assert verdict.state is State.FAILED
    assert verdict.rank == 1
    assert "the wrong drawer" in verdict.reason
    assert "in disturbed" in (verdict.traceback or "")


def test_a_killed_ranks_peers_end_too_and_say_that_they_lost_one(workspace: Workspace) -> None:
    run = make_run(workspace, steps=5000)
    attempt = start(run, 2, wrapper=at_step(5, 1, "os.kill(os.getpid(), signal.SIGKILL)")).wait()
    assert [process.returncode for process in attempt.ranks] == [1, -signal.SIGKILL]
    assert attempt.verdict.state is State.FAILED
    assert "rank 0 lost contact with another rank" in attempt.verdict.reason


@pytest.mark.parametrize("manner", ["busy", "stopped"])
def test_a_hanging_rank_is_named_by_the_watchdog(workspace: Workspace, manner: str) -> None:
    run = make_run(workspace, steps=5000)
    action = {"busy": "time.sleep(1000)", "stopped": "os.kill(os.getpid(), signal.SIGSTOP)"}[manner]
    attempt = start(run, 2, wrapper=at_step(5, 1, action), watchdog_seconds=15.0)
    attempt.ranks[0].wait()
    attempt.ranks[1].kill()  # what torchrun does to the rest
    attempt.wait()
    verdict = attempt.verdict
    assert verdict.state is State.FAILED
    assert verdict.rank == 1, verdict
    assert {"busy": "in disturbed", "stopped": "no sign of life"}[manner] in verdict.reason
    assert verdict.step == 5


def test_an_attempt_without_kernels_for_cpus_says_so_and_does_without(workspace: Workspace) -> None:
    def recorded(seed: int, wrapper: str | None) -> dict[str, str]:
        run = make_run(workspace, physics={"seed": seed})
        start(run, wrapper=wrapper, forked=wrapper is None).completed()
        result = run.result()
        assert result is not None
        assert str(result.computed_on).endswith(", torch kernels" if wrapper else ", numba kernels")
        return json.loads((run.attempt(1) / "kernels.json").read_text())

    assert recorded(0, None) == {"asked": "auto", "for_cpus": "can run"}
    without = recorded(1, "import sys; sys.modules['numba'] = None")
    assert without["for_cpus"].startswith("numba cannot be imported: ")


def test_a_diverging_run_stops_at_that_step_before_the_optimizer_moves(workspace: Workspace) -> None:
    run = make_run(workspace, schedule=Schedule(kind="constant"), checkpoint_every=1)
    # A weight that is no number gives a loss that is none, as an overflow would.
    poison = at_step(6, 0, "self.state['model.embedding.weight'].fill_(float('nan'))")
    attempt = start(run, wrapper=poison).wait()
    verdict = attempt.verdict
    assert verdict.state is State.DIVERGED
    assert verdict.step == 7
    assert "the loss is nan at step 7" in verdict.reason
    assert attempt.ranks[0].returncode == 0
    assert [step for step, _ in losses(run)] == [1, 2, 3, 4, 5, 6]
    assert not (run.checkpoints / "step-00000007").exists()
    assert run.result() is None


def test_a_missing_launch_is_said(workspace: Workspace) -> None:
    run = make_run(workspace)
    removed = start(run, wrapper="import os, sys; os.unlink(sys.argv[1] + '/attempts/1/launch.json')").wait()
    assert "launch.json" in removed.verdict.reason


def test_another_number_of_ranks_than_launched_is_refused(workspace: Workspace) -> None:
    run = make_run(workspace)
    attempt = start(run, 1, environment={"WORLD_SIZE": "1"}, devices=2).wait()
    assert attempt.verdict.state is State.FAILED
    assert "1 ranks were started, the launch says 2" in attempt.verdict.reason
    assert os.path.getsize(run.attempt(1) / "rank-0.log") > 0


def test_running_out_of_memory_says_what_to_change(workspace: Workspace) -> None:
    run = make_run(workspace)
    attempt = start(run, wrapper=at_step(2, 0, "import torch; torch.empty(2**60)")).wait()
    assert attempt.verdict.state is State.FAILED
    assert "micro_batch_sequences" in attempt.verdict.reason


def test_weights_that_stop_being_numbers_before_a_validation_are_a_divergence(workspace: Workspace) -> None:
    run = make_run(workspace, steps=5, validate_every=3)
    poison = """
from xlstm.training import trainer
original = trainer.Trainer._optimizer_step
def poisoned(self):
    told = original(self)
    if self.step == 3:
        self.parameters[0].data.fill_(float("nan"))
    return told
trainer.Trainer._optimizer_step = poisoned
"""
    attempt = start(run, wrapper=poison).wait()
    verdict = attempt.verdict
    assert (verdict.state, verdict.step) == (State.DIVERGED, 3)
    assert verdict.reason == "the validation loss is nan at step 3"
    assert [row["step"] for row in run.metrics()] == [1, 2, 3]
    assert not any("validation/loss" in row for row in run.metrics())
    assert run.result() is None
