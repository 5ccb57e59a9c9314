"""The engine behind every fit: exact derivatives, the optimum, weights, and the two ways of resampling few runs."""

import numpy as np
import polars as pl
import pytest

from analysis.findings import RefusalError
from analysis.fitting import bootstrap, newton, regression
from analysis.fitting.newton import Points
from analysis.laws.forms import FORMS
from analysis.laws.objectives import LEAST_SQUARES, LEAST_SQUARES_OF_LOG, Objective
from analysis.laws.structure import COORDINATES, Structure

STRUCTURES = {
    "additive": Structure.of("A", "B", "E", "alpha", "beta"),
    "coupled": Structure.of(*COORDINATES),
    "power": Structure.of("A", "E", "alpha"),
    "overtraining": Structure.of("A", "B", "E", "alpha", tied=("beta", "alpha")),
    "kaplan": Structure.of("A", "B", "alpha", "gamma", beta=1.0),
}


def points(structure: Structure, objective: Objective) -> Points:
    """25 points of a law about their means, 3 % of noise."""
    random = np.random.default_rng(0)
    x, y = (axis.ravel() for axis in np.meshgrid(np.linspace(-2, 2, 5), np.linspace(-2.5, 2.5, 5)))
    loss = (1.7 + 0.5 * np.exp(-0.35 * x) + 0.4 * np.exp(-0.3 * y)) * np.exp(random.normal(0, 0.03, x.size))
    weights = random.uniform(0.5, 2.0, x.size)
    return Points(x, y, np.log(loss) if objective.logarithmic else loss, weights, structure, objective)


@pytest.mark.parametrize(
    "objective", [Objective(delta=0.5), Objective(delta=0.02, overestimate=3), LEAST_SQUARES], ids=str
)
@pytest.mark.parametrize("name", STRUCTURES)
def test_gradient_and_hessian_agree_with_central_differences(name: str, objective: Objective) -> None:
    data = points(STRUCTURES[name], objective)
    free = newton.starts(data, 6, 0)
    everywhere = np.arange(len(free))

    def derivatives(at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return newton._evaluate(at, everywhere, data, False)

    def value(at: np.ndarray) -> np.ndarray:
        return (data.weights * objective.values(newton.residuals(at, data))).sum(axis=1)

    total, gradient, hessian = derivatives(free)
    np.testing.assert_allclose(total, value(free), rtol=1e-12)
    step = 1e-6
    for index in range(free.shape[1]):
        shift = step * free * (np.arange(free.shape[1]) == index)
        width = 2 * step * free[:, index]
        slopes = (value(free + shift) - value(free - shift)) / width
        bends = (derivatives(free + shift)[1] - derivatives(free - shift)[1]) / width[:, None]
        # Central differences: rounding of values 1e-16 / 1e-6 relative to the largest entry; no kink is that close.
        np.testing.assert_allclose(gradient[:, index], slopes, atol=1e-7 * np.abs(gradient).max())
        np.testing.assert_allclose(hessian[:, :, index], bends, atol=1e-6 * np.abs(hessian).max())


def test_weights_count_as_repeated_points() -> None:
    random = np.random.default_rng(3)
    n, d = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e6, 1e9, 5), np.geomspace(1e8, 1e11, 4)))
    loss = np.exp(FORMS["additive"].log_loss(np.array([[5.8, 6.2, 0.5, 0.34, 0.3]]), np.log(np.stack([n, d])))[0])
    frame = pl.DataFrame({"parameters": n, "tokens": d, "loss": loss * np.exp(random.normal(0, 0.01, n.size))})
    frame = frame.with_columns(weight=pl.Series(random.integers(1, 4, n.size)))
    repeated = frame.select(pl.exclude("weight").repeat_by("weight").explode())
    weighted, plain = (regression.fit_form(rows, FORMS["additive"], LEAST_SQUARES_OF_LOG) for rows in (frame, repeated))
    assert weighted.objective_value == pytest.approx(plain.objective_value, rel=1e-9)
    assert weighted.parameters == pytest.approx(plain.parameters, rel=1e-5)


def test_a_weight_that_is_none_is_refused() -> None:
    frame = pl.DataFrame(
        {"flops": np.geomspace(1e15, 1e19, 6), "loss": np.linspace(4, 3, 6), "weight": [1.0] * 5 + [0.0]}
    )
    with pytest.raises(RefusalError, match="weight"):
        regression.fit_form(frame, FORMS["power-C"])


def power_law(noise: float, count: int = 12, seed: int = 0) -> pl.DataFrame:
    flops = np.geomspace(1e16, 1e20, count)
    errors = np.random.default_rng(seed).normal(0, noise, count)
    return pl.DataFrame({"flops": flops, "loss": 40 * flops**-0.06 * np.exp(errors)})


def test_the_bootstrap_of_a_linear_law_has_the_standard_error_of_the_jackknife() -> None:
    """log L = log A - alpha log C is linear, where least squares and its covariance are closed forms."""
    frame = power_law(0.01)
    x, y = np.log(frame["flops"].to_numpy()), np.log(frame["loss"].to_numpy())
    centered = x - x.mean()
    slope = (centered @ y) / (centered @ centered)
    residual = y - y.mean() - slope * centered
    leverage = 1 / len(x) + centered**2 / (centered @ centered)
    jackknife = np.sqrt((centered**2 @ (residual / (1 - leverage)) ** 2) / (centered @ centered) ** 2)
    # 4,000 draws: standard errors to 1/sqrt(8000) = 1.1 %; four of these.
    fitted = regression.fit_form(frame, FORMS["power-C"], LEAST_SQUARES_OF_LOG, num_draws=4000)
    assert fitted.parameters["alpha"] == pytest.approx(-slope, rel=1e-9)
    assert np.std(fitted.draws[:, 1]) == pytest.approx(jackknife, rel=0.045)


def test_runs_of_few_trunks_are_said_not_to_carry_intervals() -> None:
    frame = power_law(0.01).with_columns(cluster=pl.Series([f"trunk {i // 6}" for i in range(12)]))
    fitted = regression.fit_form(frame, FORMS["power-C"], num_draws=50)
    assert "few-clusters" in {warning.code for warning in fitted.warnings}
    assert "few-clusters" not in {w.code for w in regression.fit_form(power_law(0.01), FORMS["power-C"]).warnings}


def test_clusters_are_drawn_whole() -> None:
    cluster = bootstrap.clusters_of(pl.DataFrame({"cluster": ["a", "a", None, "b", None]}))
    assert len(set(cluster.tolist())) == 4
    assert cluster[0] == cluster[1]
