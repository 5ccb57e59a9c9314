"""RWKV-4: 13 d² + 11 d parameters per block, and a norm with bias behind the embedding."""

from xlstm.accounting.cost import Cost, Saved, Sequence, linear, norm
from xlstm.models.configs import RWKV4Config

WKV_OPERATIONS = 23
"""FLOPs per channel and step (Peng et al. 2023, appendix D). Output: k + u, the maximum, two differences, two
exponentials, numerator 3, denominator 2, quotient 1. Sums: decayed scale, maximum, two differences, two exponentials,
a 3, b 2."""


def blocks(config: RWKV4Config, sequence: Sequence) -> list[Cost]:
    """The cost of each block: two norms, five shifts, decay and bonus, four and three matrices."""
    d = config.embedding_dim
    time_mix = Cost(5 * d, recurrence=WKV_OPERATIONS * d) + linear(d, 4 * d)
    channel_mix = Cost(2 * d) + linear(d, 4 * d) + linear(d, d) + linear(4 * d, d)
    return [norm(2 * d) + time_mix + norm(2 * d) + channel_mix] * config.num_blocks


def saved(config: RWKV4Config) -> list[Saved]:
    """What each block keeps.

    Time mixing: the normed input, three mixtures of it with the one before, key, value, receptance before and
    after the sigmoid, the average and its gating, 11 d with the sum after it. Channel mixing: the same of two mixtures,
    its key before and after the squared ReLU, and what leaves it.
    """
    d = config.embedding_dim
    return [Saved(23 * d, input=d)] * config.num_blocks
