"""Generated tasks in training: what is padded changes nothing, and answers are judged as they should be."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from every_family import DIMENSIONS, small

from xlstm.data.batches import Batch
from xlstm.data.generated import GeneratedData, declare_task
from xlstm.data.sequences import TrainingSequences
from xlstm.distributed import World
from xlstm.evaluation.answers import validate_on
from xlstm.models import IGNORED, build
from xlstm.models.initialization import initialize
from xlstm.run.directory import Workspace
from xlstm.run.records import State
from xlstm.run.spec import Evaluation, Optimizer, Physics, RunSpec, Schedule
from xlstm.training.trainer import Trainer

CPU = World(0, 1, torch.device("cpu"))


@pytest.fixture(autouse=True)
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def spec_of(
    task: str,
    fields: dict[str, Any],
    family: str = "lstm",
    steps: int = 20,
    length: int | None = None,
    dropout: float = 0.0,
    **tested: int,
) -> RunSpec:
    data, vocabulary = declare_task(task, fields, length)
    assert data.task is not None
    physics = Physics(
        task=data.corpus,  # type: ignore[arg-type]
        model=small(family, vocab_size=vocabulary, embedding_dim=32, **data.task.ends),
        data=data,
        tokens=steps * 16 * data.context_length,
        batch_tokens=16 * data.context_length,
        optimizer=Optimizer(learning_rate=1e-2),
        schedule=Schedule(warmup_steps=5),
        dropout=dropout,
    )
    return RunSpec.model_validate(
        {"physics": physics, "execution": {"device": "cpu"}, "evaluation": Evaluation(**tested)}  # type: ignore[arg-type]
    )


def trainer(folder: Path, spec: RunSpec) -> Trainer:
    run = Workspace(folder).run(spec.run_id)
    run.create(spec)
    run.attempt(1).mkdir(parents=True)
    run.set_state(State.RUNNING)
    return Trainer(run, spec, 1, CPU, GeneratedData.open(spec.physics.data), lambda: None)


def wider(batch: Batch, cells: int) -> Batch:
    padded = ((0, 0), (0, cells))
    return Batch(
        np.pad(batch.tokens, padded),
        np.pad(batch.targets, padded, constant_values=IGNORED),
        np.pad(batch.resets, padded),
    )


@pytest.mark.parametrize(
    "family",
    [family if family in ("lstm", "mamba") else pytest.param(family, marks=pytest.mark.slow) for family in DIMENSIONS],
)
def test_padding_changes_neither_loss_nor_gradient(tmp_path: Path, family: str) -> None:
    made = trainer(tmp_path, spec_of("reverse", {"longest": 12}, family, longest=13))
    batch = made._batch(0)
    found = []
    for cells in (0, 19):
        loss = made._add_gradients(wider(batch, cells))
        found.append((loss, [parameter.grad.clone() for parameter in made.parameters if parameter.grad is not None]))
        made.optimizer.zero_grad()
    (loss, gradients), (of_wider, others) = found
    torch.testing.assert_close(of_wider, loss, rtol=1e-5, atol=0)
    for gradient, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(other, gradient, rtol=1e-4, atol=1e-6)


def test_the_loss_is_the_mean_over_the_answers_of_the_global_batch(tmp_path: Path) -> None:
    made = trainer(tmp_path, spec_of("repetition", {"longest": 12}))
    batch = made._batch(0)
    logits = made.model(torch.from_numpy(batch.tokens))[0]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(batch.targets).flatten())
    torch.testing.assert_close(made._add_gradients(batch).float(), expected.detach())
    whole = [parameter.grad.clone() for parameter in made.parameters if parameter.grad is not None]
    made.optimizer.zero_grad()
    made.micro = 4
    made._add_gradients(batch)
    for gradient, parameter in zip(whole, made.parameters, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_an_lstm_learns_parity_and_is_tested_on_longer_strings(tmp_path: Path) -> None:
    spec = spec_of("parity", {"shortest": 1, "longest": 4}, steps=150, shortest=4, longest=6, sequences=192)
    made = trainer(tmp_path, spec)
    assert made.train(lambda: True)
    rows = [row for row in made.run.metrics() if "validation/accuracy" in row]
    (row,) = rows
    assert row["validation/by_length/4/accuracy"] > 0.9
    assert row["validation/scaled_accuracy"] == pytest.approx(2 * row["validation/accuracy"] - 1)
    by_length = [row[f"validation/by_length/{length}/accuracy"] for length in (4, 5, 6)]
    assert row["validation/accuracy"] == pytest.approx(sum(by_length) / 3)


@pytest.mark.parametrize(("ranks", "logits"), [(1, 2**26), (3, 1)])
def test_answers_are_judged_alike_however_they_are_divided(
    monkeypatch: pytest.MonkeyPatch, ranks: int, logits: int
) -> None:
    """Against a loop over sequences; three ranks share the seven of each length, one at a time."""
    spec = spec_of("reverse", {"longest": 3}, shortest=3, longest=5, length_step=2, sequences=14)
    data = GeneratedData.open(spec.physics.data)
    model = build(spec.physics.model)
    initialize(model, 0)
    scores, wholes = [], []
    for length in (3, 5):
        batch = data.test(length, np.arange(7))
        said = model(torch.from_numpy(batch.tokens))[0].argmax(-1).numpy()
        for guess, target in zip(said, batch.targets, strict=True):
            right = [int(a == b) for a, b in zip(guess, target, strict=True) if b != IGNORED]
            scores.append(sum(right) / len(right))
            wholes.append(all(right))
    monkeypatch.setattr("xlstm.evaluation.answers._LOGITS", logits)
    parts: list[list[float]] = []
    monkeypatch.setattr(World, "sum", lambda self, *values: (parts.append(list(values)), list(values))[1])
    found = [
        validate_on(model, data, spec, World(rank, ranks, torch.device("cpu")), 1, lambda: None)
        for rank in range(ranks)
    ]
    summed = np.array(parts).sum(axis=0).reshape(2, 4)
    assert summed[:, 1].tolist() == [21, 35]
    assert summed[:, 2].sum() == pytest.approx(sum(scores))
    assert summed[:, 3].sum() == sum(wholes)
    if ranks == 1:
        answers = found[0].answers
        assert answers is not None
        assert answers.accuracy == pytest.approx(sum(scores) / 14)
        assert found[0].tokens == 56
        assert found[0].loss == pytest.approx(summed[:, 0].sum() / 56)


@pytest.mark.parametrize(
    ("task", "fields", "length"),
    [
        ("stack-manipulation", {}, None),
        ("mqar", {}, 64),
        ("listops", {"shortest": 9, "longest": 30}, None),
        ("nearest-neighbor", {}, None),
        ("small-pathfinder", {}, None),
    ],
)
def test_ranks_share_a_batch_whatever_their_number(task: str, fields: dict[str, int], length: int | None) -> None:
    physics = spec_of(task, fields, length=length).physics
    found = []
    for ranks in (1, 2, 4):
        each = 16 // ranks
        anew = [TrainingSequences(GeneratedData.open(physics.data), physics) for _ in range(ranks)]
        parts = [sequences.batch(3 * 16 + rank * each, each) for rank, sequences in enumerate(anew)]
        found.append([np.concatenate([getattr(part, name) for part in parts]) for name in ("tokens", "targets")])
    for other in found[1:]:
        assert all(np.array_equal(one, another) for one, another in zip(found[0], other, strict=True))


def test_recall_comes_again_each_epoch_in_another_order(tmp_path: Path) -> None:
    fields = {"pairs": 2, "symbols": 32, "examples": 32}
    made = trainer(tmp_path, spec_of("mqar", fields, "xlstm[1:1]", length=16))
    epochs = [np.concatenate([made._batch(step).tokens for step in pair]).tolist() for pair in ((0, 1), (2, 3))]
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert epochs[0] != epochs[1]
    assert made.validation().answers is not None


def test_dropout_is_the_same_however_a_step_is_divided(tmp_path: Path) -> None:
    made = trainer(tmp_path, spec_of("reverse", {"longest": 8}, dropout=0.5))
    found = []
    for step, micro in ((0, 16), (0, 4), (1, 16)):
        made.step, made.micro = step, micro
        found.append(made._add_gradients(made._batch(0)).item())
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert found[0] != pytest.approx(found[2], rel=1e-3)


def test_numbers_are_learnt_and_judged_by_their_squared_errors(tmp_path: Path) -> None:
    fields = {"longest": 6, "examples": 64}
    made = trainer(tmp_path, spec_of("nearest-neighbor", fields, "xlstm[1:1]", 60, dropout=0.1, longest=8, sequences=9))
    before = made.validation().loss
    assert made.train(lambda: True)
    after = made.last_validation
    assert after is not None
    assert after.answers is not None
    assert after.loss == after.answers.mean_squared_error < 0.5 * before
    errors: dict[int, list[float]] = {place: [] for place in range(1, 8)}
    for length in (6, 7, 8):
        batch = made.data.test(length, np.arange(3))  # type: ignore[union-attr]
        with torch.no_grad():
            said = made.model(torch.from_numpy(batch.tokens))[0].squeeze(-1).numpy()
        for place in range(1, length):
            errors[place] += ((said - batch.targets)[:, place] ** 2).tolist()
    row = [row for row in made.run.metrics() if "validation/mean_squared_error" in row][-1]
    assert "validation/accuracy" not in row
    for place, found in errors.items():
        assert row[f"validation/by_position/{place}/mean_squared_error"] == pytest.approx(np.mean(found), rel=1e-5)
    assert row["validation/mean_squared_error"] == pytest.approx(np.mean(np.concatenate([*errors.values()])), rel=1e-5)
