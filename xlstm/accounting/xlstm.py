"""xLSTM[a:b]: closed forms of its two blocks, with d the embedding dimension and D = 2 d.

mLSTM block at four heads: 6 d² + 87 d + 8 parameters. sLSTM block: 2 d² + 12 d + 3 d r64(1.3 d).
"""

from xlstm.accounting.cost import Cost, Saved, Sequence, causal_conv, linear, norm
from xlstm.models.configs import XLSTMConfig


def blocks(config: XLSTMConfig, sequence: Sequence) -> list[Cost]:
    """The cost of each block."""
    mlstm, slstm = mlstm_block(config, sequence), slstm_block(config)
    return [slstm if index in config.slstm_at else mlstm for index in range(config.num_blocks)]


def outside(config: XLSTMConfig) -> Cost:
    """What is neither block, embedding nor head: the last norm."""
    return norm(config.embedding_dim)


def mlstm_block(config: XLSTMConfig, sequence: Sequence) -> Cost:
    """Pre-up-projection block: up-projection, convolution, q, k, v in blocks of four, gates, cell, down-projection."""
    d, inner, heads = config.embedding_dim, 2 * config.embedding_dim, config.num_heads
    projection = linear(inner, inner, blocks=inner // 4)
    gate = linear(3 * inner, heads, bias=True)
    learnable_skip = Cost(inner)
    return (
        norm(d)
        + linear(d, 2 * inner)
        + causal_conv(inner)
        + projection
        + projection
        + projection
        + gate
        + gate
        + mlstm_cell(heads, inner // heads, inner // heads, sequence)
        + norm(inner)
        + learnable_skip
        + linear(inner, d)
    )


def mlstm_cell(heads: int, key_dim: int, value_dim: int, sequence: Sequence) -> Cost:
    """The matrix memory in its chunkwise form (Beck et al. 2025, arXiv 2503.14376).

    Per token: a query reads the chunk's initial memory and a key and value are written to its final one (2 k v each);
    within the chunk, queries meet keys and weights meet values (2 k and 2 v per pair). By hand: the normaliser (4 k),
    four operations per pair on the gates' matrix, and the memory's decay once per chunk.
    """
    chunk = min(sequence.chunk, sequence.length)
    pairs = sequence.pairs(chunk)
    products = 4 * key_dim * value_dim + 2 * pairs * (key_dim + value_dim)
    recurrence = 4 * key_dim + 4 * pairs + key_dim * value_dim / chunk
    return Cost(0, heads * products, heads * recurrence)


SLSTM_OPERATIONS = 21
"""Per channel and step: 4 sums of W x and R h; tanh, sigmoid and log-sigmoid; the stabiliser 2, the two stabilised
gates 5, the cell 3, the normaliser 2, the output 2 (arXiv 2405.04517, equations 8 to 17)."""


def slstm_block(config: XLSTMConfig) -> Cost:
    """Post-up-projection block: convolution, four gates by head, recurrent matrices by head, cell; gated GELU."""
    d, heads, width = config.embedding_dim, config.num_heads, config.slstm_feedforward_dim
    gates = linear(d, 4 * d, blocks=heads)
    recurrent = linear(d, 4 * d, bias=True, blocks=heads)
    cell = Cost(recurrence=SLSTM_OPERATIONS * d)
    feedforward = norm(d) + linear(d, 2 * width) + linear(width, d)
    return norm(d) + causal_conv(d) + gates + recurrent + cell + norm(d) + feedforward


def saved(config: XLSTMConfig, sequence: Sequence) -> list[Saved]:
    """What each block keeps.

    mLSTM block: normed input, both halves of the up-projection, the convolution's input, output and activation,
    [q, k, v] for the gates, and what follows the cell, 27 d; and the cell's. sLSTM block: 8 d, and four times the
    feed-forward layer's width; of its recurrence eight values per channel.
    """
    d, width = config.embedding_dim, config.slstm_feedforward_dim
    mlstm = Saved(27 * d, mlstm_cell_saved(config.num_heads, 2 * d, 2 * d, sequence), input=d)
    slstm = Saved(8 * d + 4 * width, 8 * d, input=d)
    return [slstm if index in config.slstm_at else mlstm for index in range(config.num_blocks)]


def mlstm_cell_saved(heads: int, key_channels: int, value_channels: int, sequence: Sequence) -> float:
    """Elements per token of the chunkwise mLSTM: queries, keys and values, the weights of pairs, chunks' memories."""
    chunk = min(sequence.chunk, sequence.length)
    memories = key_channels * value_channels / heads / chunk
    return 4 * key_channels + 2 * value_channels + 4 * heads * chunk + memories
