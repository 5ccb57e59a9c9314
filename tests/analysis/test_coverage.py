"""Nominal 95 % intervals hold the truth about that often; `benchmarks/coverage.py` has the whole table."""

import numpy as np
import pytest

from benchmarks import coverage

REPLICATES = 60


@pytest.mark.parametrize("noise", coverage.NOISES)
def test_intervals_of_the_additive_law_from_25_runs_hold_the_truth_as_often_as_they_say(noise: str) -> None:
    found = [coverage.replicate(("additive", noise, 25, index, 200)) for index in range(REPLICATES)]
    for quantity in coverage.quantities("additive"):
        held = np.mean([intervals[quantity] for intervals, _ in found])
        # The table's band, 0.90 to 0.98, and three standard errors of so few replicates beyond.
        assert held >= 0.90 - 3 * np.sqrt(0.9 * 0.1 / REPLICATES), quantity


@pytest.mark.parametrize("noise", coverage.NOISES)
def test_nine_runs_for_five_parameters_are_said_not_to_be_trusted(noise: str) -> None:
    assert coverage.replicate(("additive", noise, 9, 0, 50))[1]


def test_a_new_run_is_predicted_from_runs_of_which_something_is_amiss() -> None:
    found = coverage.doubted(("D = 20 N, 24 runs", 0, 40, 6))
    assert "collinear" in found["codes"]
    row = coverage.doubts_of("D = 20 N, 24 runs", [found])
    assert row["warned"] == 1
    assert row["verdict"] == ("held" if found["inside"] else "warned")
    assert "| D = 20 N, 24 runs |" in coverage.doubts_table({"replicates": 1, "draws": 40, "rows": [row]})
