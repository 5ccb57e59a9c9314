"""Settings that carry over from width to width: what the parametrization does to weights, rates and activations."""

import dataclasses
from typing import Any

import pytest
import torch
from every_family import DIMENSIONS, small

from xlstm.models import build
from xlstm.models.configs import ModelConfig
from xlstm.models.initialization import initial_value
from xlstm.run.spec import Data, Optimizer, Physics
from xlstm.training.coordinates import coordinates
from xlstm.training.optimization.optimizer import build_optimizer, set_learning_rate
from xlstm.training.optimization.parametrization import factors_of
from xlstm.training.parallel import init_weights

BASE = 64


def physics(family: str, width: int, parametrization: str = "mup", optimizer: str = "adamw", **more: Any) -> Physics:
    config: ModelConfig = small(family, vocab_size=64, embedding_dim=width)
    transfer: dict[str, Any] = {"parametrization": parametrization, "mup_base_width": BASE} | more
    if parametrization == "standard":
        transfer = {}
    elif family == "gpt":  # whose queries cannot be scaled alone: heads stay as wide
        config = dataclasses.replace(config, num_heads=2 * width // BASE)
        transfer["mup_base_heads"] = 2
    data = Data(corpus="text", revision="sha256:0", context_length=32)
    rate = Optimizer(name=optimizer, learning_rate=5e-3)  # type: ignore[arg-type]
    return Physics(model=config, data=data, tokens=2**16, batch_tokens=64, optimizer=rate, **transfer)


def ratios(family: str, parametrization: str, optimizer: str = "adamw", widths: tuple[int, ...] = (64, 384)) -> Any:
    """The largest over the least size of each place after a few steps."""
    sizes = [coordinates(physics(family, width, parametrization, optimizer), 6) for width in widths]
    return {place: max(one[place] for one in sizes) / min(one[place] for one in sizes) for place in sizes[0]}


@pytest.mark.parametrize(
    ("family", "optimizer"),
    [("llama", "adamw"), ("xlstm[1:1]", "adamw"), pytest.param("llama", "muon", marks=pytest.mark.slow)],
)
def test_activations_are_flat_over_the_width_under_mup_and_grow_under_the_standard(family: str, optimizer: str) -> None:
    flat, grown = (ratios(family, parametrization, optimizer) for parametrization in ("mup", "standard"))
    assert max(flat.values()) < 1.5, flat
    assert max(grown.values()) > 1.7, grown


@pytest.mark.slow
@pytest.mark.parametrize("family", ["xlstm-large", "gpt", "mamba", "rwkv7", "gated-deltanet", "lstm[vanilla]"])
def test_activations_of_other_kinds_of_families_are_flat_over_the_width_under_mup(family: str) -> None:
    flat = ratios(family, "mup", widths=(64, 256))
    assert max(flat.values()) < 1.5, flat


@pytest.mark.parametrize("family", DIMENSIONS)
def test_at_the_base_width_nothing_changes(family: str) -> None:
    run = physics(family, BASE)
    with torch.device("meta"):
        model = build(run.model)
    for name, own in factors_of(model, run).items():
        assert (own.rate, own.epsilon, own.muon_rate) == (1, 1, 1), name
        value = initial_value(model, name, model.get_parameter(name).shape, 0)
        assert torch.equal(own.initial(value), value), name


@pytest.mark.parametrize("family", DIMENSIONS)
def test_maps_start_by_their_inputs_and_move_by_them_and_the_rest_stays_as_it_is(family: str) -> None:
    run = physics(family, 4 * BASE)
    model, base = (
        build(run.model),
        build(physics(family, BASE, **({"mup_base_heads": 2} if family == "gpt" else {})).model),
    )
    factors = factors_of(model, run)
    init_weights(model, 0, factors)
    init_weights(base, 0)
    optimizer = build_optimizer(model, run.optimizer, factors)
    set_learning_rate(optimizer, 1.0)
    rates = {id(one): group["lr"] for group in optimizer.param_groups for one in group["params"]}
    decays = {
        id(one): group["lr"] * group["weight_decay"] for group in optimizer.param_groups for one in group["params"]
    }
    for (name, wide), narrow in zip(model.named_parameters(), base.parameters(), strict=True):
        size = wide.detach().square().mean().sqrt() / narrow.square().mean().sqrt()
        fans = model.fans(name, wide.shape)
        grown = fans[0] / base.fans(name, narrow.shape)[0] if fans else 1.0
        asked = 0.5 if model.asks(name) else 1.0
        assert decays[id(wide)] in (0, pytest.approx(0.1)), name
        if name == "head.weight":
            grown, expected, asked = 4.0, 1 / 4, 1.0
        elif model.tied and name.startswith("norm."):
            grown, expected = 4.0, 1 / 4
        else:
            expected = asked / grown**0.5
        assert rates[id(wide)] == pytest.approx(asked / grown), name
        if (fans or name == "embedding.weight" or name.startswith("norm.")) and narrow.any():
            assert float(size) == pytest.approx(expected, rel=1e-5), name
