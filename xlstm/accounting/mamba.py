"""Mamba: 6.25 d² + 111 d parameters per block, where d is a multiple of 16 and the state has 16 dimensions."""

from xlstm.accounting.cost import Cost, Saved, Sequence, causal_conv, linear, norm
from xlstm.models.configs import MambaConfig

SCAN_OPERATIONS = 7
"""FLOPs per element of the state and step: delta A and its exponential 2, delta u B 1, the recurrence 2, the read 2."""

CHANNEL_OPERATIONS = 3
"""FLOPs per channel and step: delta u 1, the skip 2."""


def blocks(config: MambaConfig, sequence: Sequence) -> list[Cost]:
    """The cost of each block."""
    d, inner, state_dim, rank = config.embedding_dim, config.inner_dim, config.state_dim, config.delta_rank
    selection = linear(inner, rank + 2 * state_dim) + linear(rank, inner, bias=True)
    scan = Cost(inner * state_dim + inner, recurrence=inner * (SCAN_OPERATIONS * state_dim + CHANNEL_OPERATIONS))
    block = norm(d) + linear(d, 2 * inner) + causal_conv(inner) + selection + scan + linear(inner, d)
    return [block] * config.num_blocks


SCAN_CHUNK = 32
"""Steps between the states that the scan saves."""


def saved(config: MambaConfig) -> list[Saved]:
    """What each block keeps.

    Normed input, both halves of the up-projection, the convolution's result, the selection, the gate's activation and
    its product with the scan's result: 11 d and the selection. In float32 the norm's scale, the convolution before its
    activation, the step sizes before and after softplus, the scan's result with the skip, and the chunks' states.
    """
    d, inner, state_dim = config.embedding_dim, config.inner_dim, config.state_dim
    computed = 11 * d + config.delta_rank + 2 * state_dim
    float32 = 1 + 4 * inner + inner * state_dim / SCAN_CHUNK
    return [Saved(computed, float32, input=d)] * config.num_blocks
