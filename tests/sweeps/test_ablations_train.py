"""Every variant of the shipped ablation sweep builds and trains: as the sweep writes it, at a small width."""

import dataclasses

import pytest
import torch

from sweeps.sweep import SHIPPED, Sweep
from xlstm.models import build
from xlstm.models.configs import ModelConfig, XLSTMConfig
from xlstm.models.initialization import initialize

RUNS = Sweep.load(SHIPPED / "paper/ablations-15b.yaml").runs
VOCABULARY = 61


def narrow(config: ModelConfig) -> ModelConfig:
    """The variant at width 32 and two blocks, one of each kind that it has."""
    return dataclasses.replace(config, vocab_size=VOCABULARY, embedding_dim=32, num_blocks=2, **placed(config))


def placed(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    if not isinstance(config, XLSTMConfig):
        return {}
    if len(config.slstm_at) == config.num_blocks:
        return {"slstm_at": (0, 1)}
    return {"slstm_at": (1,) if config.slstm_at else ()}


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.spec.run_id)
def test_every_variant_of_the_ablation_sweep_builds_and_trains(run) -> None:  # type: ignore[no-untyped-def]
    config = narrow(run.spec.physics.model)
    model = build(config)
    initialize(model, 0)
    text = torch.randint(VOCABULARY, (4, 33), generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(12):
        loss = model(text[:, :-1], targets=text[:, 1:])[0].mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.1
