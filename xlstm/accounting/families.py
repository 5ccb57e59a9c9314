"""From a configuration to its family's closed forms, and what all families have in common: embedding and head."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from xlstm.accounting.cost import Cost, Saved, Sequence, linear
from xlstm.models.configs import ModelConfig

TIED = ("gpt",)
"""Families whose head is the token embedding: counted once, as the head."""

OUTSIDE: Mapping[str, Callable[[Any], int]] = {
    "gpt": lambda config: config.context_length + 2,  # a vector per position; the last norm, with a bias
    "h3": lambda config: 2,  # the last norm, with a bias
    "hyena": lambda config: 2,
    "hgrn": lambda config: 1 + config.num_blocks,  # the last norm, and a lower bound per block and channel
    "hgrn2": lambda config: 1 + config.num_blocks,
    "lstm": lambda config: 0 if config.variant == "vanilla" else 1,  # without norms, none at last
    **dict.fromkeys(("rwkv4", "rwkv5", "rwkv6", "rwkv7"), lambda config: 4),  # the first and the last norm, with biases
}
"""Vectors of the model's width in what is neither block, embedding nor head, where that is not one norm's weight."""


def costs(config: ModelConfig, sequence: Sequence) -> list[Cost]:
    """The cost of each block, and last of what is neither block nor embedding nor head."""
    vectors = OUTSIDE[config.family](config) if config.family in OUTSIDE else 1
    return [*_module(config).blocks(config, sequence), Cost(vectors * config.embedding_dim)]


def saved(config: ModelConfig) -> list[Saved]:
    """What each block keeps for its backward pass."""
    blocks: list[Saved] = _module(config).saved(config)
    return blocks


def head(config: ModelConfig) -> Cost:
    """The map from the last hidden vector to the vocabulary, or to what else comes out."""
    return linear(config.embedding_dim, config.num_outputs or config.vocab_size)


def embedding(config: ModelConfig) -> Cost:
    """The token embedding, a look-up, where it is not the head too; or the map of the real numbers that go in."""
    if config.num_inputs:
        return linear(config.num_inputs, config.embedding_dim)
    tied = config.family in TIED and not config.num_outputs
    return Cost(0 if tied else config.vocab_size * config.embedding_dim)


def _module(config: ModelConfig) -> Any:
    return import_module(f"xlstm.accounting.{config.family.replace('-', '_')}")
