"""The families around one recurrence compute what their peers' whole models do: logits and all gradients."""

from typing import Any

import pytest
import torch
from names_in_fla import fla_configuration, to_fla
from names_in_rwkv import to_rwkv
from peers import needs_peers, relative_error, run_peer
from torch import nn

from xlstm.models import build
from xlstm.models.configs import ModelConfig
from xlstm.models.initialization import initialize
from xlstm.models.sizes import config_for

TOLERANCE = 1e-5
"""Of the Frobenius norm, relative: about a hundred roundings of float32."""

IN_FLOAT64 = ("gated-deltanet",)
"""Families whose own side is computed in float64, so that only the peer's rounding is seen.

The gradient of Gated DeltaNet's rates is a sum over tokens and channels whose terms are up to 69 times as large as it.
Which kernel rounds the norm or the convolution before the memory moves it by 0.6e-6 to 1.7e-5, for the peer too.
"""

OF_FLA: dict[str, dict[str, Any]] = {
    "gla": {"num_heads": 2},
    "hgrn": {},
    "hgrn2": {"head_dim": 32},
    "retnet": {"head_dim": 32},
    "gated-deltanet": {"num_heads": 2},
}


def trained(config: ModelConfig) -> nn.Module:
    """A model away from its initial values, so that every weight matters."""
    model = build(config)
    initialize(model, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


@needs_peers
@pytest.mark.serial
@pytest.mark.parametrize("family", OF_FLA)
def test_models_of_fla_have_our_logits_and_gradients(family: str) -> None:
    config = config_for(family, {"embedding_dim": 64, "num_blocks": 2, **OF_FLA[family]}, 61)
    model = trained(config)
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(61, (2, 37), generator=generator)
    coefficients = torch.randn(2, 37, 61, generator=generator)
    weights = to_fla(config, {name: p.detach() for name, p in model.named_parameters()})
    theirs = run_peer(
        "fla_families",
        {"family": family, "configuration": fla_configuration(config)},
        {"tokens": tokens, "coefficients": coefficients} | {f"weight.{name}": value for name, value in weights.items()},
    )
    if family in IN_FLOAT64:
        model, coefficients = model.double(), coefficients.double()
    logits, _ = model(tokens)
    (logits * coefficients).sum().backward()
    gradients = to_fla(config, {name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    ours = {f"gradient.{name}": value for name, value in gradients.items()} | {"logits": logits}
    assert ours.keys() == theirs.keys()
    errors = {name: relative_error(value, theirs[name]) for name, value in ours.items()}
    assert {name: error for name, error in errors.items() if not error <= TOLERANCE} == {}


@needs_peers
@pytest.mark.serial
@pytest.mark.parametrize("family", ["rwkv5", "rwkv6", "rwkv7"])
def test_the_authors_package_has_our_logits(family: str) -> None:
    config = config_for(family, {"embedding_dim": 128, "num_blocks": 2}, 61)
    model = trained(config)
    weights = to_rwkv(config, {name: p.detach() for name, p in model.named_parameters()})
    tokens = torch.randint(61, (70,), generator=torch.Generator().manual_seed(2))
    theirs = run_peer(
        "rwkv", {"family": family}, {"tokens": tokens} | {f"weight.{name}": value for name, value in weights.items()}
    )
    assert relative_error(model(tokens[None])[0][0], theirs["logits"]) < TOLERANCE
