"""xLSTM and xlstm-large: state in and out, documents, ablations, initial values."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xlstm.models import build
from xlstm.models.configs import ModelConfig, XLSTMConfig, XLSTMLargeConfig
from xlstm.models.initialization import initialize
from xlstm.models.sizes import config_for

XLSTM = XLSTMConfig(vocab_size=61, embedding_dim=32, num_blocks=2, slstm_at=(1,))
LARGE = XLSTMLargeConfig(vocab_size=61, embedding_dim=32, num_blocks=2, num_heads=2)
VARIANTS: list[dict[str, Any]] = [
    {"input_gate": "bias", "forget_gate": "bias"},
    {"input_gate": "none", "forget_gate": "fixed"},
    {"input_gate": "none", "forget_gate": "none"},
    {"forget_gate": "fixed"},
    {"input_gate": "bias"},
    {"input_gate_activation": "sigmoid"},
    {"input_gate_activation": "sigmoid", "normalizer": False},
    {"normalizer": False},
    {"convolution": False},
    {"learnable_skip": False},
    {"mlstm_block": "post-up"},
    {"slstm_gates": "dense", "slstm_feedforward_factor": 2.6},
    {"recurrent_gradient_clip": 0.01},
]


def model(config: ModelConfig) -> nn.Module:
    """A model in float32 whose every parameter matters."""
    built = build(config)
    initialize(built, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
            if name.endswith("input_gate.bias") and config.family == "xlstm-large":
                parameter.add_(5.0)
    return built


def tokens(batch: int, time: int) -> Tensor:
    return torch.randint(61, (batch, time), generator=torch.Generator().manual_seed(2))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).detach().norm() / expected.detach().norm())


def state_bytes(state: Any) -> int:
    if isinstance(state, Tensor):
        return state.untyped_storage().nbytes()
    return sum(state_bytes(part) for part in state or ())


CONFIGS = pytest.mark.parametrize("config", [XLSTM, LARGE], ids=lambda c: c.family)


@CONFIGS
@torch.no_grad()
def test_generation_token_by_token_equals_the_full_pass_at_constant_memory(config: ModelConfig) -> None:
    built, text = model(config), tokens(2, 150)
    whole, after = built(text)
    state, steps, sizes = None, [], set()
    for token in text.split(1, dim=1):
        logits, state = built(token, state)
        steps.append(logits)
        sizes.add(state_bytes(state))
    assert relative_error(torch.cat(steps, dim=1), whole) < 1e-5
    assert len(sizes) == 1
    assert state_bytes(after) >= sizes.pop()  # neither holds the sequence, both the memory


@CONFIGS
def test_a_text_in_pieces_has_the_logits_and_gradients_of_the_text(config: ModelConfig) -> None:
    built, text = model(config).double(), tokens(2, 140)
    whole, _ = built(text)
    whole.square().sum().backward()
    expected = {name: parameter.grad.clone() for name, parameter in built.named_parameters()}
    built.zero_grad()
    state, pieces = None, []
    for piece in text.split([70, 1, 64, 5], dim=1):
        logits, state = built(piece, state)
        pieces.append(logits)
    joined = torch.cat(pieces, dim=1)
    joined.square().sum().backward()
    assert relative_error(joined, whole) < 1e-12
    for name, parameter in built.named_parameters():
        assert relative_error(parameter.grad, expected[name]) < 1e-9, name


@CONFIGS
@torch.no_grad()
def test_a_document_has_the_same_logits_packed_after_others_as_alone(config: ModelConfig) -> None:
    built, text = model(config), tokens(2, 100)
    resets = torch.zeros(2, 100, dtype=torch.bool)
    resets[0, 37] = resets[1, 0] = resets[1, 64] = resets[1, 65] = True
    packed, state = built(text, resets=resets)
    for row, start, end in ((0, 0, 37), (0, 37, 100), (1, 0, 64), (1, 64, 65), (1, 65, 100)):
        alone, _ = built(text[row : row + 1, start:end])
        assert relative_error(packed[row : row + 1, start:end], alone) < 1e-5
    _, last = built(text[1:, 65:])
    more = tokens(1, 7)
    continued = built(more, last)[0]
    both = built(more.expand(2, -1), state)[0]
    assert relative_error(both[1:], continued) < 1e-5


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_every_ablation_trains_and_generates(changes: dict[str, Any]) -> None:
    config = dataclasses.replace(XLSTM, **changes)
    built = build(config)
    initialize(built, 0)
    text = tokens(4, 33)
    optimizer = torch.optim.AdamW(built.parameters(), lr=5e-3)
    losses = []
    for _ in range(8):
        loss = built(text[:, :-1], targets=text[:, 1:])[0].mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in built.parameters())
        optimizer.step()
    assert losses[-1] < losses[0] - 0.2
    with torch.no_grad():
        whole, _ = built(text)
        state, steps = None, []
        for token in text.split(1, dim=1):
            logits, state = built(token, state)
            steps.append(logits)
    assert relative_error(torch.cat(steps, dim=1), whole) < 1e-4


HIDDEN = [{"recurrent_gradient_clip": 0.01}, {"normalizer": False}]
"""A clip is seen in gradients alone; and the norm of each head undoes what the normaliser divides by."""


@pytest.mark.parametrize("changes", [changes for changes in VARIANTS if changes not in HIDDEN], ids=str)
@torch.no_grad()
def test_every_ablation_is_another_function_of_the_weights_it_shares(changes: dict[str, Any]) -> None:
    plain, changed = model(XLSTM), model(dataclasses.replace(XLSTM, **changes))
    own = changed.state_dict()
    shared = {
        name: value for name, value in plain.state_dict().items() if own.get(name, value[:0]).shape == value.shape
    }
    changed.load_state_dict(shared, strict=False)
    assert relative_error(changed(tokens(1, 20))[0], plain(tokens(1, 20))[0]) > 1e-3


def test_the_recurrent_gradient_clip_bounds_gradients_and_leaves_outputs() -> None:
    config = dataclasses.replace(XLSTM, recurrent_gradient_clip=1e-4)
    plain, clipped = model(XLSTM), model(config)
    text = tokens(2, 30)
    for built in (plain, clipped):
        built(text)[0].square().sum().backward()
    assert torch.equal(plain(text)[0], clipped(text)[0])
    name = "blocks.1.recurrent"
    assert relative_error(clipped.get_parameter(name).grad, plain.get_parameter(name).grad) > 1e-3


FAMILIES_AT_FULL_SIZE = ["xlstm[1:0]", "xlstm[7:1]", "xlstm-large", "llama", "mamba", "rwkv4"]


@pytest.mark.parametrize("family", FAMILIES_AT_FULL_SIZE)
@torch.no_grad()
def test_a_fresh_models_loss_is_that_of_a_uniform_guess(family: str) -> None:
    config = config_for(family, "125M", 50_304)
    built = build(config)
    initialize(built, 0)
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(50_304, (1, 65), generator=generator)
    losses, _ = built(text[:, :-1], targets=text[:, 1:])
    assert float(losses.mean()) == pytest.approx(math.log(50_304), rel=0.05)
