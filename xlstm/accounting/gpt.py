"""GPT: 12 d² + 13 d parameters per block, and one vector per position; the embedding is the head."""

from xlstm.accounting.cost import Cost, Saved, Sequence, gelu_block, linear
from xlstm.accounting.llama import attention
from xlstm.models.configs import GPTConfig


def blocks(config: GPTConfig, sequence: Sequence) -> list[Cost]:
    """The cost of each block; norms have a weight and a bias."""
    d = config.embedding_dim
    projections = linear(d, 3 * d, bias=True) + linear(d, d, bias=True)
    return [gelu_block(projections + attention(d, sequence), d)] * config.num_blocks


def saved(config: GPTConfig) -> list[Saved]:
    """What each block keeps.

    Two normed inputs, q, k, v, attention's output, the sum after it, and the feed-forward layer before and after GELU.
    """
    d = config.embedding_dim
    return [Saved(15 * d, input=d)] * config.num_blocks
