"""The order of training data."""

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from xlstm.data.mixing import BLOCK, MixedOrder, windows_of_sources
from xlstm.data.order import Order, permuted


@examples()
@given(size=st.integers(1, 3000), seed=st.integers(0, 2**40), epoch=st.integers(0, 5))
def test_every_epoch_reads_every_sequence_once(size: int, seed: int, epoch: int) -> None:
    order = permuted(np.arange(epoch * size, (epoch + 1) * size), size, seed)
    assert sorted(order.tolist()) == list(range(size))


@examples()
@given(size=st.integers(1, 10**12), seed=st.integers(0, 2**40), first=st.integers(0, 10**13), cut=st.integers(0, 64))
def test_the_order_is_a_function_of_the_index_alone(size: int, seed: int, first: int, cut: int) -> None:
    indices = np.arange(first, first + 64)
    together = permuted(indices, size, seed)
    apart = np.concatenate([permuted(indices[:cut], size, seed), permuted(indices[cut:], size, seed)])
    np.testing.assert_array_equal(together, apart)
    assert (together >= 0).all()
    assert (together < size).all()


def test_seeds_and_epochs_give_different_orders() -> None:
    size = 1000
    orders = [permuted(np.arange(e * size, (e + 1) * size), size, s) for s in (0, 1, 2) for e in (0, 1)]
    for i, left in enumerate(orders):
        for right in orders[i + 1 :]:
            # Two random permutations agree in one place on average, in more than ten with probability 1e-8.
            assert (left == right).sum() <= 10


def test_the_order_is_as_good_as_random() -> None:
    size = 4096
    order = permuted(np.arange(size), size, seed=3)
    steps = np.diff(order)
    # Neighbours of a random permutation differ by +1 once on average.
    assert (steps == 1).sum() <= 10
    ranks = np.corrcoef(np.arange(size), order)[0, 1]
    assert abs(ranks) < 5 / np.sqrt(size)


@examples()
@given(
    size=st.integers(1, 50_000), takes=st.lists(st.tuples(st.integers(0, 100_000), st.integers(0, 40_000)), max_size=4)
)
def test_sequences_taken_in_any_way_are_those_of_their_indices(size: int, takes: list[tuple[int, int]]) -> None:
    order = Order(size, seed=7)
    for first, count in takes:
        np.testing.assert_array_equal(order.take(first, count), permuted(np.arange(first, first + count), size, 7))


def test_an_empty_corpus_has_no_order() -> None:
    with pytest.raises(ValueError, match="empty"):
        permuted(np.arange(3), 0, 0)


@examples(40)
@given(
    sizes=st.lists(st.integers(1, 9000), min_size=2, max_size=4),
    seed=st.integers(0, 2**40),
    first=st.integers(0, 10**9),
    cut=st.integers(0, 300),
)
def test_sources_are_mixed_by_a_function_of_the_index_alone(sizes: list[int], seed: int, first: int, cut: int) -> None:
    weights = tuple(float(3**source) for source in range(len(sizes)))
    firsts = tuple(10_000 * source for source in range(len(sizes)))
    order = MixedOrder(firsts, tuple(sizes), weights, seed)
    together = order.take(first, 300)
    np.testing.assert_array_equal(
        together, np.concatenate([order.take(first, cut), order.take(first + cut, 300 - cut)])
    )
    # Whole blocks hold each source by its weight, and each of its sequences once before any comes again.
    block = order.take(first // BLOCK * BLOCK, BLOCK)
    shares = np.bincount(block // 10_000, minlength=len(sizes))
    assert np.abs(shares - BLOCK * np.array(weights) / sum(weights)).max() < 1
    start = order.take(0, 3 * BLOCK)
    for source, size in enumerate(sizes):
        once = start[start // 10_000 == source][:size]
        assert len(np.unique(once)) == len(once)
        drawn = together[together // 10_000 == source] - firsts[source]
        assert ((drawn >= 0) & (drawn < size)).all()


def test_a_source_with_no_sequence_of_a_block_is_refused_and_windows_end_with_their_source() -> None:
    with pytest.raises(ValueError, match="a weight below one in 4,096"):
        MixedOrder((0, 9), (9, 9), (1.0, 1e-5), 0).take(0, 1)
    # Tokens 0 to 20 and 21 to 40: windows of eight and the token after them.
    assert windows_of_sources([21, 41], 8) == [(0, 2), (3, 2)]
    assert windows_of_sources([3, 41], 8)[0] == (0, 0)
