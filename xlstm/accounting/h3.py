"""H3: 12 d² + (5 N + 16) d parameters per block, N of them states of the shift and half as many complex ones."""

from xlstm.accounting.cost import Cost, Saved, Sequence, gelu_block, linear
from xlstm.accounting.long_convolution import long_convolution
from xlstm.models.long_convolution_configs import H3Config


def blocks(config: H3Config, sequence: Sequence) -> list[Cost]:
    """The cost of each block; the filters are made once a pass, not once a token, and count as nothing."""
    d, states = config.embedding_dim, config.state_dim
    shift = Cost(2 * states * d + d) + long_convolution(d, sequence)
    diagonal = Cost(3 * states * d + 2 * d) + long_convolution(d, sequence)
    mixer = linear(d, 3 * d, bias=True) + shift + diagonal + linear(d, d, bias=True)
    return [gelu_block(mixer, d)] * config.num_blocks


def saved(config: H3Config) -> list[Saved]:
    """What each block keeps.

    Two normed inputs and the sum between mixer and MLP; queries, keys and values, what follows each of the four steps
    after them, and the MLP before and after GELU; in float32 the diagonal model's filter, once a sequence.
    """
    d = config.embedding_dim
    return [Saved(18 * d, d, input=d)] * config.num_blocks
