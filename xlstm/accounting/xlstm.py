"""xLSTM[a:b]: closed forms of its two blocks, with d the embedding dimension and D = 2 d.

mLSTM block at four heads: 6 d² + 87 d + 8 parameters. sLSTM block: 2 d² + 12 d + 3 d r64(1.3 d).
"""

from dataclasses import replace

from xlstm.accounting.cost import Cost, Saved, Sequence, causal_conv, linear, norm
from xlstm.models.configs import XLSTMConfig, XLSTMLargeConfig


def blocks(config: XLSTMConfig, sequence: Sequence) -> list[Cost]:
    """The cost of each block."""
    mlstm = (mlstm_post_up_block if config.mlstm_block == "post-up" else mlstm_block)(config, sequence)
    slstm = slstm_block(config)
    return [slstm if index in config.slstm_at else mlstm for index in range(config.num_blocks)]


def mlstm_block(config: XLSTMConfig, sequence: Sequence) -> Cost:
    """Pre-up-projection block: up-projection, convolution, q, k, v in blocks of four, gates, cell, down-projection."""
    d, inner = config.embedding_dim, 2 * config.embedding_dim
    cost = norm(d) + linear(d, 2 * inner) + linear(inner, d)
    for _ in ("query", "key", "value"):
        cost += linear(inner, inner, blocks=inner // 4)
    if config.convolution:
        cost += causal_conv(inner)
    if config.learnable_skip:
        cost += Cost(inner)
    return cost + mlstm_gates(config, 3 * inner) + mlstm_cell(config, inner, inner, sequence) + norm(inner)


def mlstm_post_up_block(config: XLSTMConfig, sequence: Sequence) -> Cost:
    """Post-up-projection block: q, k, v and output gate, gates, cell, projection; feed-forward layer of 4 d."""
    d = config.embedding_dim
    cell = mlstm_gates(config, d) + mlstm_cell(config, d, d, sequence) + norm(d)
    return (
        norm(d) + linear(d, 3 * d) + linear(d, d) + cell + linear(d, d) + norm(d) + linear(d, 4 * d) + linear(4 * d, d)
    )


def mlstm_gates(config: XLSTMConfig, channels: int) -> Cost:
    """Input and forget gate, each from `channels` inputs, a learnable bias, or nothing."""
    cost = Cost()
    for kind in (config.input_gate, config.forget_gate):
        if kind == "input":
            cost += linear(channels, config.num_heads, bias=True)
        elif kind == "bias":
            cost += Cost(config.num_heads)
    return cost


def mlstm_cell(
    config: XLSTMConfig | XLSTMLargeConfig, key_channels: int, value_channels: int, sequence: Sequence
) -> Cost:
    """The matrix memory in its chunkwise form (Beck et al. 2025, arXiv 2503.14376), of all heads.

    Per token and head of k key and v value channels: a query reads the chunk's initial memory and a key and value are
    written to its final one (2 k v each); within the chunk, queries meet keys and weights meet values (2 k and 2 v per
    pair). By hand: the normaliser (4 k), four operations per pair on the gates' matrix, and the memory's decay once
    per chunk.
    """
    heads, chunk = config.num_heads, min(sequence.chunk, sequence.length)
    key_dim, value_dim = key_channels // heads, value_channels // heads
    pairs = sequence.pairs(chunk)
    products = 4 * key_dim * value_dim + 2 * pairs * (key_dim + value_dim)
    normalizer = 4 * key_dim if getattr(config, "normalizer", True) else 0
    recurrence = normalizer + 4 * pairs + key_dim * value_dim / chunk
    return Cost(0, heads * products, heads * recurrence)


SLSTM_OPERATIONS = 21
"""FLOPs per channel and step: 4 sums of W x and R h; tanh, sigmoid and log-sigmoid; the stabiliser 2, the two
stabilised gates 5, the cell 3, the normaliser 2, the output 2 (arXiv 2405.04517, equations 8 to 17)."""


def slstm_block(config: XLSTMConfig) -> Cost:
    """Post-up-projection block: convolution, four gates, recurrent matrices by head, cell; gated GELU."""
    d, heads, width = config.embedding_dim, config.num_heads, config.slstm_feedforward_dim
    gates = linear(d, 4 * d, blocks=heads if config.slstm_gates == "headwise" else 1)
    recurrent = linear(d, 4 * d, bias=True, blocks=heads)
    cell = replace(gates + recurrent, matrices=0) + Cost(recurrence=SLSTM_OPERATIONS * d)  # four gates in one tensor
    feedforward = norm(d) + linear(d, 2 * width) + linear(width, d)
    cost = norm(d) + cell + norm(d) + feedforward
    return cost + causal_conv(d) if config.slstm_has_convolution else cost


def saved(config: XLSTMConfig) -> list[Saved]:
    """What each block keeps.

    mLSTM block: normed input, both halves of the up-projection and the down-projection's input, 7 d; the cell's; with a
    convolution, its result, and in float32 what it gives before its activation; in float32, the norm's statistics. The
    post-up block: its two normed inputs, the sum between, the output gate and what follows the cell, 7 d, and of the
    feed-forward layer ReLU and its square, 8 d. sLSTM block: 7 d, and four times the feed-forward layer's width; of its
    recurrence seven values per channel; and one more of each with a convolution.
    """
    d, width = config.embedding_dim, config.slstm_feedforward_dim
    if config.mlstm_block == "post-up":
        mlstm = Saved(7 * d + 8 * d, input=d) + mlstm_cell_saved(config.num_heads, d, d)
    else:
        mlstm = Saved(7 * d, 2 * config.num_heads, input=d) + mlstm_cell_saved(config.num_heads, 2 * d, 2 * d)
        if config.convolution:
            mlstm += Saved(2 * d, 2 * d)
    slstm = Saved(7 * d + 4 * width, 7 * d, input=d)
    if config.slstm_has_convolution:
        slstm += Saved(d, d)
    return [slstm if index in config.slstm_at else mlstm for index in range(config.num_blocks)]


def mlstm_cell_saved(heads: int, key_channels: int, value_channels: int) -> Saved:
    """What the chunkwise mLSTM keeps: queries, keys, values and outputs; and each chunk's initial memory."""
    widths = (key_channels + value_channels) // heads
    chunk = 64 if widths <= 256 else 128  # as the operator chooses
    longer = 2 if widths >= 2 * 768 else 1  # as its kernels for GPUs do
    memories = key_channels * value_channels / heads / chunk
    return Saved(2 * key_channels + 2 * value_channels, 4 * heads, states=memories, half_states=memories / longer)
