"""Approach 2 beside approach 3: they agree on runs of one law, and where they do not it is said."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from analysis.data import quality
from analysis.data.columns import SCHEMA
from analysis.decisions import agreement, isoflop
from analysis.findings import RefusalError
from analysis.fitting import families
from analysis.fitting.fit import Fit
from analysis.laws.additive import AdditiveLaw
from analysis.report import page
from analysis.report.figures import Evidence

LAW = AdditiveLaw(E=1.7, A=400.0, B=800.0, alpha=0.34, beta=0.30)


def fit() -> Fit:
    """Profiles of 13 sizes."""
    c, n = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e18, 1e21, 6), np.geomspace(3e7, 1e10, 13)))
    errors = np.random.default_rng(0).normal(0, 0.0005, n.size)
    frame = pl.DataFrame(
        {
            "parameters": n,
            "tokens": c / (6 * n),
            "flops": c,
            "loss": LAW.predict(n, c / (6 * n)) * np.exp(errors),
        }
    ).with_columns(run_id=pl.format("r{}", pl.int_range(pl.len())), family=pl.lit("x"))
    absent = [pl.lit(None, dtype=kind).alias(name) for name, kind in SCHEMA.items() if name not in frame.columns]
    (found,) = families.fit(quality.judge(frame.with_columns(absent)), num_starts=40, num_draws=100)
    return found


def test_on_the_runs_of_one_law_both_approaches_agree_and_give_both_exponents(tmp_path: Path) -> None:
    fitted = fit()
    found = agreement.compare(fitted)
    assert found.difference <= 1
    assert agreement.checked(fitted) is fitted
    for name, exponent in (("parameters", LAW.parameters_exponent), ("tokens", 1 - LAW.parameters_exponent)):
        value, (low, high) = found.law[name]
        assert low < exponent < high
        assert value == pytest.approx(exponent, abs=0.01)
    text = page.write(tmp_path / "page.html", "x", Evidence([fitted]), {}).read_text()
    assert "The best split, by profiles and by the law" in text
    assert "they disagree" not in text


def test_where_they_disagree_by_more_than_their_intervals_it_is_said() -> None:
    fitted = fit()
    steeper = np.array([0.1 * np.log(1e9), 0.0, 0.0, 0.1, 0.0])
    law = AdditiveLaw.from_vector(fitted.law.to_vector() + steeper)
    other = replace(fitted, law=law, draws=fitted.draws + steeper)
    (warning,) = [one for one in agreement.checked(other).warnings if one.code == "approaches-disagree"]
    assert "N* goes as C^0.4" in warning.message


def test_budgets_that_run_into_each_other_are_no_profile() -> None:
    c, n = np.geomspace(1e18, 1e21, 300), np.resize(np.geomspace(3e7, 1e10, 13), 300)
    frame = pl.DataFrame({"parameters": n, "tokens": c / (6 * n), "flops": c, "loss": LAW.predict(n, c / (6 * n))})
    with pytest.raises(RefusalError, match="are no one budget"):
        isoflop.frontier(frame)
