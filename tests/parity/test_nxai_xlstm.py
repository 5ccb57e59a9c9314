"""Our xLSTM with the weights of NX-AI's package gives its logits and all of its gradients, in float32."""

import pytest
import torch
from peers import needs_peers, relative_error, run_peer

from xlstm.export.xlstm_packages import from_nxai, nxai_layout, to_nxai
from xlstm.models import build
from xlstm.models.configs import XLSTMConfig
from xlstm.models.initialization import initialize

TOLERANCE = 1e-5
"""Of the Frobenius norm, relative: about a hundred roundings of float32."""


@needs_peers
@pytest.mark.serial
@pytest.mark.parametrize(
    ("slstm_at", "length", "seed"),
    [((), 1, 0), ((), 67, 1), ((0, 1), 67, 2), ((1,), 130, 3), ((0,), 33, 4), ((1,), 256, 5)],
)
def test_logits_and_gradients_are_those_of_nxai(slstm_at: tuple[int, ...], length: int, seed: int) -> None:
    config = XLSTMConfig(vocab_size=61, embedding_dim=64, num_blocks=2, slstm_at=slstm_at)
    model = build(config)
    initialize(model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # away from initial values, so that every weight matters
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    tokens = torch.randint(config.vocab_size, (2, length), generator=generator)
    coefficients = torch.randn(2, length, config.vocab_size, generator=generator)

    theirs = run_peer(
        "nxai_xlstm",
        {
            "vocab_size": config.vocab_size,
            "embedding_dim": config.embedding_dim,
            "num_blocks": config.num_blocks,
            "num_heads": config.num_heads,
            "slstm_at": list(slstm_at),
            "context_length": length,
        },
        {"tokens": tokens, "coefficients": coefficients}
        | {f"weight.{name}": value for name, value in to_nxai(config, weights).items()},
    )

    logits, _ = model(tokens)
    (logits * coefficients).sum().backward()
    gradients = nxai_layout(config, {name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    errors = {name: relative_error(value, theirs[f"gradient.{name}"]) for name, value in gradients.items()}
    errors["logits"] = relative_error(logits, theirs["logits"])
    assert len(errors) == len(theirs)
    assert {name: error for name, error in errors.items() if error > TOLERANCE} == {}
    back = from_nxai(config, to_nxai(config, weights))
    assert all(torch.allclose(back[name], value, rtol=1e-6, atol=1e-7) for name, value in weights.items())
