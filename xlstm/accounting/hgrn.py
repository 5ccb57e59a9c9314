"""HGRN: 4 d² + d + 3 d F + 2 d parameters per block, and d of the lower bounds."""

from xlstm.accounting.cost import Cost, Saved, Sequence, linear, norm, swiglu_block, swiglu_block_saved
from xlstm.models.linear_configs import HGRNConfig

RECURRENCE_OPERATIONS = 3
"""FLOPs per channel and step: the exponential, a product and a sum."""


def blocks(config: HGRNConfig, sequence: Sequence) -> list[Cost]:
    """The cost of each block."""
    d = config.embedding_dim
    mixer = linear(d, 3 * d) + Cost(recurrence=RECURRENCE_OPERATIONS * d) + norm(d) + linear(d, d)
    return [swiglu_block(mixer, d, config.feedforward_dim)] * config.num_blocks


def saved(config: HGRNConfig) -> list[Saved]:
    """What each block keeps.

    The gate, the normed state, their product; in float32 the input, the forget gate's logits and what it lets in, the
    recurrence's input, gates and states, and the norm's scale.
    """
    d = config.embedding_dim
    return [swiglu_block_saved(Saved(3 * d, 6 * d + 1), d, config.feedforward_dim)] * config.num_blocks
