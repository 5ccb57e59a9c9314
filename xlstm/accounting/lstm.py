"""The LSTM ladder: 8 d² + 8 d parameters per layer; d more with a norm; 8 d² + d more with an up-projection."""

from xlstm.accounting.cost import Cost, Saved, Sequence, linear, norm
from xlstm.models.configs import LSTMConfig

LSTM_OPERATIONS = 13
"""FLOPs per channel and step: 4 sums of W x and R h; three sigmoids and a tanh; the cell 3, the output 2."""


def blocks(config: LSTMConfig, sequence: Sequence) -> list[Cost]:
    """The cost of each block."""
    d = config.embedding_dim
    block = linear(d, 4 * d, bias=True) + linear(d, 4 * d, bias=True) + Cost(recurrence=LSTM_OPERATIONS * d)
    if config.variant != "vanilla":
        block += norm(d)
    if config.variant == "up-projection":
        block += norm(d) + linear(d, 4 * d) + linear(4 * d, d)
    return [block] * config.num_blocks


def saved(config: LSTMConfig) -> list[Saved]:
    """What each block keeps.

    The fused layer's reserve as measured on CPU, 9 d and 6.5 d that are float32 in any precision; normed input and sum;
    the feed-forward layer.
    """
    d = config.embedding_dim
    elements = {"vanilla": 9, "residual": 11, "up-projection": 21}[config.variant]
    return [Saved(elements * d, 6.5 * d, input=d)] * config.num_blocks
