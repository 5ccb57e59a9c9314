"""Tables of many rows: descents begin on a sample, and draws come from the asymptotic distribution."""

import numpy as np
import polars as pl
import pytest

from analysis.fitting import problem, regression
from analysis.laws.additive import AdditiveLaw
from analysis.laws.forms import FORMS, find

LAW = AdditiveLaw(E=1.7, A=400.0, B=800.0, alpha=0.34, beta=0.30)


def rows(count: int) -> pl.DataFrame:
    """Runs anywhere, scattered by .5 %; neighbours in N share some of their errors."""
    random = np.random.default_rng(0)
    n, d = (np.exp(random.uniform(np.log(low), np.log(high), count)) for low, high in ((1e7, 1e10), (1e9, 1e12)))
    cluster = np.arange(count) // 4
    errors = random.normal(0, 0.004, count) + random.normal(0, 0.003, count)[cluster]
    table = {"parameters": n, "tokens": d, "flops": 6 * n * d, "loss": LAW.predict(n, d) * np.exp(errors)}
    return pl.DataFrame(table | {"cluster": cluster.astype(str)})


@pytest.mark.parametrize("name", ["additive", "coupled", "additive[alpha=0.34]"])
def test_a_sample_leads_to_the_optimum_of_all_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    frame, found = rows(3000), []
    for many in (problem.MANY, 2500):
        monkeypatch.setattr(problem, "MANY", many)
        found.append(regression.fit_form(frame, find(name), num_starts=24))
    assert found[1].objective_value == pytest.approx(found[0].objective_value, rel=1e-8)
    assert found[1].certificate.converged


@pytest.mark.parametrize("objective", [regression.HUBER, regression.LEAST_SQUARES], ids=["huber", "least-squares"])
def test_asymptotic_draws_spread_as_resamples_do(
    objective: regression.Objective, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame, spread = rows(3000), []
    for many in (problem.MANY, 2500):
        monkeypatch.setattr(problem, "MANY", many)
        found = regression.fit_form(frame, FORMS["additive"], objective, num_starts=8, num_draws=400)
        spread.append(np.std(found.draws[:, 2:], axis=0))
    assert "tend to (750 clusters)" in found.resampling
    # A deviation over 400 draws is known to 3.5 %, and both differ by what is of second order.
    np.testing.assert_allclose(spread[1], spread[0], rtol=0.2)
