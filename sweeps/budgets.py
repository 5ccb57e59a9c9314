"""Token budgets of points, however they are stated. Imports without torch."""

from collections.abc import Mapping
from typing import Any

from xlstm import accounting
from xlstm.models.configs import ModelConfig


def tokens_of(stated: Mapping[str, Any], config: ModelConfig, context_length: int, batch: int) -> int:
    """As stated; of a budget given in steps, per parameter or in FLOPs the nearest whole step, at least one."""
    if "tokens" in stated:
        return int(stated["tokens"])
    if "steps" in stated:
        return int(stated["steps"]) * batch
    if "flops" in stated:
        tokens = stated["flops"] / accounting.training_flops_per_token(config, context_length)
    else:
        tokens = stated["tokens_per_parameter"] * accounting.parameters(config).total
    return max(1, round(float(tokens) / batch)) * batch
