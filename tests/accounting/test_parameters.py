"""Parameter counts are the published ones (arXiv 2405.04517, Tables 3 and 7), to the digits printed."""

import pytest

from xlstm.accounting import parameters
from xlstm.models.sizes import config_for

VOCABULARY = 50_304  # GPT-2's 50,257, padded: the only one that reproduces the table

PUBLISHED_MILLIONS = {
    "xlstm[1:0]": {"125M": 163.8, "350M": 409.3, "760M": 840.4, "1.3B": 1422.6},
    "xlstm[7:1]": {"125M": 163.7, "350M": 408.4, "760M": 839.7, "1.3B": 1420.1},
    "llama": {"125M": 162.2, "350M": 406.6, "760M": 834.1, "1.3B": 1420.4, "2.7B": 2779.5},
}


@pytest.mark.parametrize(
    ("family", "size", "millions"),
    [(family, size, count) for family, counts in PUBLISHED_MILLIONS.items() for size, count in counts.items()],
)
def test_totals_are_those_of_the_paper(family: str, size: str, millions: float) -> None:
    assert parameters(config_for(family, size, VOCABULARY)).total / 1e6 == pytest.approx(millions, abs=0.05)


EXACT = {  # d, mLSTM blocks, sLSTM blocks, width of the sLSTM blocks' feed-forward layer
    ("xlstm[1:0]", "125M"): (768, 24, 0, 1024),
    ("xlstm[1:0]", "350M"): (1024, 48, 0, 1344),
    ("xlstm[1:0]", "760M"): (1536, 48, 0, 2048),
    ("xlstm[1:0]", "1.3B"): (2048, 48, 0, 2688),
    ("xlstm[1:0]", "2.7B"): (2560, 64, 0, 3328),
    ("xlstm[7:1]", "125M"): (768, 22, 2, 1024),
    ("xlstm[7:1]", "350M"): (1024, 42, 6, 1344),
    ("xlstm[7:1]", "760M"): (1536, 42, 6, 2048),
    ("xlstm[7:1]", "1.3B"): (2048, 42, 6, 2688),
    ("xlstm[7:1]", "2.7B"): (2560, 58, 6, 3328),
}


@pytest.mark.parametrize(("family", "size"), EXACT)
def test_xlstm_counts_are_exactly_those_of_the_closed_forms(family: str, size: str) -> None:
    d, num_mlstm, num_slstm, width = EXACT[family, size]
    inner = num_mlstm * (6 * d**2 + 87 * d + 8) + num_slstm * (2 * d**2 + 12 * d + 3 * d * width) + d
    counted = parameters(config_for(family, size, VOCABULARY))
    assert counted.non_embedding == inner
    assert counted.non_embedding_with_head == inner + VOCABULARY * d
    assert counted.total == inner + 2 * VOCABULARY * d


def test_the_largest_xlstm_has_the_number_the_closed_form_gives() -> None:
    assert parameters(config_for("xlstm[1:0]", "2.7B", VOCABULARY)).total == 2_788_396_032
