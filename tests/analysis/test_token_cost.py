"""A budget is split at a smooth cost of a token: jagged shapes do not hold the optimum, and all answers count alike."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from scipy import optimize

from analysis.data import quality
from analysis.data.columns import SCHEMA
from analysis.decisions import allocation
from analysis.fitting import families, regression
from analysis.fitting.fit import Fit
from analysis.laws.additive import AdditiveLaw, Array
from analysis.laws.forms import FORMS
from analysis.laws.token_cost import TokenCost

Cost = Callable[[Array], Array]
"""Training FLOPs per token of models of N parameters."""
LAW = AdditiveLaw(E=1.7, A=400.0, B=800.0, alpha=0.34, beta=0.30)
CHEAPER = replace(LAW, A=330.0, B=700.0)
JAGGED = np.array([1.72, 2.08, 1.83, 1.97, 1.84, 1.65])
"""Exact FLOPs over 6ND of neighbouring sizes whose shapes differ."""


def attention(context: float) -> Cost:
    """6N and the attention of a context, with layers and widths that grow together: their product goes as N^(2/3)."""
    return lambda n: 6 * n + 4 * context * np.asarray(n) ** (2 / 3)


def frame(
    law: AdditiveLaw, cost: Cost, family: str, *, jags: Array | None = None, noise: float = 0.0003
) -> pl.DataFrame:
    n, d = (grid.ravel() for grid in np.meshgrid(np.geomspace(2e7, 2e9, 12), np.geomspace(1e9, 4e10, 6)))
    errors = np.exp(np.random.default_rng(3).normal(0, noise, n.size))
    shape = np.ones(n.size) if jags is None else np.tile(jags, n.size // len(jags))
    table = pl.DataFrame(
        {"parameters": n, "tokens": d, "flops": cost(n) * shape * d, "loss": law.predict(n, d) * errors}
    ).with_columns(run_id=pl.format("{}-{}", pl.lit(family), pl.int_range(pl.len())), family=pl.lit(family))
    absent = [pl.lit(None, dtype=kind).alias(name) for name, kind in SCHEMA.items() if name not in table.columns]
    return quality.judge(table.with_columns(absent).select(pl.col(name).cast(kind) for name, kind in SCHEMA.items()))


def fit(table: pl.DataFrame) -> Fit:
    (found,) = families.fit(table, num_starts=60, num_draws=300)
    return found


def best(law: AdditiveLaw, cost: Cost, flops: float) -> tuple[float, float]:
    """log N* and the loss there, by SciPy."""

    def loss(log_n: float) -> float:
        n = np.exp(log_n)
        return float(law.predict(n, flops / float(cost(n))))

    found = optimize.minimize_scalar(loss, bounds=(np.log(1e6), np.log(1e12)), options={"xatol": 1e-10})
    return float(found.x), float(found.fun)


@pytest.mark.parametrize("flops", [3e19, 1e20, 3e20, 1e21, 1e22])
def test_jagged_shapes_do_not_hold_the_optimum(flops: float) -> None:
    """Six ratios, repeated over the sizes, about the smooth cost that has their geometric mean."""
    mean = float(np.exp(np.log(JAGGED).mean()))
    found = allocation.allocate(fit(frame(LAW, lambda n: 6 * n, "x", jags=JAGGED)), flops)
    truth = float(np.exp(best(LAW, lambda n: 6 * mean * n, flops)[0]))
    low, high = found.parameters_interval
    assert found.parameters == pytest.approx(truth, rel=0.03)
    assert low < truth < high
    assert high > 1.003 * low


def test_the_exponent_of_jagged_shapes_is_the_laws_own() -> None:
    fitted = fit(frame(LAW, lambda n: 6 * n, "x", jags=JAGGED))
    exponent, (low, high) = allocation.exponents_between(fitted, 1e19, 1e21)["parameters"]
    assert low < LAW.parameters_exponent < high
    assert exponent == pytest.approx(LAW.parameters_exponent, abs=0.02)
    assert 0.001 < high - low < 0.2


@pytest.mark.parametrize("context", [2048, 8192, 65_536])
def test_the_multiplier_is_the_ratio_of_the_budgets_that_reach_one_loss_at_their_own_costs(context: int) -> None:
    cost, plain = attention(context), attention(512)
    baseline, challenger = fit(frame(LAW, cost, "a", noise=0)), fit(frame(CHEAPER, plain, "b", noise=0))
    found = allocation.compute_multiplier(baseline, challenger, 1e20)
    _, reached = best(LAW, cost, 1e20)
    needed = optimize.brentq(lambda log_c: best(CHEAPER, plain, np.exp(log_c))[1] - reached, 35, 55, xtol=1e-10)
    assert found.value == pytest.approx(1e20 / np.exp(needed), rel=0.02)
    split = allocation.allocate(baseline, 1e20)
    assert allocation.allocate(challenger, 1e20 / found.value).loss == pytest.approx(split.loss, rel=1e-9)


def test_a_multiplier_needs_no_closed_form_of_the_split() -> None:
    """The additive law without what says how it splits."""
    blind = replace(FORMS["additive"], name="blind", split=None)
    pair = [frame(LAW, attention(2048), "a"), frame(CHEAPER, attention(512), "b")]
    known = [regression.fit_form(one, FORMS["additive"], num_draws=40) for one in pair]
    unknown = [regression.fit_form(one, blind, num_draws=40) for one in pair]
    expected = allocation.compute_multiplier(*known, 1e20)
    found = allocation.compute_multiplier(*unknown, 1e20)
    assert found.value == pytest.approx(expected.value, rel=1e-9)
    assert found.interval == pytest.approx(expected.interval, rel=1e-6)


def test_beyond_the_sizes_the_share_of_attention_fades_as_it_does() -> None:
    """6N + c N^(1/2) far beyond the ends, where the quadratic itself would turn upwards."""
    n = np.geomspace(1e8, 1e10, 9)
    cost = TokenCost.of(n, np.ones(9), 6 * n + 3e4 * np.sqrt(n))
    far = np.array([1e11, 1e12, 1e14])
    np.testing.assert_allclose(cost.per_token(far), 6 * far + 3e4 * np.sqrt(far), rtol=0.05)
    np.testing.assert_allclose(cost.per_token(n), 6 * n + 3e4 * np.sqrt(n), rtol=0.01)
