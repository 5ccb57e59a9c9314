"""From a configuration to its family's closed forms, and what all families have in common: embedding and head."""

from importlib import import_module
from typing import Any

from xlstm.accounting.cost import Cost, Saved, Sequence, linear, norm
from xlstm.models.configs import ModelConfig

TIED = ("gpt",)
"""Families whose head is the token embedding: counted once, as the head."""


def costs(config: ModelConfig, sequence: Sequence) -> list[Cost]:
    """The cost of each block, and last of what is neither block nor embedding nor head."""
    family = _module(config)
    outside = family.outside(config) if hasattr(family, "outside") else norm(config.embedding_dim)
    return [*family.blocks(config, sequence), outside]


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
