"""xlstm-large, the block of xLSTM-7B (arXiv 2503.13427): mLSTM at width d, keys of width d / 2, SwiGLU of 2.667 d."""

from xlstm.accounting.cost import Cost, Saved, Sequence, linear, norm, swiglu_block
from xlstm.accounting.xlstm import mlstm_cell, mlstm_cell_saved
from xlstm.models.configs import XLSTMLargeConfig


def blocks(config: XLSTMLargeConfig, sequence: Sequence) -> list[Cost]:
    """The cost of each block."""
    d, keys, width, heads = config.embedding_dim, config.key_dim, config.feedforward_dim, config.num_heads
    inputs = linear(d, keys) + linear(d, keys) + linear(d, d) + linear(d, d)
    gates = linear(d, heads, bias=True) + linear(d, heads, bias=True)
    cell = gates + mlstm_cell(config, keys, d, sequence) + norm(d)
    return [swiglu_block(inputs + cell + linear(d, d), d, width)] * config.num_blocks


def saved(config: XLSTMLargeConfig) -> list[Saved]:
    """What each block keeps.

    Two normed inputs, the output gate, its activation, the normed output, their product and the sum after it, 7 d; the
    feed-forward layer's gate, the other half and their product; in float32, the norms' scales; and the cell's.
    """
    d, width = config.embedding_dim, config.feedforward_dim
    cell = mlstm_cell_saved(config.num_heads, config.key_dim, d)
    return [Saved(7 * d + 3 * width, 2, input=d) + cell] * config.num_blocks
