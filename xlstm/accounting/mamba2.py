"""Mamba-2: 6 d² + (2 N + H) d + 5 (2 d + 2 N) + 3 H + 3 d parameters per block."""

from xlstm.accounting.cost import Cost, Saved, Sequence, causal_conv, linear, norm
from xlstm.accounting.linear_attention import attention_by_head
from xlstm.accounting.xlstm import mlstm_cell_saved
from xlstm.models.linear_configs import Mamba2Config


def blocks(config: Mamba2Config, sequence: Sequence) -> list[Cost]:
    """The cost of each block. Heads share keys and queries, so their products with each other are made once."""
    d, inner, state_dim, heads = config.embedding_dim, config.inner_dim, config.state_dim, config.num_heads
    memory = attention_by_head(heads, state_dim, config.head_dim, sequence, shared_keys=True)
    maps = linear(d, 2 * inner + 2 * state_dim + heads) + linear(inner, d)
    block = norm(d) + maps + causal_conv(inner + 2 * state_dim) + memory + Cost(3 * heads) + norm(inner)
    return [block] * config.num_blocks


def saved(config: Mamba2Config) -> list[Saved]:
    """What each block keeps.

    Normed input, all of the up-projection, the convolution's result, queries at their scale, the memory's output with
    the skip, gated, and normed; in float32 the convolution before its activation, the norms' scales, what the gates are
    made of, and the cell's states. The cell's queries, keys and values are the convolution's.
    """
    d, inner, state_dim, heads = config.embedding_dim, config.inner_dim, config.state_dim, config.num_heads
    convolved = inner + 2 * state_dim
    cell = mlstm_cell_saved(heads, heads * state_dim, inner)
    cell = Saved(inner, cell.float32, states=cell.states, half_states=cell.half_states)
    made = Saved(d + inner + 2 * convolved + heads + state_dim + 3 * inner, convolved + 2 + 8 * heads, input=d)
    return [made + cell] * config.num_blocks
