"""What a run learns does not depend on how it is carried out."""

import json
import math
import shutil
from collections.abc import Callable
from typing import Any

import pytest
from gates import held_at
from launching import BATCH, CONTEXT, SEQUENCES, losses, make_run, start

from xlstm.models.configs import LlamaConfig, MambaConfig, ModelConfig, XLSTMConfig
from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.records import Fork, State
from xlstm.run.spec import Optimizer, Schedule

pytestmark = pytest.mark.serial

Undisturbed = Callable[[int], RunDirectory]

RELATIVE = 1e-5
"""Twenty steps of sums in another order, in float32."""


def assert_close(run: RunDirectory, reference: RunDirectory) -> None:
    ours, theirs = losses(run), losses(reference)
    assert [step for step, _ in ours] == [step for step, _ in theirs]
    for (step, loss), (_, expected) in zip(ours, theirs, strict=True):
        assert math.isclose(loss, expected, rel_tol=RELATIVE), (step, loss, expected)


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_number_of_ranks_changes_nothing_but_rounding(undisturbed: Undisturbed, ranks: int) -> None:
    assert_close(undisturbed(ranks), undisturbed(1))


@pytest.mark.parametrize(
    ("ranks", "execution"),
    [
        (1, {"micro_batch_sequences": 1}),
        (1, {"activation_checkpointing": "full"}),
        (2, {"micro_batch_sequences": 2, "activation_checkpointing": "selective"}),
        (2, {"sharding": "none"}),
    ],
)
def test_how_a_step_is_carried_out_changes_nothing_but_rounding(
    workspace: Workspace, undisturbed: Undisturbed, ranks: int, execution: dict[str, Any]
) -> None:
    run = make_run(workspace, **execution)
    start(run, ranks).completed()
    assert_close(run, undisturbed(1))


@pytest.mark.parametrize(
    "model",
    [
        XLSTMConfig(vocab_size=256, embedding_dim=32, num_blocks=2, num_heads=2, slstm_at=(1,)),
        MambaConfig(vocab_size=256, embedding_dim=32, num_blocks=2),
    ],
    ids=lambda model: model.family,
)
def test_recurrent_families_learn_the_same_on_two_ranks(workspace: Workspace, model: ModelConfig) -> None:
    runs = {}
    for ranks in (1, 2):
        place = Workspace(workspace.root.with_name(f"on-{ranks}"))
        runs[ranks] = make_run(place, steps=5, model=model)
        start(runs[ranks], ranks).completed()
    assert_close(runs[2], runs[1])


GRADIENTS_OF_THE_WEIGHTS_ALONE = """
import torch
from xlstm.training import trainer
def replaced(parameters, limit):
    for parameter in parameters:
        parameter.grad.copy_(torch.sin(100 * parameter.detach()))
    return torch.ones(())
trainer.clip_gradients = replaced
"""
"""Gradients that no sum over ranks rounds, so that equal updates leave equal weights."""


@pytest.mark.slow
def test_muon_moves_two_ranks_that_were_killed_between_as_it_moves_one(workspace: Workspace) -> None:
    physics = {"optimizer": Optimizer(name="muon", learning_rate=1e-2), "parametrization": "mup", "mup_base_width": 16}
    one, two = (
        make_run(Workspace(workspace.root.with_name(name)), steps=6, physics=physics, checkpoint_every=2)
        for name in ("one", "two")
    )
    start(one, wrapper=GRADIENTS_OF_THE_WEIGHTS_ALONE).completed()
    with held_at(two.workspace, 3):
        start(two, 2, wrapper=GRADIENTS_OF_THE_WEIGHTS_ALONE).wait_for_checkpoint().kill()
    assert start(two, 2, wrapper=GRADIENTS_OF_THE_WEIGHTS_ALONE).completed().attempts == 2
    assert_close(two, one)
    assert losses(one)[-1][1] != losses(one)[0][1]


@pytest.mark.slow
def test_hybrid_sharding_over_two_nodes_of_two_changes_nothing_but_rounding(
    workspace: Workspace, undisturbed: Undisturbed
) -> None:
    run = make_run(workspace, sharding="hsdp", nodes=2)
    attempt = start(run, 4, devices=2)
    attempt.completed()
    assert_close(run, undisturbed(1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "ranks"),
    [
        # A head dimension of 3 x 2 gives norms of 6 elements; over four ranks of a vocabulary of 256 all is uneven.
        (LlamaConfig(vocab_size=256, embedding_dim=6, num_blocks=1, num_heads=1), 4),
        # The four gates over eight ranks: cut along the head's dimension, gathered and saved whole all the same.
        (XLSTMConfig(vocab_size=256, embedding_dim=32, num_blocks=1, num_heads=2, slstm_at=(0,)), 8),
    ],
    ids=["llama", "slstm"],
)
def test_parameters_with_fewer_rows_than_ranks_are_trained_and_saved_whole(
    workspace: Workspace, model: ModelConfig, ranks: int
) -> None:
    run = make_run(workspace, model=model)
    with held_at(workspace, 6):
        start(run, ranks).wait_for_checkpoint().kill()
    copy = Workspace(workspace.root.with_name("copy"))
    shutil.copytree(workspace.root, copy.root)
    start(run, ranks).completed()
    single = copy.run(run.run_id)
    start(single, 1).completed()
    assert_close(single, run)


@pytest.mark.slow
def test_what_two_ranks_saved_one_and_four_continue(workspace: Workspace, undisturbed: Undisturbed) -> None:
    run = make_run(workspace)
    with held_at(workspace, 6):
        start(run, 2).wait_for_checkpoint().kill()
    for ranks in (1, 4):
        copy = Workspace(workspace.root.with_name(f"on-{ranks}"))
        shutil.copytree(workspace.root, copy.root)
        continued = copy.run(run.run_id)
        start(continued, ranks).completed()
        assert continued.events("resume")[0]["step"] >= 5
        assert_close(continued, undisturbed(1))


def test_a_forked_run_equals_the_run_trained_alone_bit_for_bit(workspace: Workspace) -> None:
    def wsd(steps: int, decay: int) -> RunDirectory:
        return make_run(workspace, steps=steps, schedule=Schedule(kind="wsd", warmup_steps=3, decay_steps=decay))

    trunk, short = wsd(20, 4), wsd(12, 3)
    start(trunk, checkpoint_at=(9,), checkpoint_every=2).completed()
    forked = start(short, fork=Fork(run_id=trunk.run_id, step=9)).completed()
    assert forked.trunk_id == trunk.run_id
    assert [step for step, _ in losses(short)] == [10, 11, 12]  # nine steps were not paid twice
    # The trunk keeps what others start from: the fork, and where its own decay starts.
    kept = {path.name for path in trunk.checkpoints.iterdir()}
    assert {"step-00000009", "step-00000016", "step-00000020"} <= kept
    assert len(kept) == 5

    alone = Workspace(workspace.root.with_name("alone"))
    shutil.copytree(workspace.data, alone.data)
    shutil.copy(workspace.root / "corpus.txt", alone.root / "corpus.txt")
    by_itself = make_run(alone, steps=12, schedule=Schedule(kind="wsd", warmup_steps=3, decay_steps=3))
    assert by_itself.run_id == short.run_id
    start(by_itself).completed()
    assert losses(short) == losses(by_itself)[9:]
    assert forked.validation == by_itself.result().validation  # type: ignore[union-attr]


def test_a_fork_from_a_run_that_shares_too_little_is_refused(workspace: Workspace) -> None:
    trunk = make_run(workspace, schedule=Schedule(kind="wsd", warmup_steps=3, decay_steps=4))
    start(trunk).completed()
    other = make_run(workspace, schedule=Schedule(kind="wsd", warmup_steps=2, decay_steps=4))
    verdict = start(other, fork=Fork(run_id=trunk.run_id, step=16)).wait().verdict
    assert verdict.state is State.FAILED
    assert "shares no 16 steps" in verdict.reason
    missing = start(other, fork=Fork(run_id=trunk.run_id, step=7)).wait().verdict
    assert "no sound checkpoint at step 7" in missing.reason


def test_data_that_run_out_are_read_again_and_the_result_says_so(workspace: Workspace) -> None:
    text = workspace.root / "corpus.txt"
    text.parent.mkdir(parents=True)
    text.write_text("".join(chr(97 + i * i % 26) for i in range(CONTEXT * SEQUENCES * 2)))
    run = make_run(workspace)
    result = start(run).completed()
    (code,) = [code for code in result.quality if code.startswith("repeated-data")]
    epochs = 20 * SEQUENCES / ((BATCH * 2 * 9 // 10 + 1) // CONTEXT)
    assert code == f"repeated-data:{epochs:.2f}-epochs"


def test_documents_can_start_anew_and_uneven_ones_are_counted_right(workspace: Workspace) -> None:
    reset = {"documents": "reset"}
    text = workspace.root / "corpus.jsonl"
    text.parent.mkdir(parents=True)
    text.write_text("".join(json.dumps({"text": f"{i} " * (i % 9 + 1)}) + "\n" for i in range(2000)))
    runs = {}
    for name, ranks, micro in (("one", 1, None), ("two", 2, 1), ("accumulated", 1, 2)):
        place = Workspace(workspace.root.with_name(name))
        shutil.copytree(workspace.root, place.root)
        runs[name] = make_run(place, data=reset, corpus="jsonl", micro_batch_sequences=micro)
        start(runs[name], ranks).completed()
    assert_close(runs["two"], runs["one"])
    assert_close(runs["accumulated"], runs["one"])
    continued = make_run(workspace, data={"documents": "continue"}, corpus="jsonl")
    assert continued.run_id != runs["one"].run_id
