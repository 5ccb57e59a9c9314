"""Mamba and RWKV-4's operator of flash-linear-attention compute what ours do, so that their speeds can be compared."""

import pytest
import torch
from peers import needs_peers, relative_error, run_peer
from torch import Tensor

from kernels.wkv import WKVState, wkv
from kernels.wkv.reference import NOTHING
from xlstm.export.transformers import to_transformers
from xlstm.models import build
from xlstm.models.configs import MambaConfig
from xlstm.models.initialization import initialize

TOLERANCE = 1e-5
"""Of the Frobenius norm, relative: about a hundred roundings of float32."""


@needs_peers
@pytest.mark.serial
@pytest.mark.parametrize("length", [3, 67])
def test_mamba_of_fla_has_our_logits_and_gradients(length: int) -> None:
    config = MambaConfig(vocab_size=61, embedding_dim=64, num_blocks=2)
    model = build(config)
    initialize(model, seed=length)
    generator = torch.Generator().manual_seed(length)
    with torch.no_grad():  # away from initial values, so that every weight matters
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    tokens = torch.randint(config.vocab_size, (2, length), generator=generator)
    coefficients = torch.randn(2, length, config.vocab_size, generator=generator)
    weights = to_transformers(config, {name: p.detach() for name, p in model.named_parameters()})

    configuration = {"vocab_size": 61, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 16, "norm_eps": 1e-5}
    theirs = run_peer(
        "fla",
        {"operator": "mamba", "configuration": configuration | {"fuse_cross_entropy": False}},
        {"tokens": tokens, "coefficients": coefficients} | {f"weight.{name}": value for name, value in weights.items()},
    )

    logits, _ = model(tokens)
    (logits * coefficients).sum().backward()
    gradients = to_transformers(config, {name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    ours = {f"gradient.{name}": value for name, value in gradients.items()} | {"logits": logits}
    assert _differing(ours, theirs) == {}


@needs_peers
@pytest.mark.serial
@pytest.mark.parametrize("empty", [True, False], ids=["from-nothing", "from-a-state"])
@pytest.mark.parametrize("length", [1, 37])
def test_wkv_of_fla_has_our_output_state_and_gradients(length: int, empty: bool) -> None:
    batch, channels = 2, 48
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    a, b, m = normal(batch, channels), 0.5 + normal(batch, channels).abs(), normal(batch, channels)
    if empty:
        a, b, m = torch.zeros_like(a), torch.zeros_like(b), torch.full_like(m, NOTHING)
    inputs = {"k": normal(batch, length, channels), "v": normal(batch, length, channels), "a": a, "b": b}
    inputs |= {"log_decay": normal(channels) - 1, "bonus": normal(channels)}
    pushed = {"coefficients": normal(batch, length, channels), "final_coefficients": normal(batch, channels)}

    theirs = run_peer("fla", {"operator": "wkv"}, inputs | pushed | {"m": m})

    given = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
    state = WKVState(given["a"], given["b"], m)
    y, final = wkv(given["k"], given["v"], -torch.exp(given["log_decay"]), given["bonus"], initial_state=state)
    # Of the final sums their quotient: that of a and b at a scale depends on how one chooses the scale.
    ((y * pushed["coefficients"]).sum() + (final.a / final.b * pushed["final_coefficients"]).sum()).backward()
    ours = {f"gradient.{name}": tensor.grad for name, tensor in given.items() if tensor.grad is not None}
    ours |= {"y": y, "final_a": final.a, "final_b": final.b, "final_m": final.m}
    assert _differing(ours, theirs) == {}


def _differing(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    assert ours.keys() == theirs.keys()
    errors = {name: relative_error(value, theirs[name]) for name, value in ours.items()}
    return {name: error for name, error in errors.items() if not error <= TOLERANCE}
