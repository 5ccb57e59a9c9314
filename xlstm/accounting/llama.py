"""Llama: 4 d² + 3 d r64(8 d / 3) + 2 d parameters per block."""

from xlstm.accounting.cost import Cost, Saved, Sequence, linear, swiglu_block
from xlstm.models.configs import LlamaConfig


def blocks(config: LlamaConfig, sequence: Sequence) -> list[Cost]:
    """The cost of each block."""
    d, width = config.embedding_dim, config.feedforward_dim
    mixer = linear(d, 3 * d) + linear(d, d) + attention(d, sequence)
    return [swiglu_block(mixer, d, width)] * config.num_blocks


def saved(config: LlamaConfig) -> list[Saved]:
    """What each block keeps.

    Two normed inputs, q, k, v, attention's output, the sum after it, and the feed-forward layer's gate, up and product;
    in float32, the norms' scales.
    """
    d, width = config.embedding_dim, config.feedforward_dim
    return [Saved(7 * d + 3 * width, 2, input=d)] * config.num_blocks


def attention(channels: int, sequence: Sequence) -> Cost:
    """Queries times keys and weights times values: two products of 2 d per pair, whatever the number of heads."""
    return Cost(products=4 * channels * sequence.pairs())
