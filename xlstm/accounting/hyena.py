"""Hyena of order n: (n + 10) d² parameters per block, and what its convolutions and the filters' networks have."""

from xlstm.accounting.cost import Cost, Saved, Sequence, causal_conv, gelu_block, linear
from xlstm.accounting.long_convolution import long_convolution
from xlstm.models.long_convolution_configs import HyenaConfig

SHORT_TAPS = 3
"""Of the convolution after the input's projection."""


def blocks(config: HyenaConfig, sequence: Sequence) -> list[Cost]:
    """The cost of each block; the filters are made once a pass, not once a token, and count as nothing."""
    d, width, stages = config.embedding_dim, config.filter_dim, config.order - 1
    mapped = (config.order + 1) * d
    short = causal_conv(mapped, SHORT_TAPS)
    network = width * (config.num_features + 2 * width + stages * d) + 4 * width
    filters = Cost(network + config.context_length * config.num_features + stages * d)
    long = long_convolution(stages * d, sequence)
    return [gelu_block(linear(d, mapped, bias=True) + short + filters + long + linear(d, d, bias=True), d)] * (
        config.num_blocks
    )


def saved(config: HyenaConfig) -> list[Saved]:
    """What each block keeps.

    Two normed inputs and the sum between mixer and MLP; the projections before and after the short convolution, of each
    stage its input and its result, the last product, and the MLP before and after GELU; in float32 the filters, once a
    sequence.
    """
    d, stages = config.embedding_dim, config.order - 1
    return [Saved((12 + 2 * (config.order + 1) + 2 * stages) * d, stages * d, input=d)] * config.num_blocks
