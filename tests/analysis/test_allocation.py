"""Splits of a budget and compute multipliers against closed forms."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from scipy import optimize

from analysis.data.columns import SCHEMA
from analysis.decisions import allocation
from analysis.findings import RefusalError
from analysis.fitting import families
from analysis.fitting.fit import Fit
from analysis.laws.additive import AdditiveLaw

LAW = AdditiveLaw(E=1.7, A=400.0, B=400.0, alpha=0.34, beta=0.28)


@pytest.fixture(scope="module")
def fitted() -> Fit:
    n, d = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e7, 1e10, 5), np.geomspace(1e9, 1e12, 5)))
    noise = np.exp(np.random.default_rng(0).normal(0, 0.002, n.size))
    frame = pl.DataFrame({"parameters": n, "tokens": d, "flops": 6 * n * d, "loss": LAW.predict(n, d) * noise})
    frame = frame.with_columns(run_id=pl.int_range(pl.len()).cast(pl.String), family=pl.lit("x"))
    absent = [name for name in SCHEMA if name not in frame.columns]
    frame = frame.with_columns(pl.lit(None, dtype=SCHEMA[name]).alias(name) for name in absent)
    (found,) = families.fit(frame, num_draws=60, num_starts=40)
    return found


def test_without_inference_the_split_is_the_closed_form(fitted: Fit) -> None:
    found = allocation.allocate(fitted, 1e22)
    n, d = fitted.law.compute_optimal(1e22)
    assert found.parameters == pytest.approx(float(n), rel=1e-4)
    assert found.tokens == pytest.approx(float(d), rel=1e-4)
    assert found.parameters_interval[0] < found.parameters < found.parameters_interval[1]
    assert found.loss_interval[0] < found.loss < found.loss_interval[1]


def test_tokens_to_serve_ask_for_a_smaller_model(fitted: Fit) -> None:
    served = 1e12
    found = allocation.allocate(fitted, 1e22, inference_tokens=served)
    assert found.parameters < allocation.allocate(fitted, 1e22).parameters
    assert 6 * found.parameters * found.tokens + 2 * found.parameters * served == pytest.approx(1e22, rel=1e-4)

    def loss(log_n: float) -> float:
        n = np.exp(log_n)
        return float(fitted.law.predict(n, 1e22 / (6 * n) - served / 3))

    other = optimize.minimize_scalar(loss, bounds=(np.log(1e8), np.log(4.9e9)), method="bounded")
    # Linear interpolation of log D between grid points 0.0026 apart: an error of 1e-6 at most, a tenth of it in loss.
    assert found.loss == pytest.approx(float(other.fun), rel=1e-7)


def test_a_dearer_token_buys_fewer_tokens(fitted: Fit) -> None:
    # 1.25 times 6N where N is 3e8, and more of it in small models than in large ones: as attention has it.
    cost = 6 * pl.col("parameters") * 1.25 * (pl.col("parameters") / 3e8) ** -0.05
    attention = allocation.allocate(replace(fitted, rows=fitted.rows.with_columns(flops=cost * pl.col("tokens"))), 1e22)
    assert attention.loss > allocation.allocate(fitted, 1e22).loss
    spent = 7.5 * attention.parameters * (attention.parameters / 3e8) ** -0.05 * attention.tokens
    assert spent == pytest.approx(1e22, rel=1e-4)


def test_the_cost_per_token_is_the_runs_own(fitted: Fit) -> None:
    dearer = replace(fitted, rows=fitted.rows.with_columns(flops=pl.col("flops") * 1.25))
    sizes = np.array([1e6, 3e8, 1e12])
    np.testing.assert_allclose(dearer.token_cost.per_token(sizes), 7.5 * sizes, rtol=1e-12)


def test_a_budget_that_serving_alone_exceeds_is_refused(fitted: Fit) -> None:
    with pytest.raises(RefusalError) as refusal:
        allocation.allocate(fitted, 1e10, inference_tokens=1e18)
    assert refusal.value.code == "budget-too-small"


def test_a_law_that_needs_a_third_of_the_compute_has_a_multiplier_of_three(fitted: Fit) -> None:
    # Replacing N by s N and D by s D in the law moves its frontier along C by s squared.
    scale = np.sqrt(3.0)
    cheaper = replace(fitted.law, A=fitted.law.A * scale**-fitted.law.alpha, B=fitted.law.B * scale**-fitted.law.beta)
    shift = np.log(scale) * fitted.draws[:, 3:5]
    draws = fitted.draws.copy()
    draws[:, :2] -= shift
    challenger = replace(fitted, family="cheaper", law=cheaper, draws=draws)
    found = allocation.compute_multiplier(fitted, challenger, 1e21)
    assert found.value == pytest.approx(3.0, rel=1e-9)
    np.testing.assert_allclose(found.interval, [3.0, 3.0], rtol=1e-9)
    assert found.unreachable == 0


def test_a_loss_below_the_challengers_floor_is_never_reached(fitted: Fit) -> None:
    worse = replace(fitted.law, E=10.0)
    found = allocation.compute_multiplier(fitted, replace(fitted, law=worse), 1e21)
    assert found.value == 0


def test_a_split_beyond_all_numbers_is_infinite_and_no_error() -> None:
    n, d = AdditiveLaw(E=1.0, A=1e200, B=1.0, alpha=0.3, beta=0.1).compute_optimal(1e20)
    assert n == np.inf
    assert d == 0


def test_a_law_without_an_optimum_splits_no_budget(fitted: Fit) -> None:
    """Whatever the size is, its loss is the same: the fewer parameters, the more tokens, the better."""
    flat = replace(fitted, law=AdditiveLaw(E=1.7, A=1e-9, B=400.0, alpha=0.001, beta=0.28))
    with pytest.raises(RefusalError, match=r"no split of 1e\+22 FLOPs is told: its law has no optimum"):
        allocation.allocate(flat, 1e22)
