"""Profile likelihood against closed forms, and where the data set no limit."""

import numpy as np
import polars as pl
import pytest
from scipy import stats

from analysis.findings import RefusalError
from analysis.fitting.profile_likelihood import profile
from analysis.laws.forms import FORMS
from analysis.laws.objectives import HUBER, LEAST_SQUARES_OF_LOG


def power_law(noise: float, floor: float = 0.0, count: int = 12) -> pl.DataFrame:
    flops = np.geomspace(1e16, 1e20, count)
    errors = np.random.default_rng(0).normal(0, noise, count)
    return pl.DataFrame({"flops": flops, "loss": (floor + 40 * flops**-0.06) * np.exp(errors)})


def test_the_interval_of_a_linear_law_is_students() -> None:
    frame = power_law(0.01)
    x, y = np.log(frame["flops"].to_numpy()), np.log(frame["loss"].to_numpy())
    line = stats.linregress(x, y)
    half = stats.t.ppf(0.975, len(x) - 2) * line.stderr
    found = profile(frame, FORMS["power-C"], "alpha", LEAST_SQUARES_OF_LOG)
    np.testing.assert_allclose(found.interval, [-line.slope - half, -line.slope + half], rtol=1e-5)
    assert not found.open_below
    assert not found.open_above


def test_a_floor_the_data_do_not_show_has_no_lower_limit() -> None:
    found = profile(power_law(0.01), FORMS["power-C-floor"], "E", LEAST_SQUARES_OF_LOG)
    assert found.open_below
    assert not found.open_above


@pytest.mark.parametrize("objective", [HUBER, LEAST_SQUARES_OF_LOG], ids=["huber", "least-squares"])
def test_no_value_of_the_parameter_explains_the_data_better_than_the_optimum(objective) -> None:  # type: ignore[no-untyped-def]
    n, d = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e7, 1e9, 5), np.geomspace(2e8, 2e10, 5)))
    theta = np.array([[6.5, 7.5, 0.56, 0.42, 0.43, 0.77]])
    noise = np.random.default_rng(1).normal(0, 0.005, n.size)
    loss = np.exp(FORMS["coupled"].log_loss(theta, np.log(np.stack([n, d])))[0] + noise)
    found = profile(pl.DataFrame({"parameters": n, "tokens": d, "loss": loss}), FORMS["coupled"], "gamma", objective)
    assert found.ratio.min() > -1e-6
    assert (np.diff(found.values) > 0).all()
    low, high = found.interval
    assert low < 0.77 < high


@pytest.mark.parametrize(
    ("form", "parameter", "change", "code"),
    [
        ("power-C", "A", {}, "not-profiled"),
        ("broken", "alpha", {}, "not-profiled"),
        ("power-C", "alpha", {"cluster": ["one"] * 12}, "shared-trunks"),
        ("power-C", "alpha", {"loss": 40 * np.geomspace(1e16, 1e20, 12) ** -0.06}, "no-noise"),
    ],
)
def test_what_has_no_profile_is_refused(form: str, parameter: str, change: dict[str, object], code: str) -> None:
    frame = power_law(0.01).with_columns(**{name: pl.Series(values) for name, values in change.items()})  # type: ignore[arg-type]
    with pytest.raises(RefusalError) as refusal:
        profile(frame, FORMS[form], parameter)
    assert refusal.value.code == code
