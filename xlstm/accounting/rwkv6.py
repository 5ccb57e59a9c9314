"""RWKV-6: 6 d² + 2 d F + 464 d parameters per block, and a norm with bias behind the embedding."""

from xlstm.accounting.cost import Cost, Saved, Sequence, linear, norm
from xlstm.accounting.rwkv5 import channel_mix, channel_mix_saved, memory, memory_saved
from xlstm.models.linear_configs import RWKV6Config

MIXTURES = 5


def blocks(config: RWKV6Config, sequence: Sequence) -> list[Cost]:
    """The cost of each block: as RWKV-5, six shifts, and the low ranks of five of them and of the decays."""
    d, rank = config.embedding_dim, config.mix_rank
    mixing = (
        Cost((MIXTURES + 1) * d) + linear(d, MIXTURES * rank) + linear(MIXTURES * rank, MIXTURES * d, blocks=MIXTURES)
    )
    decay = Cost(d) + linear(d, config.decay_rank) + linear(config.decay_rank, d)
    time_mix = mixing + decay + memory(config, sequence)
    return [norm(2 * d) + time_mix + norm(2 * d) + channel_mix(config)] * config.num_blocks


def saved(config: RWKV6Config) -> list[Saved]:
    """What each block keeps.

    Of the mixtures: the normed input, its difference from the token before, the mixture that the shares come of, these
    and the five; of the decays the low rank, and in float32 the logarithm.
    """
    d = config.embedding_dim
    mixing = Saved(14 * d + MIXTURES * config.mix_rank + config.decay_rank, 2 * d, input=d)
    return [mixing + memory_saved(config) + channel_mix_saved(config)] * config.num_blocks
