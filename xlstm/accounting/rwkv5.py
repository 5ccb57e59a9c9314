"""RWKV-5: 14 d² + 14 d parameters per block, and a norm with bias behind the embedding."""

from xlstm.accounting.cost import Cost, Saved, Sequence, linear, norm
from xlstm.accounting.linear_attention import attention_by_channel, attention_saved
from xlstm.models.linear_configs import RWKV5Config, RWKV6Config


def memory(config: RWKV5Config | RWKV6Config, sequence: Sequence) -> Cost:
    """Five maps, the memory with its bonus, and the norm by head with weight and bias."""
    d, head_dim = config.embedding_dim, config.head_dim
    attention = attention_by_channel(d // head_dim, head_dim, head_dim, sequence, bonus=True)
    return linear(d, 5 * d) + Cost(d) + attention + norm(2 * d)


def channel_mix(config: RWKV5Config | RWKV6Config) -> Cost:
    """Two shifts and three maps."""
    d, width = config.embedding_dim, config.channel_dim
    return Cost(2 * d) + linear(d, width) + linear(d, d) + linear(width, d)


def blocks(config: RWKV5Config, sequence: Sequence) -> list[Cost]:
    """The cost of each block: two norms, four shifts, decays, memory, and channel mixing."""
    d = config.embedding_dim
    time_mix = Cost(5 * d) + memory(config, sequence)
    return [norm(2 * d) + time_mix + norm(2 * d) + channel_mix(config)] * config.num_blocks


def memory_saved(config: RWKV5Config | RWKV6Config) -> Saved:
    """Receptance, key, value, the gate before and after its activation, the output, normed and gated; the states."""
    d, head_dim = config.embedding_dim, config.head_dim
    heads = d // head_dim
    return Saved(8 * d + 2 * heads) + attention_saved(heads, head_dim, head_dim)


def channel_mix_saved(config: RWKV5Config | RWKV6Config) -> Saved:
    """Normed input, two mixtures, receptance after the sigmoid, key before and after the squared ReLU, what leaves."""
    d, width = config.embedding_dim, config.channel_dim
    return Saved(5 * d + 2 * width)


def saved(config: RWKV5Config) -> list[Saved]:
    """What each block keeps: normed input and four mixtures, memory, channel mixing, and the sum between them."""
    d = config.embedding_dim
    return [Saved(6 * d, input=d) + memory_saved(config) + channel_mix_saved(config)] * config.num_blocks
