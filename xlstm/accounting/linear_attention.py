"""What the families around one recurrence share: linear attention in chunks."""

from xlstm.accounting.cost import Cost, Saved, Sequence

STATE_TOKENS = 64
"""Tokens between the states that linear attention saves for its backward."""


def attention_by_channel(heads: int, key_dim: int, value_dim: int, sequence: Sequence, *, bonus: bool = False) -> Cost:
    """A decay per key channel: scores and their product with the values in chunks, one read and one write.

    By hand: the exponentials and their products with queries and keys, 5 per key channel; what a chunk keeps of the
    state; with a bonus, the pair of the token with itself.
    """
    pairs = sequence.pairs(sequence.chunk)
    products = 4 * key_dim * value_dim + 2 * pairs * (key_dim + value_dim)
    elementwise = 5 * key_dim + key_dim * value_dim / sequence.chunk
    if bonus:
        elementwise += 3 * key_dim + 2 * value_dim
    return Cost(products=heads * products, recurrence=heads * elementwise)


def attention_saved(heads: int, key_dim: int, value_dim: int) -> Saved:
    """The states between chunks; queries, keys, values and decays are counted where they are made."""
    return Saved(0, heads * key_dim * value_dim / STATE_TOKENS)


def attention_by_head(
    heads: int, key_dim: int, value_dim: int, sequence: Sequence, *, shared_keys: bool = False
) -> Cost:
    """A decay per head: as by channel; by hand the weights of pairs, 4 each, and what a chunk keeps of the state.

    With `shared_keys` the heads have one set of keys and queries, whose scores are one product.
    """
    pairs = sequence.pairs(sequence.chunk)
    scores = (1 if shared_keys else heads) * 2 * pairs * key_dim
    products = scores + heads * (4 * key_dim * value_dim + 2 * pairs * value_dim)
    return Cost(products=products, recurrence=heads * (4 * pairs + key_dim * value_dim / sequence.chunk))


def delta_by_channel(heads: int, key_dim: int, value_dim: int, sequence: Sequence) -> Cost:
    """The delta rule with a decay per key channel: four kinds of pairs, each with a product with values, in chunks.

    Two kinds have the token itself, two only earlier ones; queries and removals read the state, two kinds of keys write
    it. By hand: the exponentials of all four, and what a chunk keeps of the state.
    """
    pairs = sequence.pairs(sequence.chunk)
    earlier = pairs - 1 if sequence.causal else pairs
    products = 8 * key_dim * value_dim + 4 * (pairs + earlier) * (key_dim + value_dim)
    return Cost(products=heads * products, recurrence=heads * (10 * key_dim + key_dim * value_dim / sequence.chunk))


def delta_by_head(heads: int, key_dim: int, value_dim: int, sequence: Sequence) -> Cost:
    """The delta rule with a decay per head: keys with keys, queries with keys, each with a product with values.

    By hand: the weights of pairs, and what a chunk keeps of the state.
    """
    pairs = sequence.pairs(sequence.chunk)
    earlier = pairs - 1 if sequence.causal else pairs
    products = 6 * key_dim * value_dim + 2 * (pairs + earlier) * (key_dim + value_dim)
    return Cost(products=heads * products, recurrence=heads * (6 * pairs + key_dim * value_dim / sequence.chunk))
