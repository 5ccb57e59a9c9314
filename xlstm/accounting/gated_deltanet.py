"""Gated DeltaNet: 2 d A + 3 d B + 2 d H + 2 H + 4 (2 A + B) + B / H + 3 d F + 2 d parameters per block."""

from xlstm.accounting.cost import Cost, Saved, Sequence, causal_conv, linear, norm, swiglu_block, swiglu_block_saved
from xlstm.accounting.linear_attention import attention_saved, delta_by_head
from xlstm.models.linear_configs import GatedDeltaNetConfig


def blocks(config: GatedDeltaNetConfig, sequence: Sequence) -> list[Cost]:
    """The cost of each block; the convolution has no bias."""
    d, keys, values, heads = config.embedding_dim, config.key_dim, config.value_dim, config.num_heads
    convolution = causal_conv(2 * keys + values, bias=False)
    memory = delta_by_head(heads, keys // heads, values // heads, sequence)
    maps = linear(d, 2 * keys + 2 * values + 2 * heads) + linear(values, d)
    mixer = maps + convolution + Cost(2 * heads) + memory + norm(values // heads)
    return [swiglu_block(mixer, d, config.feedforward_dim)] * config.num_blocks


def saved(config: GatedDeltaNetConfig) -> list[Saved]:
    """What each block keeps.

    The convolution's input and result; the unit query, and of keys what is written, removed and given to the operator;
    the memory's output, normed, the gate and their product. In float32 the convolution before its activation, queries
    and keys before and after they are made units of, the removals' weights, what decays and steps are made of, and the
    states.
    """
    d, keys, values, heads = config.embedding_dim, config.key_dim, config.value_dim, config.num_heads
    convolved = 2 * keys + values
    computed = 2 * convolved + 3 * keys + 4 * values
    float32 = convolved + 4 * keys + 12 * heads
    mixer = Saved(computed, float32) + attention_saved(heads, keys // heads, values // heads)
    return [swiglu_block_saved(mixer, d, config.feedforward_dim)] * config.num_blocks
