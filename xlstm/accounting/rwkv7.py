"""RWKV-7: 12 d² + (4 w + 2 g + 18) d parameters per block, (2 v + 1) d more but in the first, and the norms outside."""

from xlstm.accounting.cost import Cost, Saved, Sequence, linear, norm
from xlstm.accounting.linear_attention import attention_saved, delta_by_channel
from xlstm.models.linear_configs import RWKV7Config

MIXTURES = 6


def blocks(config: RWKV7Config, sequence: Sequence) -> list[Cost]:
    """The cost of each block; the first mixes no values."""
    d, head_dim = config.embedding_dim, config.head_dim
    low_ranks = [_low_rank(d, rank) for rank in (config.decay_rank, config.decay_rank, config.gate_rank)]
    vectors = Cost((MIXTURES + 5) * d)  # mixtures; decay, removal, two keys, bonus
    memory = delta_by_channel(d // head_dim, head_dim, head_dim, sequence)
    time_mix = vectors + sum(low_ranks, Cost()) + linear(d, 4 * d) + memory + norm(2 * d)
    channel_mix = Cost(d) + linear(d, 4 * d) + linear(4 * d, d)
    first = norm(2 * d) + time_mix + norm(2 * d) + channel_mix
    return [first, *[first + _low_rank(d, config.value_rank) + Cost(d)] * (config.num_blocks - 1)]


def _low_rank(d: int, rank: int) -> Cost:
    return linear(d, rank) + linear(rank, d)


def saved(config: RWKV7Config) -> list[Saved]:
    """What each block keeps.

    Time mixing: the normed input, six mixtures, receptance, value before and after it is mixed, its share, keys written
    and removed, and what is given to the operator; the output, normed, with the bonus, the gate, their product, and the
    sum after it; the low ranks before and after their activations. In float32 decays and removals before and after
    their activations, and keys on their way. Channel mixing: normed input, mixture, key before and after ReLU.
    """
    d, head_dim = config.embedding_dim, config.head_dim
    ranks = 2 * config.decay_rank + config.value_rank + config.gate_rank
    time_mix = Saved(22 * d + ranks, 9 * d, input=d) + attention_saved(d // head_dim, head_dim, head_dim)
    return [time_mix + Saved(10 * d)] * config.num_blocks
