"""GLA: 4 d² + 24.5 d + d / heads + 3 d F + 2 d parameters per block."""

from xlstm.accounting.cost import Cost, Saved, Sequence, linear, norm, swiglu_block, swiglu_block_saved
from xlstm.accounting.linear_attention import attention_by_channel, attention_saved
from xlstm.models.linear_configs import GLAConfig


def blocks(config: GLAConfig, sequence: Sequence) -> list[Cost]:
    """The cost of each block."""
    d, keys, heads = config.embedding_dim, config.key_dim, config.num_heads
    decay = linear(d, config.decay_rank) + linear(config.decay_rank, keys, bias=True)
    attention = attention_by_channel(heads, keys // heads, d // heads, sequence)
    mixer = linear(d, 2 * keys) + linear(d, 2 * d) + decay + attention + norm(d // heads) + linear(d, d)
    return [swiglu_block(mixer, d, config.feedforward_dim)] * config.num_blocks


def saved(config: GLAConfig) -> list[Saved]:
    """What each block keeps.

    Query, key, value, the memory's output, normed, the gate, and their product, 6 d; the low rank; in float32 the
    decays before and after the logarithm of the sigmoid, and the norm's scale.
    """
    d, keys, heads = config.embedding_dim, config.key_dim, config.num_heads
    mixer = Saved(2 * keys + 5 * d + config.decay_rank, 2 * keys + heads) + attention_saved(
        heads, keys // heads, d // heads
    )
    return [swiglu_block_saved(mixer, d, config.feedforward_dim)] * config.num_blocks
