"""RetNet: 8 d² + 2 d / heads + 3 d F + 2 d parameters per block."""

from xlstm.accounting.cost import Cost, Saved, Sequence, linear, norm, swiglu_block, swiglu_block_saved
from xlstm.accounting.linear_attention import attention_by_head
from xlstm.accounting.xlstm import mlstm_cell_saved
from xlstm.models.linear_configs import RetNetConfig


def blocks(config: RetNetConfig, sequence: Sequence) -> list[Cost]:
    """The cost of each block."""
    d, heads = config.embedding_dim, config.num_heads
    attention = attention_by_head(heads, d // heads, 2 * d // heads, sequence)
    mixer = linear(d, 2 * d) + linear(d, 4 * d) + attention + norm(2 * d // heads) + linear(2 * d, d)
    return [swiglu_block(mixer, d, config.feedforward_dim)] * config.num_blocks


def saved(config: RetNetConfig) -> list[Saved]:
    """What each block keeps: gate, the normed memory's output and their product, 6 d; the cell's; the norm's scale."""
    d, heads = config.embedding_dim, config.num_heads
    mixer = Saved(6 * d, heads) + mlstm_cell_saved(heads, d, 2 * d)
    return [swiglu_block_saved(mixer, d, config.feedforward_dim)] * config.num_blocks
