"""Names of models say what they are, and unknown ones say what there is."""

import itertools

import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from xlstm.accounting import size_label
from xlstm.models.configs import LlamaConfig, XLSTMConfig
from xlstm.models.naming import family_label, parse_family, place_slstm
from xlstm.models.published import DIMENSIONS, LEARNING_RATES, learning_rate
from xlstm.models.sizes import config_for
from xlstm.quantities import compact


@pytest.mark.parametrize(
    ("depth", "positions"), [(24, (3, 20)), (48, (3, 5, 7, 40, 42, 44)), (64, (3, 5, 7, 40, 42, 44))]
)
def test_slstm_blocks_of_7_1_stand_where_the_paper_puts_them(depth: int, positions: tuple[int, ...]) -> None:
    assert place_slstm(depth, 7, 1) == positions


def test_one_to_one_of_two_blocks_ends_with_the_slstm_block() -> None:
    assert place_slstm(2, 1, 1) == (1,)  # the authors' parity model


@examples()
@given(depth=st.integers(2, 80), num_mlstm=st.integers(0, 9), num_slstm=st.integers(0, 9))
def test_any_ratio_places_its_share_of_blocks_at_any_depth(depth: int, num_mlstm: int, num_slstm: int) -> None:
    if num_mlstm + num_slstm == 0 or (num_mlstm, num_slstm, depth) in {(7, 1, 24), (7, 1, 48), (7, 1, 64)}:
        return
    positions = place_slstm(depth, num_mlstm, num_slstm)
    share = depth * num_slstm / (num_mlstm + num_slstm)
    assert abs(len(positions) - share) <= 0.5 or (num_mlstm and num_slstm and len(positions) in (1, depth - 1))
    gaps = [right - left for left, right in itertools.pairwise(positions)]
    assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("size", ["125M", "350M", "760M", "1.3B", "2.7B"])
@pytest.mark.parametrize("family", ["xlstm[1:0]", "xlstm[7:1]", "xlstm[0:1]", "xlstm[1:1]", "xlstm[3:1]", "llama"])
def test_labels_of_a_configuration_are_the_words_it_was_asked_for_with(family: str, size: str) -> None:
    config = config_for(family, size, 50_304)
    assert (family_label(config), size_label(config)) == (family, size)


def test_positions_chosen_by_hand_are_labelled_by_their_ratio() -> None:
    config = XLSTMConfig(vocab_size=8, embedding_dim=16, num_blocks=6, slstm_at=(0, 1))
    assert family_label(config) == "xlstm[2:1]"


def test_a_size_of_ones_own_is_labelled_by_its_parameters() -> None:
    config = LlamaConfig(vocab_size=256, embedding_dim=64, num_blocks=2, num_heads=4)
    # 2 blocks of 4 * 64² + 3 * 64 * 192 + 2 * 64, a norm of 64, embedding and head of 256 * 64
    assert size_label(config) == "140K"
    assert config == config_for("llama", {"embedding_dim": 64, "num_blocks": 2, "num_heads": 4}, 256)


@pytest.mark.parametrize("label", ["xlstm", "xlstm[0:0]", "xlstm[7]", "lama", "xlstm[7:-1]"])
def test_an_unknown_family_is_refused_with_the_valid_ones(label: str) -> None:
    with pytest.raises(ValueError, match=r"xlstm\[7:1\].*llama"):
        parse_family(label)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("126M", "125M, 350M, 760M, 1.3B, 2.7B"),
        ({"embedding_dim": 64, "depth": 2}, "unknown dimension `depth`; there are embedding_dim, num_blocks"),
        ({"embedding_dim": 64}, "missing dimension `num_blocks`"),
        ({"embedding_dim": 64, "num_blocks": 2, "num_heads": "four"}, "`num_heads` must be a positive whole number"),
        ({"embedding_dim": 64, "num_blocks": 2.0, "num_heads": 4}, "`num_blocks` must be a positive whole number"),
        ({"embedding_dim": 66, "num_blocks": 2, "num_heads": 4}, "embedding_dim must be a multiple of num_heads"),
    ],
)
def test_a_size_that_makes_no_model_is_refused_with_what_would(size: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_for("llama", size, 256)  # type: ignore[arg-type]


def test_learning_rates_are_published_for_sizes_that_are() -> None:
    for families in LEARNING_RATES.values():
        for family, rates in families.items():
            assert set(rates) <= set(DIMENSIONS[family])
    assert LEARNING_RATES["15B"]["xlstm"]["350M"] == 1e-3
    assert LEARNING_RATES["300B"]["rwkv4"]["1.3B"] == 2e-4
    assert "2.7B" not in LEARNING_RATES["300B"]["xlstm"]
    assert LEARNING_RATES["15B"]["gla"] == {"350M": 1e-3}
    # GPT-3's rates (arXiv 2005.14165, Table 2.1) times five.
    gpt3 = {"125M": 6e-4, "350M": 3e-4, "760M": 2.5e-4, "1.3B": 2e-4, "2.7B": 1.6e-4}
    for family in ("llama", "mamba", "mamba2"):
        assert LEARNING_RATES["15B"][family] == pytest.approx({size: 5 * rate for size, rate in gpt3.items()})


def test_a_rate_that_was_not_published_is_xlstms() -> None:
    assert [learning_rate("hgrn", size) for size in ("125M", "350M", "760M")] == [3e-3, 1e-3, 9e-4]
    assert learning_rate("mamba2", "760M") == 1.25e-3
    assert learning_rate("rwkv7", "1.3B", "300B") == 5e-4
    with pytest.raises(KeyError, match=r"2\.7B"):
        learning_rate("rwkv7", "2.7B", "300B")


@pytest.mark.parametrize(
    ("count", "name"),
    [
        (999, "999"),
        (999_499, "999K"),
        (999_936, "1M"),
        (1_234_567, "1.23M"),
        (15_000_000_000, "15B"),
        (999_999_999, "1B"),
    ],
)
def test_a_count_has_three_digits_and_never_an_exponent(count: int, name: str) -> None:
    assert compact(count) == name
