"""Forms, bounds and columns of one's own: as values, without a change to the project."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from analysis.data import runs
from analysis.decisions import design, downstream, isoflop
from analysis.findings import RefusalError
from analysis.fitting import families, regression
from analysis.laws import forms
from analysis.laws.additive import AdditiveLaw
from analysis.laws.forms import FORMS, Form
from analysis.laws.objectives import LEAST_SQUARES_OF_LOG
from orchestrator.cli import app

LAW = AdditiveLaw(E=1.7, A=400.0, B=800.0, alpha=0.34, beta=0.30)


def grid(law: AdditiveLaw = LAW, noise: float = 0.0) -> pl.DataFrame:
    n, d = (axis.ravel() for axis in np.meshgrid(np.geomspace(2e7, 2e9, 7), np.geomspace(1e9, 4e10, 7)))
    errors = np.exp(np.random.default_rng(0).normal(0, noise, n.size))
    return pl.DataFrame({"parameters": n, "tokens": d, "flops": 6 * n * d, "loss": law.predict(n, d) * errors})


def test_a_form_over_named_columns_takes_ten_lines() -> None:
    """Loss against vocabulary, in coordinates that no form here has."""
    form = Form(
        "vocabulary",
        "floor + (V0/V)^slope",
        ("vocabulary",),
        ("log floor", "log V0", "slope"),
        (-10.0, -10.0, 0.01),
        (5.0, 30.0, 3.0),
        lambda theta, x: np.log(np.exp(theta[:, 0]) + np.exp(theta[:, 2] * (theta[:, 1] - x[0]))),
        "own",
    )
    words = np.geomspace(1e3, 1e6, 20)
    noise = np.exp(np.random.default_rng(0).normal(0, 1e-4, 20))
    frame = pl.DataFrame({"vocabulary": words, "loss": (2.0 + (500.0 / words) ** 0.4) * noise})
    found = regression.fit_form(frame, form, LEAST_SQUARES_OF_LOG, num_draws=20)
    assert found.parameters == pytest.approx({"floor": 2.0, "V0": 500.0, "slope": 0.4}, rel=0.02)
    assert found.certificate.converged


def test_bounds_are_values_that_are_honoured() -> None:
    form = FORMS["additive"]
    held = replace(form, upper=(*form.upper[:3], 0.2, form.upper[4]))
    found = regression.fit_form(grid(), held, num_draws=5)
    assert found.parameters["alpha"] == pytest.approx(0.2, rel=1e-6)
    assert found.certificate.bounds_hit == ("alpha",)
    wide = replace(form, upper=(200.0, 200.0, 10.0, 9.0, 9.0))
    steep = AdditiveLaw(E=1.7, A=math.exp(3.5 * 18.0), B=800.0, alpha=3.5, beta=0.3)
    frame = grid(steep)
    assert regression.fit_form(frame, wide, LEAST_SQUARES_OF_LOG).parameters["alpha"] == pytest.approx(3.5, rel=1e-3)
    assert regression.fit_form(frame, form).parameters["alpha"] <= 3.0


def test_a_form_with_parameters_held_or_bounded_is_named_and_found_again() -> None:
    form = forms.find("additive[alpha=0.34,beta=0.1:0.25]")
    assert form.coordinates == ("log A", "log B", "log E", "beta")
    found = regression.fit_form(grid(), form, LEAST_SQUARES_OF_LOG, num_draws=5)
    assert found.parameters["beta"] == pytest.approx(0.25, rel=1e-6)
    assert found.certificate.bounds_hit == ("beta",)
    assert forms.find(form.name) is form
    held = FORMS["additive"].within({"E": 1.7, "A": 400.0, "alpha": 0.34})
    assert regression.fit_form(grid(), held, LEAST_SQUARES_OF_LOG).parameters == pytest.approx(
        {"B": 800.0, "beta": 0.30}, rel=1e-6
    )
    for wrong, told in (("additive[alfa=1]", "did you mean `alpha`"), ("additive[alpha]", "write a parameter held")):
        with pytest.raises(RefusalError, match=told):
            forms.find(wrong)


def test_repetition_is_fitted_to_the_law_of_what_was_seen_once() -> None:
    """As Muennighoff et al. 2023 do: the five coefficients are held, and R and R_N are fitted."""
    once = {"E": 1.87, "A": 521.0, "B": 1488.0, "alpha": 0.35, "beta": 0.35}
    form = FORMS["data-constrained-both"]
    frame = grid().with_columns(unique_tokens=pl.min_horizontal("tokens", pl.lit(2e9)))
    inputs = np.log(frame.select(form.inputs).to_numpy().T)
    frame = frame.with_columns(loss=form.loss(form.theta(once | {"R": 15.4, "R_N": 5.3})[None], inputs)[0])
    found = regression.fit_form(frame, form.within(once), LEAST_SQUARES_OF_LOG)
    assert found.parameters == pytest.approx({"R": 15.4, "R_N": 5.3}, rel=1e-4)
    assert found.law.parameters_exponent == pytest.approx(0.5)


def test_a_mixture_of_named_columns_is_fitted_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALING_WORKSPACE", str(tmp_path / "workspace"))
    shares = np.random.default_rng(0).dirichlet([1.0, 1.0, 1.0], 40)
    noise = np.random.default_rng(1).normal(0, 1e-5, 40)
    loss = (2.0 + 1.5 * np.exp(shares @ np.array([-0.8, 0.3, -0.1]))) * np.exp(noise)
    table = pl.DataFrame({"parameters": 1e8, "tokens": 1e10, "loss": loss, "Web": shares[:, 0], "code": shares[:, 1]})
    table.write_csv(tmp_path / "mixtures.csv")
    asked = ["--columns", "web=Web", "--form", "mixture[web,code]", "--objective", "least-squares-of-log", "--json"]
    shown = CliRunner().invoke(app, ["fit", str(tmp_path / "mixtures.csv"), *asked])
    assert shown.exit_code == 0, shown.output
    (found,) = json.loads(shown.stdout)
    assert found["chosen"] == "mixture[web,code]"
    assert found["certificate"]["converged"]
    # Shares add up to one: the third's effect is in K.
    assert found["parameters"] == pytest.approx(
        {"E": 2.0, "K": 1.5 * math.exp(-0.1), "t_web": -0.7, "t_code": 0.4}, rel=0.02
    )
    for verb in (["report"], ["plot"]):
        drawn = CliRunner().invoke(app, [*verb, str(tmp_path / "mixtures.csv")])
        assert drawn.exit_code == 0, drawn.output
    said = CliRunner().invoke(app, ["predict", str(tmp_path / "mixtures.csv"), "--parameters", "1B", "--tokens", "1B"])
    assert said.exit_code == 2
    assert "is a law of web, code, not of N and D" in said.stderr


def test_all_columns_of_a_file_are_kept_for_what_follows(tmp_path: Path) -> None:
    loss = grid()["loss"]
    table = grid().with_columns(err_hellaswag=0.8 - 2.2 * (-0.7 * loss).exp(), Note=pl.lit("tuned"))
    for name in ("runs.csv", "runs.parquet", "runs.jsonl"):
        path = tmp_path / name
        getattr(table, {"csv": "write_csv", "parquet": "write_parquet", "jsonl": "write_ndjson"}[path.suffix[1:]])(path)
        frame = runs.load(str(path))
        assert frame["Note"].to_list() == ["tuned"] * 49
        link = downstream.fit_link(frame, "err_hellaswag")
        assert link.fit.parameters == pytest.approx({"epsilon": 0.8, "k": 2.2, "gamma": 0.7}, rel=1e-2)
    with pytest.raises(RefusalError, match="did you mean `parameters`"):
        runs.load(str(tmp_path / "runs.csv"), columns={"paramters": "N"})


def test_a_singular_step_ends_no_fit() -> None:
    """Two coordinates that say the same: every system is singular."""
    twice = replace(
        FORMS["power-C"],
        name="twice",
        coordinates=("log A", "alpha", "again"),
        lower=(-30.0, 1e-3, 0.0),
        upper=(80.0, 3.0, 0.0),
        evaluate=lambda theta, x: theta[:, 0] - theta[:, 1] * x[0] + 0 * theta[:, 2],
        structure=None,
    )
    frame = grid().with_columns(loss=20.0 * pl.col("flops") ** -0.05)
    assert regression.fit_form(frame, twice, num_draws=5).parameters["alpha"] == pytest.approx(0.05, rel=1e-6)


def test_weights_and_unique_tokens_of_a_file_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    grid().with_columns(unique_tokens=1e9, weight=2.0).write_csv(path)
    frame = runs.load(str(path))
    assert {"unique_tokens", "weight"} <= set(frame.columns)
    assert frame["weight"].to_list() == [2.0] * 49
    (plain,) = families.fit(frame.drop("weight"), num_starts=20, num_draws=5)
    (found,) = families.fit(frame, num_starts=20, num_draws=5)
    assert found.objective_value == pytest.approx(2 * plain.objective_value, rel=1e-3, abs=1e-15)


def test_scores_that_rise_from_chance_are_linked_by_a_sigmoid() -> None:
    loss = np.linspace(1.8, 4.5, 30)
    error = 0.1 + 0.65 / (1 + np.exp(-4.0 * (loss - 2.8)))
    found = downstream.fit_link(pl.DataFrame({"loss": loss, "error": error}), "error", link="sigmoid")
    np.testing.assert_allclose(
        found.predict(np.array([2.0, 2.8, 4.0])), 0.1 + 0.65 / (1 + np.exp(-4 * np.array([-0.8, 0.0, 1.2]))), rtol=1e-3
    )


def test_polynomials_take_sizes_that_are_nearly_equal_and_both_exponents_are_given() -> None:
    n, c = (axis.ravel() for axis in np.meshgrid(np.geomspace(5e7, 5e9, 9), np.geomspace(1e19, 1e21, 4)))
    n = np.concatenate([n, n * 1.01])
    c = np.concatenate([c, c])
    frame = pl.DataFrame({"parameters": n, "flops": c, "tokens": c / (6 * n), "loss": LAW.predict(n, c / (6 * n))})
    assert [len(profile.loss) for profile in isoflop.frontier(frame, "parabola").profiles] == [18] * 4
    assert [len(profile.loss) for profile in isoflop.frontier(frame, "akima").profiles] == [9] * 4
    found = isoflop.frontier(frame, "cubic")
    assert found.tokens_exponent == pytest.approx(1 - found.exponent, abs=1e-3)


def test_what_design_says_is_known_today_is_what_predict_says() -> None:
    frame = grid(noise=0.004).with_columns(seed=pl.lit(None, dtype=pl.Int64))
    fitted = regression.fit_form(frame, FORMS["additive"], num_draws=400)
    for target in ((7e9, 3e11), (3e10, 6e11)):
        center, low, high = fitted.predict(*target)
        found = design.design(fitted, target, 1e21)
        assert found.half_width == pytest.approx(float((high - low) / 2 / center), rel=0.1)
        assert found.proposals[0].half_width < found.half_width
