"""H3's and Hyena's filters and mixers are what their papers write, step by step."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xlstm.models import build
from xlstm.models.initialization import initialize
from xlstm.models.sizes import config_for


def mixer(family: str, **dimensions: Any) -> Any:
    """The first block's, in float64, away from its initial values."""
    model = build(config_for(family, {"embedding_dim": 6, "num_blocks": 1, **dimensions}, 8)).double()
    initialize(model, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model.blocks[0].mixer  # type: ignore[union-attr,index]


def convolved(x: Tensor, taps: Tensor) -> Tensor:
    """sum_l taps_l x_{t-l} of one sequence (time, channels)."""
    return torch.stack([sum(taps[lag] * x[t - lag] for lag in range(min(t + 1, len(taps)))) for t in range(len(x))])


def tokens(time: int) -> Tensor:
    return torch.randn(1, time, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@torch.no_grad()
def test_h3_is_a_shift_and_an_element_wise_complex_recurrence_between_products() -> None:
    h3, x = mixer("h3", state_dim=8), tokens(70)  # more than a piece of the powers
    query, key, value = h3.query_key_value(x)[0].chunk(3, dim=-1)
    into, read = h3.shift.into, h3.shift.read
    taps = [sum(read[:, n + lag] * into[:, n] for n in range(8 - lag)) for lag in range(8)]
    z = (convolved(key, torch.stack(taps)) + h3.shift.skip * key) * value
    diagonal = h3.diagonal
    step = diagonal.log_steps.exp()[:, None]
    rates = torch.complex(-diagonal.log_rates.exp(), diagonal.angles)
    a, b = (1 + rates * step / 2) / (1 - rates * step / 2), step / (1 - rates * step / 2)
    state, read_out = torch.zeros_like(rates), torch.view_as_complex(diagonal.read)
    y = []
    for z_t in z:
        state = a * state + b * torch.view_as_complex(diagonal.into) * z_t[:, None]
        y.append(2 * (read_out * state).sum(-1).real + diagonal.skip * z_t)
    actual, after = h3(x, None, None, True)
    torch.testing.assert_close(actual[0], h3.out(torch.stack(y) * query))
    torch.testing.assert_close(torch.view_as_complex(after.states)[0], state)


@torch.no_grad()
@pytest.mark.parametrize("order", [2, 3])
def test_hyena_is_products_and_convolutions_with_filters_of_positions(order: int) -> None:
    hyena, x = mixer("hyena", order=order, context_length=40, num_features=5, filter_dim=4), tokens(23)
    padded = nn.functional.pad(hyena.project(x)[0], (0, 0, 2, 0))
    short = sum(hyena.short_weight[lag] * padded[2 - lag : 25 - lag] for lag in range(3)) + hyena.short_bias
    *gates, v = short.chunk(order + 1, dim=-1)
    filters = hyena.filters
    inner = filters.features
    for weight, bias in zip((filters.input_weight, *filters.hidden_weights), filters.biases, strict=True):
        inner = torch.sin(filters.frequency * (inner @ weight.T + bias))
    share = torch.linspace(0, 1, 40, dtype=torch.float64)[:, None]
    rates = torch.linspace(math.log(100) / 1.5, math.log(100) / 0.3, 6 * (order - 1), dtype=torch.float64)
    taps = (inner @ filters.output_weight.T * torch.exp(-share * rates)).unflatten(1, (order - 1, 6))
    for stage, gate in enumerate(reversed(gates[1:])):
        v = convolved(v * gate, taps[:, stage]) + filters.skip[stage] * (v * gate)
    torch.testing.assert_close(hyena(x, None, None, False)[0][0], hyena.out(v * gates[0]))


def test_filters_of_2048_taps_are_exact_in_float32() -> None:
    """What powers compound is computed in float64; rounding their values and a product of 64 terms remains."""
    model = build(config_for("h3", {"embedding_dim": 16, "num_blocks": 1}, 8))
    initialize(model, seed=0)
    diagonal: Any = model.blocks[0].mixer.diagonal  # type: ignore[union-attr,index]
    actual, exact = diagonal(2048), diagonal.double()(2048)
    assert (actual - exact).norm() < 10 * torch.finfo(torch.float32).eps * exact.norm()


def test_hyena_refuses_documents_longer_than_its_filters() -> None:
    model = build(config_for("hyena", {"embedding_dim": 6, "num_blocks": 1, "context_length": 8}, 8))
    initialize(model, seed=0)
    text = torch.zeros(1, 9, dtype=torch.int64)
    with pytest.raises(ValueError, match="a document of 9 tokens exceeds the 8 positions of hyena's filters"):
        model(text)
    resets = torch.zeros(1, 9, dtype=torch.bool)
    resets[0, 3] = True
    _, state = model(text, resets=resets)
    assert state.blocks[0].stages[0].shape[1] == 7  # older inputs are beyond the filters
    model(text[:, :2], state)
