"""HGRN2: 4 d² + d + 3 d F + 2 d parameters per block, and d of the lower bounds."""

from xlstm.accounting.cost import Cost, Saved, Sequence, linear, norm, swiglu_block, swiglu_block_saved
from xlstm.accounting.linear_attention import attention_by_channel, attention_saved
from xlstm.models.linear_configs import HGRN2Config


def blocks(config: HGRN2Config, sequence: Sequence) -> list[Cost]:
    """The cost of each block."""
    d, head_dim = config.embedding_dim, config.head_dim
    attention = attention_by_channel(d // head_dim, head_dim, head_dim, sequence)
    mixer = linear(d, 3 * d) + attention + norm(d) + linear(d, d)
    return [swiglu_block(mixer, d, config.feedforward_dim)] * config.num_blocks


def saved(config: HGRN2Config) -> list[Saved]:
    """What each block keeps.

    The query before and after its activation and its factor, key, value, the memory's output, normed; in float32 the
    gate and its logits, and the norm's scale.
    """
    d, head_dim = config.embedding_dim, config.head_dim
    mixer = Saved(7 * d, 2 * d + 1) + attention_saved(d // head_dim, head_dim, head_dim)
    return [swiglu_block_saved(mixer, d, config.feedforward_dim)] * config.num_blocks
