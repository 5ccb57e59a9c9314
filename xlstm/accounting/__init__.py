"""What any model costs: parameters, FLOPs and what it saves, one closed form per family. Imports without torch.

Conventions are named, never implied:
- parameters: `total`; `non_embedding` (neither token embedding nor head); `non_embedding_with_head`.
- FLOPs: `exact` counts matrix products, sequence mixing (chunkwise for mLSTM, only pairs that may see each other) and
  recurrences; `6nd` is 6 times total parameters times tokens. Norms, activations and residuals count as nothing. A
  backward pass costs twice its forward pass. Recomputation is no part of the model's FLOPs.

A family's file has `blocks(config, sequence)`, the cost of each block; `saved(config)`, what each block keeps
for its backward pass. `families.OUTSIDE` says where more than one norm is neither block nor embedding nor head.
"""

from functools import lru_cache

from pydantic import BaseModel, ConfigDict

from xlstm.accounting.cost import Cost, Sequence, total
from xlstm.accounting.families import costs, embedding, head
from xlstm.models.configs import ModelConfig
from xlstm.models.naming import dimensions_key
from xlstm.models.published import DIMENSIONS
from xlstm.quantities import compact

__all__ = [
    "Parameters",
    "flops_per_token",
    "parameters",
    "size_label",
    "training_flops",
    "training_flops_per_token",
]

CHUNK_SIZE = 64
"""Chunk at which `exact` counts the mLSTM, whatever chunk a kernel takes: the count belongs to the model."""


class Parameters(BaseModel):
    """Counts in three conventions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    total: int
    non_embedding: int
    non_embedding_with_head: int


@lru_cache(maxsize=4096)
def parameters(config: ModelConfig) -> Parameters:
    """Parameters of the model of a configuration."""
    inner = total(costs(config, Sequence(1, 1, True))).parameters
    return Parameters(
        total=inner + embedding(config).parameters + head(config).parameters,
        non_embedding=inner,
        non_embedding_with_head=inner + head(config).parameters,
    )


def size_label(config: ModelConfig) -> str:
    """The size as people write it: `125M` where the dimensions are published ones, else the number of parameters."""
    for size, dimensions in DIMENSIONS.get(dimensions_key(config), {}).items():
        if all(getattr(config, field) == value for field, value in dimensions.items()):
            return size
    return compact(parameters(config).total)


def flops_per_token(
    config: ModelConfig,
    context_length: int,
    *,
    backward: bool = False,
    include_head: bool = True,
    causal: bool = True,
    chunk_size: int = CHUNK_SIZE,
) -> Cost:
    """FLOPs per token, mean over a sequence: `products` that a counter of operators sees, and `recurrence` by hand.

    Forward alone, or with `backward` the forward and backward pass. `causal` counts only pairs of tokens that may see
    each other; False counts whole squares, as a counter of operators does. `chunk_size` is that of the mLSTM.
    """
    if context_length < 1 or chunk_size < 1:
        raise ValueError(f"context_length {context_length} and chunk_size {chunk_size} must be at least 1")
    cost = total(costs(config, Sequence(context_length, chunk_size, causal))) + embedding(config)
    if include_head:
        cost += head(config)
    passes = 3 if backward else 1
    return Cost(cost.parameters, passes * cost.products, passes * cost.recurrence)


@lru_cache(maxsize=4096)
def training_flops_per_token(config: ModelConfig, context_length: int) -> float:
    """FLOPs per trained token by the convention `exact`: forward and backward, head included."""
    return flops_per_token(config, context_length, backward=True).flops


def training_flops(config: ModelConfig, context_length: int, tokens: int) -> dict[str, float]:
    """FLOPs of training on `tokens` by convention: `exact` and `6nd`."""
    return {
        "exact": training_flops_per_token(config, context_length) * tokens,
        "6nd": 6.0 * parameters(config).total * tokens,
    }
