"""Inference as it is timed: what is kept of a prompt, by the families' own sizes, and what is generated."""

from pathlib import Path

import pytest
import torch
from every_family import DIMENSIONS, small

from xlstm import accounting
from xlstm.distributed import World
from xlstm.evaluation.inference import Timings
from xlstm.evaluation.kinds import check
from xlstm.evaluation.measure import measure
from xlstm.models import build
from xlstm.models.initialization import initialize
from xlstm.run.directory import Workspace
from xlstm.run.evaluations import Inference
from xlstm.run.records import Measured
from xlstm.run.spec import Data, Optimizer, Physics, RunSpec

CONTEXTS = (8, 16, 32, 56)
DATA = Data(corpus="text", revision="0", tokenizer="bytes", context_length=16)


def measured(family: str, folder: Path, **asked: int) -> Measured:
    config = small(family, vocab_size=256, embedding_dim=16)
    physics = Physics(model=config, data=DATA, tokens=16, batch_tokens=16, optimizer=Optimizer(learning_rate=1e-3))
    spec, workspace = RunSpec(physics=physics), Workspace(folder)
    evaluation = Inference(name="speed", contexts=CONTEXTS, generated=4, rounds=2, **asked)
    assert check(evaluation, spec, workspace) == []
    model = build(config)
    initialize(model, 0)
    world = World(0, 1, torch.device("cpu"))
    return measure(model, evaluation, spec, workspace.run(spec.run_id), world)


@pytest.mark.parametrize("family", ["llama", "gpt", "xlstm[1:1]", "mamba2"])
def test_memory_of_attention_grows_with_the_prompt_and_that_of_recurrences_does_not(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(World, "gather", lambda self, value: [value])
    found = measured(family, tmp_path, batch=3)
    rows = found.tables["context"]
    assert [row["context"] for row in rows] == list(CONTEXTS)
    assert found.tokens == 3 * 2 * sum(context + 4 for context in CONTEXTS)
    config = small(family, vocab_size=256, embedding_dim=16)
    for row in rows:
        kept = float(row["state_mib"] or 0) * 2**20
        assert row["flops_to_first_token"] == accounting.flops_per_token(config, int(row["context"] or 0)).flops * (
            3 * int(row["context"] or 0)
        )
        assert 0 < float(row["seconds_per_token_least"] or 0) <= float(row["seconds_per_token"] or 0)
        if family in ("llama", "gpt"):  # keys and values of two blocks, and one position for each prompt
            assert kept == 2 * 2 * 3 * int(row["context"] or 0) * 16 * 4 + 3 * 8
    exponent = {row["law"]: row["exponent"] for row in found.tables["law"]}["state_mib"]
    assert exponent == pytest.approx(1 if family in ("llama", "gpt") else 0, abs=0.03)
    assert found.metrics()["evaluation/speed/by_context/56/seconds_per_token"] > 0


def test_laws_find_the_parts_that_a_time_is_made_of() -> None:
    physics = Physics(
        model=small("llama", vocab_size=256, embedding_dim=16),
        data=DATA,
        tokens=16,
        batch_tokens=16,
        optimizer=Optimizer(learning_rate=1e-3),
    )
    contexts = (128, 512, 2048, 8192)
    asked = Inference(name="speed", contexts=contexts)
    timings = Timings(asked, RunSpec(physics=physics), torch.device("cpu"), weight_bytes=1000)
    for context in contexts:
        timings.state_bytes[context] = 64 * context
        timings.seconds[context] = [(0.01 + 3e-8 * context**2, 0.002 + (1000 + 64 * context) / 1e9)]
    first, each, memory = timings.tables()["law"]
    assert [first[part] for part in ("constant", "linear", "quadratic")] == pytest.approx([0.01, 0, 3e-8], abs=1e-12)
    assert (each["fixed"], each["work_per_second"]) == (pytest.approx(0.002), pytest.approx(1e9))
    assert (memory["exponent"], memory["linear"]) == (pytest.approx(1), pytest.approx(64 / 2**20))


def test_prompts_beyond_learnt_positions_are_left_out_and_told(tmp_path: Path) -> None:
    config = small("gpt", vocab_size=256, embedding_dim=16)
    physics = Physics(model=config, data=DATA, tokens=16, batch_tokens=16, optimizer=Optimizer(learning_rate=1e-3))
    told = check(Inference(name="speed", contexts=(8, 61, 100)), RunSpec(physics=physics), Workspace(tmp_path))
    assert told == ["gpt has 64 positions: none for 32 tokens after prompts of 61, 100"]


@pytest.mark.parametrize("family", DIMENSIONS)
def test_the_last_position_alone_has_the_logits_it_has_among_all(family: str) -> None:
    model = build(small(family, vocab_size=50, embedding_dim=16))
    initialize(model, 0)
    tokens = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, state = model(tokens)
        last, alike = model(tokens, last=True)
        onward, _ = model(tokens[:, :1], state)
        again, _ = model(tokens[:, :1], alike, last=True)
    torch.testing.assert_close(last, whole[:, -1:])
    torch.testing.assert_close(again, onward)
