"""Our xlstm-large, saved for transformers, gives there our logits and all of our gradients, in float32."""

import pytest
import torch
from peers import needs_peers, relative_error, run_peer

from xlstm.export.transformers import from_transformers, to_transformers
from xlstm.export.transformers_config import config_to_transformers
from xlstm.models import build
from xlstm.models.configs import XLSTMLargeConfig
from xlstm.models.initialization import initialize

TOLERANCE = 1e-5
"""Of the Frobenius norm, relative: about a hundred roundings of float32."""


@needs_peers
@pytest.mark.serial
@pytest.mark.parametrize(("length", "chunk_size", "seed"), [(64, 32, 0), (128, 64, 1), (16, 16, 2)])
def test_logits_and_gradients_are_those_of_transformers(length: int, chunk_size: int, seed: int) -> None:
    config = XLSTMLargeConfig(vocab_size=61, embedding_dim=128, num_blocks=2, num_heads=4)
    model = build(config)
    initialize(model, seed)
    generator = torch.Generator().manual_seed(seed)
    # Away from initial values, so that every weight matters; and with input gates that are open, but not so wide that
    # the normaliser cancels them: their biases' gradients would be differences of numbers a thousand times as large.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.03)
            if name.endswith("input_gate.bias"):
                parameter.add_(3.0)
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    tokens = torch.randint(config.vocab_size, (2, length), generator=generator)
    coefficients = torch.randn(2, length, config.vocab_size, generator=generator)

    theirs = run_peer(
        "transformers_xlstm",
        {"configuration": config_to_transformers(config, length), "chunk_size": chunk_size},
        {"tokens": tokens, "coefficients": coefficients}
        | {f"weight.{name}": value for name, value in to_transformers(config, weights).items()},
    )

    logits, _ = model(tokens)
    (logits * coefficients).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    errors = {
        name: relative_error(value, theirs[f"gradient.{name}"])
        for name, value in to_transformers(config, gradients).items()
    }
    errors["logits"] = relative_error(logits, theirs["logits"])
    assert len(errors) == len(theirs)
    assert {name: error for name, error in errors.items() if error > TOLERANCE} == {}
    back = from_transformers(config, to_transformers(config, weights))
    assert all(torch.equal(back[name], value) for name, value in weights.items())
