"""Blocks of several families in turns: each costs what it costs in its family."""

from xlstm.accounting import families
from xlstm.accounting.cost import Cost, Saved, Sequence
from xlstm.models.configs import HybridConfig


def blocks(config: HybridConfig, sequence: Sequence) -> list[Cost]:
    """The cost of each block."""
    each = [families.costs(part, sequence)[0] for part in config.parts()]
    return [each[index] for index in config.order()]


def saved(config: HybridConfig) -> list[Saved]:
    """What each block keeps."""
    each = [families.saved(part)[0] for part in config.parts()]
    return [each[index] for index in config.order()]
