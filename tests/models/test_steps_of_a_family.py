"""Each step of docs/extending.md that a family was added without is named here."""

from importlib import import_module
from pathlib import Path
from typing import Any

import every_family
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from xlstm.accounting import flops_per_token, parameters
from xlstm.accounting.families import saved
from xlstm.models import _CLASSES, build
from xlstm.models.configs import FAMILIES
from xlstm.models.initialization import initialize
from xlstm.models.language_model import LanguageModel
from xlstm.models.naming import parse_family
from xlstm.models.published import DIMENSIONS
from xlstm.models.sizes import config_for

DOCUMENT = Path(__file__).parents[2] / "docs" / "baselines.md"

each_family = pytest.mark.parametrize("family", FAMILIES)


def small(family: str) -> Any:
    """The small configuration that tests take for a family; fails where there is none."""
    labels = [label for label in every_family.DIMENSIONS if parse_family(label).base == family]
    assert labels, f"step 7: no {family} in DIMENSIONS of tests/every_family.py"
    return every_family.small(labels[0], vocab_size=61, embedding_dim=64)


@each_family
def test_steps_2_and_3_the_model_is_found_and_is_a_language_model(family: str) -> None:
    assert family in _CLASSES, f"step 3: no line for {family} in _CLASSES of xlstm/models/__init__.py"
    module, name = _CLASSES[family]
    model = getattr(import_module(module), name)
    assert issubclass(model, LanguageModel), f"step 2: {name} is no LanguageModel"
    assert model.initialize_parameter is not LanguageModel.initialize_parameter, (
        f"step 2: {name} has no initialize_parameter"
    )


@each_family
def test_step_4_what_the_model_costs_is_what_it_has(family: str) -> None:
    module = import_module(f"xlstm.accounting.{family.replace('-', '_')}")
    for name in ("blocks", "saved"):
        assert hasattr(module, name), f"step 4: no function {name} in {module.__name__}"
    config = small(family)
    with torch.device("meta"):
        built = build(config)
    counted = sum(parameter.numel() for parameter in built.parameters())
    assert parameters(config).total == counted, f"step 4: {module.__name__} counts other parameters than the model has"
    kept = saved(config)
    assert len(kept) == config.num_blocks, f"step 4: {module.__name__}.saved is one entry a block"


@each_family
def test_step_4_flops_are_of_the_order_that_pytorch_counts(family: str) -> None:
    """Fused recurrences hide or double what they compute, so the exact counts are the tests' in tests/accounting."""
    config = small(family)
    model = build(config)
    initialize(model, seed=0)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 32, dtype=torch.int64))
    counted = flops_per_token(config, 32, causal=False).flops * 32
    assert 0.5 < counter.get_total_flops() / counted < 2, f"step 4: {family} is counted {counted:.3g} FLOPs"


@each_family
def test_step_5_the_family_has_a_published_size(family: str) -> None:
    if family == "hybrid":
        return  # whose sizes are its families'
    labels = [label for label in DIMENSIONS if label == family or label.startswith(f"{family}[")]
    sizes = [size for label in labels for size in DIMENSIONS[label]]
    assert "125M" in sizes, f"step 5: no 125M of {family} in DIMENSIONS of xlstm/models/published.py"
    label = "xlstm[1:0]" if family == "xlstm" else family
    assert config_for(label, "125M", 50_304).family == family


@each_family
def test_step_6_the_name_is_read_back(family: str) -> None:
    from xlstm.models.naming import family_label

    assert parse_family(family_label(small(family))).base == family


@each_family
def test_step_8_the_family_is_described(family: str) -> None:
    if family in ("xlstm", "xlstm-large"):
        return  # what all else is compared with
    assert f"`{family}`" in DOCUMENT.read_text(), f"step 8: `{family}` is not described in {DOCUMENT.name}"
