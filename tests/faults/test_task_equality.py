"""A generated task is learnt alike on any number of ranks and after a kill, dropout among it."""

import math
from pathlib import Path

import pytest
from gates import held_at
from launching import losses, start

from xlstm.data.generated import declare_task
from xlstm.models.configs import LSTMConfig
from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.spec import Evaluation, Execution, Optimizer, Physics, RunSpec

pytestmark = [pytest.mark.serial, pytest.mark.slow]


def made(workspace: Workspace) -> RunDirectory:
    data, vocabulary = declare_task("set", {"longest": 8}, None)
    spec = RunSpec(
        physics=Physics(
            task="set",
            model=LSTMConfig(vocab_size=vocabulary, embedding_dim=32, num_blocks=1),
            data=data,
            tokens=12 * 8 * data.context_length,
            batch_tokens=8 * data.context_length,
            optimizer=Optimizer(learning_rate=1e-2),
            dropout=0.2,
        ),
        execution=Execution(device="cpu", threads_per_rank=1, log_every=1, checkpoint_every=5),
        evaluation=Evaluation(shortest=8, longest=10, sequences=30),
    )
    run = workspace.run(spec.run_id)
    run.create(spec)
    return run


def test_ranks_change_rounding_alone_and_a_kill_nothing(tmp_path: Path) -> None:
    alone, shared, killed = (made(Workspace(tmp_path / name)) for name in ("alone", "shared", "killed"))
    expected = start(alone, 1).completed()
    other = start(shared, 2).completed()
    for (step, loss), (same_step, of_shared) in zip(losses(alone), losses(shared), strict=True):
        assert step == same_step
        assert math.isclose(loss, of_shared, rel_tol=1e-5)
    assert math.isclose(other.validation.loss, expected.validation.loss, rel_tol=1e-5)
    with held_at(killed.workspace, 6):
        start(killed, 1).wait_for_step(6).kill()
    again = start(killed, 1).completed()
    assert again.attempts == 2
    assert losses(killed) == losses(alone)
    assert again.validation == expected.validation
    assert expected.validation.answers is not None
    assert expected.validation.answers.by_length.keys() == {8, 9, 10}
