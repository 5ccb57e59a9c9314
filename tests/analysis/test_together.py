"""Families fitted together, and loss turned into a benchmark's error."""

import numpy as np
import polars as pl
import pytest

from analysis.decisions import downstream
from analysis.findings import RefusalError
from analysis.fitting import regression
from analysis.fitting.joint import fit_together
from analysis.laws.forms import FORMS, law_of
from analysis.laws.objectives import LEAST_SQUARES_OF_LOG

LAWS = {"xlstm": [6.0, 7.4, 0.55, 0.36, 0.37], "llama": [6.2, 7.6, 0.55, 0.36, 0.37]}


def two_families(noise: float = 0.0) -> pl.DataFrame:
    n, d = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e7, 1e9, 4), np.geomspace(2e8, 2e10, 4)))
    random = np.random.default_rng(0)
    frames = []
    for family, theta in LAWS.items():
        log_loss = FORMS["additive"].log_loss(np.array([theta]), np.log(np.stack([n, d])))[0]
        loss = np.exp(log_loss + random.normal(0, noise, n.size))
        frames.append(pl.DataFrame({"parameters": n, "tokens": d, "loss": loss}).with_columns(family=pl.lit(family)))
    return pl.concat(frames)


def test_shared_and_separate_parameters_are_recovered() -> None:
    frame = two_families()
    found = fit_together(frame, FORMS["additive"], ["E", "alpha", "beta"], LEAST_SQUARES_OF_LOG)
    for family, (log_a, log_b, log_e, alpha, beta) in LAWS.items():
        expected = {"A": np.exp(log_a), "B": np.exp(log_b), "E": np.exp(log_e), "alpha": alpha, "beta": beta}
        assert found.parameters(family) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(found.predict(frame), frame["loss"].to_numpy(), rtol=1e-7)


def test_sharing_narrows_the_exponents_and_sharing_nothing_is_two_fits() -> None:
    frame = two_families(noise=0.005)
    shared = fit_together(frame, FORMS["additive"], ["alpha", "beta", "E"], LEAST_SQUARES_OF_LOG, num_draws=100)
    apart = fit_together(frame, FORMS["additive"], [], LEAST_SQUARES_OF_LOG, num_draws=100)
    alone = regression.fit_form(frame.filter(family="llama"), FORMS["additive"], LEAST_SQUARES_OF_LOG)
    assert apart.parameters("llama") == pytest.approx(alone.parameters, rel=1e-4)

    def width(low: float, high: float) -> float:
        return high - low

    assert width(*shared.intervals("llama")["alpha"]) < width(*apart.intervals("llama")["alpha"])
    # The families do share them, so eight parameters must explain the losses better per parameter than ten.
    assert shared.fit.information < apart.fit.information


def test_what_cannot_be_fitted_together_is_refused() -> None:
    frame = two_families()
    with pytest.raises(RefusalError, match="at least two"):
        fit_together(frame.filter(family="llama"), FORMS["additive"], ["alpha"])
    with pytest.raises(ValueError, match="no delta; its parameters are A, B, E, alpha, beta"):
        fit_together(frame, FORMS["additive"], ["delta"])
    found = fit_together(frame, FORMS["additive"], ["alpha"], LEAST_SQUARES_OF_LOG)
    with pytest.raises(ValueError, match="no family 'mamba'"):
        found.parameters("mamba")


def test_error_follows_from_loss_and_both_uncertainties_are_in_its_bounds() -> None:
    truth = {"epsilon": 0.75, "k": 2.1, "gamma": 0.6}
    frame = two_families(noise=0.003).filter(family="llama")
    error = truth["epsilon"] - truth["k"] * np.exp(-truth["gamma"] * frame["loss"].to_numpy())
    exact = frame.with_columns(error=pl.Series(error))
    assert downstream.fit_link(exact, "error").fit.parameters == pytest.approx(truth, rel=1e-4)
    noisy = error + np.random.default_rng(1).normal(0, 0.004, len(error))
    link = downstream.fit_link(frame.with_columns(error=pl.Series(noisy)), "error", num_draws=100)
    law = regression.fit_form(frame, FORMS["additive"], num_draws=100)
    target = pl.DataFrame({"parameters": [7e9], "tokens": [1.4e11]})
    middle, low, high = link.predict_from(law, target)
    alone = np.quantile(
        [_with(link, theta).predict(law.predict_rows(target))[0] for theta in link.fit.draws], [0.025, 0.975]
    )
    assert low[0] < middle[0] < high[0]
    assert high[0] - low[0] > alone[1] - alone[0]
    with pytest.raises(ValueError, match="num_draws"):
        link.predict_from(regression.fit_form(frame, FORMS["additive"]), target)


@pytest.mark.parametrize("name", ["exponential", "sigmoid"])
def test_the_link_is_the_form_that_foretells_the_dear_runs(name: str) -> None:
    loss = np.linspace(3.4, 1.9, 16)
    errors = {
        "exponential": 0.75 - 2.1 * np.exp(-0.6 * loss),
        "sigmoid": 0.2 + 0.55 / (1 + np.exp(-6.0 * (loss - 2.6))),
    }
    frame = pl.DataFrame({"flops": np.geomspace(1e18, 1e21, 16), "loss": loss, "error": errors[name]})
    chosen = downstream.choose_link(frame.sample(fraction=1.0, shuffle=True, seed=3), "error")
    assert chosen.name == name
    assert chosen.rollouts[name] == pytest.approx(0, abs=1e-4)
    assert chosen.link.predict(loss) == pytest.approx(errors[name], abs=1e-4)


def _with(link: downstream.Link, theta: np.ndarray) -> downstream.Link:
    from dataclasses import replace

    return replace(link, fit=replace(link.fit, law=law_of(downstream.LINK, theta)))


def test_a_task_without_any_skill_yet_is_said_to_be_saturated() -> None:
    frame = two_families(noise=0.003).filter(family="llama")
    chance = 0.75 + np.random.default_rng(2).normal(0, 0.003, frame.height)
    link = downstream.fit_link(frame.with_columns(error=pl.Series(chance)), "error")
    assert "saturated" in {warning.code for warning in link.warnings}
