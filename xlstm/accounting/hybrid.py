"""Blocks of several families in turns: each costs what it costs in its family."""

from importlib import import_module
from typing import Any

from xlstm.accounting.cost import Cost, Saved, Sequence, norm
from xlstm.models.configs import HybridConfig


def _in_turns(config: HybridConfig, what: str, sequence: Sequence) -> list[Any]:
    each = []
    for part in config.parts():
        family = import_module(f"xlstm.accounting.{part.family.replace('-', '_')}")
        each.append(getattr(family, what)(part, sequence)[0])
    return [each[index] for index in config.order()]


def blocks(config: HybridConfig, sequence: Sequence) -> list[Cost]:
    """The cost of each block."""
    return _in_turns(config, "blocks", sequence)


def outside(config: HybridConfig) -> Cost:
    """What is neither block, embedding nor head: the last norm."""
    return norm(config.embedding_dim)


def saved(config: HybridConfig, sequence: Sequence) -> list[Saved]:
    """What each block keeps."""
    return _in_turns(config, "saved", sequence)
