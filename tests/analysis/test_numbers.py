"""Numbers in cells of tables, as people write them."""

import numpy as np
import pytest

from analysis.data.numbers import plain_numbers, read_number
from analysis.fitting.bootstrap import percentile


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("12M", 12e6),
        ("1.5B", 1.5e9),
        ("7b", 7e9),
        ("300 K", 3e5),
        ("1,000,000", 1e6),
        ("1 000 000", 1e6),
        ("1'000'000", 1e6),
        ("1_000_000", 1e6),
        ("1e9", 1e9),
        (" 5 ", 5.0),
        (12, 12.0),
        ("9" * 400, np.inf),
        (10**400, np.inf),
        ("", None),
        ("n/a", None),
        (None, None),
    ],
)
def test_counts_are_read_as_people_write_them(written: object, number: float | None) -> None:
    assert read_number(written, count=True) == number


@pytest.mark.parametrize(
    ("written", "options"),
    [
        ("twelve", {"count": True}),
        ("1,00", {"count": True}),
        ("1,000.000,0", {"count": True}),
        ("1,000", {"count": True, "grouped": False}),
        ("12M", {}),
        ("3,857", {}),
        ("3.857", {"decimal_comma": True}),
        (True, {}),
        ([3.0], {}),
    ],
)
def test_what_is_no_number_is_not_guessed(written: object, options: dict[str, bool]) -> None:
    with pytest.raises(ValueError, match="is no number"):
        read_number(written, **options)


@pytest.mark.parametrize(
    ("written", "number"), [("3,857", 3.857), ("1.000.000", 1e6), ("1.234,5", 1234.5), ("1,5B", 1.5e9), ("1e9", 1e9)]
)
def test_a_decimal_comma_is_read_where_it_is_stated(written: str, number: float) -> None:
    assert read_number(written, count=True, decimal_comma=True) == number


PLAIN: list[list[object]] = [["1", "2.5", "-1e3", ".5", "9" * 400], [1.0, np.inf]]


@pytest.mark.parametrize("cells", [*PLAIN, ["1", "1_000"], ["e"], ["1", None], [True], [1]])
def test_a_column_of_plain_numbers_is_read_as_each_of_its_cells(cells: list[object]) -> None:
    read = plain_numbers(cells)
    assert (read is None) == (cells not in PLAIN)
    assert read is None or read == [read_number(cell) for cell in cells]


def test_the_interval_of_draws_of_which_some_are_infinite_ends_there_and_is_a_number() -> None:
    draws = np.arange(100.0)
    assert percentile(draws) == pytest.approx((2.475, 96.525))
    assert percentile(np.append(draws, [np.inf] * 10)) == (2, np.inf)
    assert percentile(np.append(draws, [-np.inf] * 10)) == (-np.inf, 97)
    assert percentile(np.append(draws, np.inf)) == (2, 98)
