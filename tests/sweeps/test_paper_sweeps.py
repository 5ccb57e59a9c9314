"""The shipped sweeps of arXiv 2405.04517 say what its tables say, and plan where the corpus they name does not lie."""

import pytest

from sweeps.expand import SweepRun
from sweeps.sweep import SHIPPED, Sweep
from xlstm.accounting import parameters, size_label
from xlstm.models.naming import family_label
from xlstm.models.published import LEARNING_RATES, learning_rate
from xlstm.models.sizes import config_for


def runs(name: str) -> list[SweepRun]:
    return Sweep.load(SHIPPED / f"{name}.yaml").runs


@pytest.mark.parametrize(
    ("name", "tokens", "count", "steps"),
    [
        ("paper/scaling-15b", "15B", 25, 28_170),
        ("paper/scaling-300b", "300B", 20, 600_000),
        ("xlstm-125m-2.7b", "15B", 25, 28_610),  # 15e9 tokens in whole batches of 256 x 2048
    ],
)
def test_scaling_sweeps_have_the_published_learning_rates_and_budgets(
    name: str, tokens: str, count: int, steps: int
) -> None:
    expanded = runs(name)
    assert len(expanded) == count
    for run in expanded:
        physics = run.spec.physics
        size = size_label(physics.model)
        assert physics.optimizer.learning_rate == LEARNING_RATES[tokens][physics.model.family][size], run.point
        assert physics.steps == (300_000 if (tokens, size) == ("300B", "1.3B") else steps)
        assert (physics.data.context_length, physics.schedule.warmup_steps) == (2048, 750)


def test_rivals_have_published_learning_rates_or_xlstms() -> None:
    expanded = runs("paper/rivals-15b")
    assert len(expanded) == 13 * 5
    for run in expanded:
        physics = run.spec.physics
        size = str(run.point["size"])
        assert physics.optimizer.learning_rate == learning_rate(physics.model.family, size), run.point
        assert (physics.steps, physics.schedule.warmup_steps, physics.precision) == (28_170, 750, "bf16-mixed")


TABLE_1_MILLIONS = {
    "gpt": 356, "llama": 407, "mamba": 423, "rwkv4": 430, "rwkv5": 456, "rwkv6": 442, "hgrn": 411, "gla": 412,
    "hgrn2": 411, "xlstm[1:0]": 409, "xlstm[7:1]": 408, "hyena": 435,
}  # fmt: skip
"""As printed; of RetNet and H3 no public configuration has the number that is."""


def test_table_1_has_every_method_with_its_published_number_of_parameters() -> None:
    models = {family_label(run.spec.physics.model): run.spec.physics for run in runs("paper/table-1")}
    assert models.keys() == TABLE_1_MILLIONS.keys() | {"retnet", "h3", "mamba2", "gated-deltanet", "rwkv7"}
    for family, physics in models.items():
        padded = (1 if family == "gpt" else 2) * 1024 * (50_304 - physics.model.vocab_size)
        millions = (parameters(physics.model).total + padded) / 1e6
        assert family not in TABLE_1_MILLIONS or abs(millions - TABLE_1_MILLIONS[family]) < 0.75, family
        assert (physics.optimizer.learning_rate, physics.precision) == (1e-3, "bf16-mixed")


PUBLISHED_MILLIONS = [607.8, 506.1, 505.9, 427.3, 408.4, *[None] * 7, 409.3, 430.4, 408.8]
"""Table 2 and the block's ablation, in the order of the sweep; the gates' variants are not printed."""


def test_ablations_have_the_published_numbers_of_parameters() -> None:
    expanded = runs("paper/ablations-15b")
    assert len(expanded) == len(PUBLISHED_MILLIONS)
    assert len({run.spec.run_id for run in expanded}) == len(expanded)
    for run, millions in zip(expanded, PUBLISHED_MILLIONS, strict=True):
        if millions is not None:
            model = run.spec.physics.model
            padded = 2 * model.embedding_dim * (50_304 - model.vocab_size)  # the paper's vocabulary, untied
            assert (parameters(model).total + padded) / 1e6 == pytest.approx(millions, abs=0.051), run.point


def test_the_seven_billion_of_xlstm_large_are_counted_exactly() -> None:
    assert parameters(config_for("xlstm-large", "7B", 50_304)).total == 6_865_424_896  # arXiv 2503.13427


def test_formal_languages_have_the_published_settings() -> None:
    expanded = runs("paper/formal-languages")
    assert len({run.spec.physics.task for run in expanded}) == 15
    for run in expanded:
        physics = run.spec.physics
        assert (physics.steps, physics.batch_sequences, physics.schedule.warmup_steps) == (100_000, 256, 10_000)
        assert physics.optimizer.learning_rate * physics.schedule.final_ratio == pytest.approx(1e-5)
        task = physics.data.task
        assert task is not None
        lengths = run.spec.test_lengths
        assert (task.longest, lengths[0], lengths[-1]) == (40, 40, 256)


@pytest.mark.parametrize(
    ("name", "batches", "tested"),
    [
        ("mqar-easy", {64: 512, 128: 512, 256: 256}, None),
        ("mqar-hard", {756: 128, 1024: 96, 2048: 24}, None),
        ("mqar-extrapolation", {2048: 24}, [4096, 6144, 8192]),
    ],
)
def test_recall_reads_64_epochs_of_the_published_sequences(
    name: str, batches: dict[int, int], tested: list[int] | None
) -> None:
    for run in runs(f"paper/{name}"):
        physics, task = run.spec.physics, run.spec.physics.data.task
        assert task is not None
        assert physics.batch_sequences == batches[task.context_length]
        assert physics.steps == 64 * 100_000 // physics.batch_sequences
        assert (task.vocabulary, task.different) == (8192, 100_000)
        assert list(run.spec.test_lengths) == (tested or [task.context_length])
