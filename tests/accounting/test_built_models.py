"""The closed forms count what the built models have, and what a counter of operators sees them do."""

import dataclasses
from typing import Any

import pytest
import torch

from xlstm.accounting import parameters
from xlstm.models import build
from xlstm.models.configs import XLSTMConfig
from xlstm.models.sizes import config_for

VARIANTS: list[dict[str, Any]] = [
    {"input_gate": "bias", "forget_gate": "bias"},
    {"input_gate": "none", "forget_gate": "fixed"},
    {"input_gate": "none", "forget_gate": "none"},
    {"input_gate_activation": "sigmoid", "normalizer": False},
    {"convolution": False},
    {"learnable_skip": False},
    {"mlstm_block": "post-up"},
    {"slstm_gates": "dense", "slstm_feedforward_factor": 2.6},
    {"recurrent_gradient_clip": 10.0},
]


@pytest.mark.parametrize("size", ["125M", "350M", "760M", "1.3B", "2.7B"])
@pytest.mark.parametrize("family", ["xlstm[1:0]", "xlstm[7:1]", "xlstm[0:1]", "xlstm-large", "llama"])
def test_built_models_have_the_parameters_counted(family: str, size: str) -> None:
    config = config_for(family, size, 50_304)
    with torch.device("meta"):
        model = build(config)
    counted = parameters(config)
    names = dict(model.named_parameters())
    assert sum(p.numel() for p in names.values()) == counted.total
    assert sum(p.numel() for name, p in names.items() if name not in ("embedding.weight", "head.weight")) == (
        counted.non_embedding
    )


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_variants_of_xlstm_have_the_parameters_counted(changes: dict[str, Any]) -> None:
    config = dataclasses.replace(XLSTMConfig(vocab_size=64, embedding_dim=64, num_blocks=2, slstm_at=(1,)), **changes)
    with torch.device("meta"):
        model = build(config)
    assert sum(p.numel() for p in model.parameters()) == parameters(config).total
