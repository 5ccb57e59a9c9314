"""How the settings of a small model carry over to a wide one: the parametrization, and the model that it starts from.

Imports without torch; what is derived for each kind of parameter is told in docs/mup.md.
"""

import dataclasses
import math
from typing import Any, Literal

from pydantic import Field

from xlstm.models.configs import ModelConfig
from xlstm.run.data import PositiveInt, Ring


class Transfer(Ring):
    """The fields of the physics that say it."""

    parametrization: Literal["standard", "mup"] = Field(
        "standard",
        description="How rates and initial weights follow the width; `mup` keeps the best rate of `mup_base_width`.",
    )
    mup_base_width: PositiveInt | None = Field(
        None, description="Width at which `mup` is the standard parametrization: where the rate was, or is, searched."
    )
    mup_base_heads: PositiveInt | None = Field(
        None, description="Heads at that width; null: as many as the run has, so that heads grow with the width."
    )


def base_model(model: ModelConfig, transfer: Transfer) -> ModelConfig:
    """The model of the base width that is all else as `model`.

    ValueError where the fields contradict each other, or there is no such model.
    """
    width, heads = transfer.mup_base_width, transfer.mup_base_heads
    if transfer.parametrization == "standard":
        if width or heads:
            raise ValueError("mup_base_width and mup_base_heads are for `parametrization: mup`")
        return model
    if width is None:
        raise ValueError("mup needs mup_base_width, the width at which the rate was searched")
    changes: dict[str, Any] = {"embedding_dim": width}
    if heads is not None:
        stated = {field.name for field in dataclasses.fields(model)}
        if "num_heads" not in stated or model.family == "hybrid":
            raise ValueError(f"mup_base_heads says nothing of {model.family}, whose heads are of one width")
        changes["num_heads"] = heads
    try:
        base = dataclasses.replace(model, **changes)
    except ValueError as error:
        raise ValueError(f"mup_base_width {width} makes no model of {model.family}: {error}") from None
    joined = model.family == "gpt" or getattr(model, "mlstm_block", "") == "post-up"
    if joined and score_scale(model, base) != 1:
        raise ValueError(
            f"mup_base_heads must keep the width of heads in {model.family}: queries lie in one matrix with keys and "
            "values, and cannot be scaled alone"
        )
    return base


def score_scale(model: ModelConfig, base: ModelConfig) -> float:
    """What turns scores over the root of the heads' width into scores over that width, as they are in the base."""
    return math.sqrt(_head_width(base) / _head_width(model))


def _head_width(model: ModelConfig) -> float:
    """Channels of a head; of all of them where a configuration does not say how many there are, or of each family."""
    heads = getattr(model, "num_heads", 1)
    return model.embedding_dim / (heads if isinstance(heads, int) else 1)
