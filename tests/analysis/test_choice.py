"""The form is chosen and doubted: AICc and rollout together, warnings with codes, intervals for a new run."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from analysis.data import quality, runs
from analysis.data.columns import SCHEMA
from analysis.fitting import choice, doubts, families
from analysis.fitting.fit import Fit
from analysis.laws.additive import Array
from analysis.laws.forms import FORMS
from orchestrator.cli import app

TRUTH = {"E": 1.7, "A": 400.0, "B": 2000.0, "alpha": 0.34, "beta": 0.36}
FORM = FORMS["coupled"]


def theta(gamma: float) -> Array:
    return FORM.theta(TRUTH | {"gamma": gamma})[None]


def grid(sizes: int = 6, budgets: int = 6) -> tuple[Array, Array]:
    n, d = np.meshgrid(np.geomspace(2e7, 2e9, sizes), np.geomspace(1e9, 4e10, budgets))
    return n.ravel(), d.ravel()


def table(n: Array, d: Array, errors: Array, gamma: float = 1.0) -> pl.DataFrame:
    loss = FORM.loss(theta(gamma), FORM.log_inputs(n, d))[0] * np.exp(errors)
    found = pl.DataFrame({"parameters": n, "tokens": d, "flops": 6 * n * d, "loss": loss})
    found = found.with_columns(run_id=pl.format("run-{}", pl.int_range(pl.len())), family=pl.lit("x"))
    absent = [pl.lit(None, dtype=kind).alias(name) for name, kind in SCHEMA.items() if name not in found.columns]
    return quality.judge(found.with_columns(absent))


def errors(count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(0, 0.003, count)


def codes(fitted: Fit) -> set[str]:
    return {warning.code for warning in fitted.warnings}


def test_the_additive_law_stays_where_nothing_speaks_clearly_for_another() -> None:
    n, d = grid()
    for seed in range(4):
        (found,) = choice.fit(table(n, d, errors(n.size, seed)))
        assert found.form.name == "additive"
        assert [one.form.name for one in found.others] == ["coupled", "kaplan"]
        assert not codes(found) & {"collinear", "outlier", "noise-depends-on-compute", "rollout-outside"}


def test_a_coupled_law_is_noticed_and_its_predictions_are_held() -> None:
    n, d = grid(12, 12)
    (found,) = choice.fit(table(n, d, errors(n.size), gamma=0.65))
    truth = float(FORM.loss(theta(0.65), FORM.log_inputs(2e10, 4e11))[0])
    _, low, high = found.predict(2e10, 4e11)
    assert found.form.name == "coupled" or codes(found) & {"rollout-outside", "forms-disagree"}
    assert low < truth < high
    additive = next(one for one in (found, *found.others) if one.form.name == "additive")
    assert additive.information > found.information + 6 or found is additive


def test_a_new_run_is_less_certain_than_the_law() -> None:
    n, d = grid()
    (found,) = choice.fit(table(n, d, errors(n.size)), form=FORMS["additive"])
    center, low, high = found.predict(2e9, 4e10)
    least, most = found.predict_run(2e9, 4e10)
    assert least < low < center < high < most
    # The law is known within the runs: what is left is the noise of one run, 0.3 %.
    assert (most - least) / center == pytest.approx(2 * 1.96 * 0.003, rel=0.5)


def test_new_runs_at_trained_points_lie_inside_as_often_as_said() -> None:
    n, d = grid()
    held = []
    for seed in range(8):
        (found,) = choice.fit(table(n, d, errors(n.size, seed)), form=FORMS["additive"])
        again = table(n, d, errors(n.size, 100 + seed))["loss"].to_numpy()
        low, high = found.predict_run(n, d)
        held.append(np.mean((again > low) & (again < high)))
    # 288 new runs: three standard errors about 95 %, and two points for residuals that are few.
    assert 0.89 < np.mean(held) < 0.99


def test_the_interval_is_widened_as_the_dear_runs_would_have_needed() -> None:
    n, d = grid(12, 12)
    (found,) = choice.fit(table(n, d, errors(n.size), gamma=0.5), form=FORMS["additive"])
    assert "rollout-outside" in codes(found)
    assert found.rollout is not None
    assert found.rollout.widening > 1
    center, low, high = found.predict(2e10, 4e11)
    _, inner, outer = replace(found, rollout=None).predict(2e10, 4e11)
    widening = found.rollout.widening
    assert np.log(high / center) == pytest.approx(widening * np.log(outer / center), rel=1e-9)
    assert np.log(low / center) == pytest.approx(widening * np.log(inner / center), rel=1e-9)


def test_sizes_and_tokens_that_go_together_are_said_to() -> None:
    n = np.geomspace(2e7, 2e9, 24)
    for scatter in (0.0, 0.1):
        d = 20 * n * np.exp(np.random.default_rng(0).normal(0, scatter, 24))
        assert "collinear" in codes(choice.fit(table(n, d, errors(24)), form=FORMS["additive"])[0])


@pytest.mark.parametrize("family", ["alone", "with a trunk of its own"])
def test_a_form_that_bends_otherwise_than_the_runs_is_said_to(family: str) -> None:
    n, d = grid(12, 12)
    random = np.random.default_rng(0)
    shared = random.normal(0, 0.004, 12).repeat(12) if family != "alone" else np.zeros(144)
    for bend, told in ((0.0, False), (0.003, True)):
        frame = table(n, d, errors(n.size) / 3 + shared + bend * np.log(n / 2e8) * np.log(d / 6e9))
        if family != "alone":
            frame = frame.with_columns(cluster=pl.lit("trunk-") + (pl.int_range(pl.len()) // 12).cast(pl.String))
        (found,) = choice.fit(frame, form=FORMS["additive"], num_starts=16, num_draws=20)
        assert ("lack-of-fit" in codes(found)) == (told and family == "alone")


def test_runs_of_two_sizes_do_not_determine_the_law() -> None:
    n, d = grid(2, 18)
    (found,) = choice.fit(table(n, d, errors(n.size)), form=FORMS["additive"], num_starts=16, num_draws=20)
    assert "not-determined" in codes(found)


def test_one_run_that_carries_the_intervals_is_named() -> None:
    n, d = grid()
    off = errors(n.size)
    off[20] += 0.05
    (found,) = choice.fit(table(n, d, off), form=FORMS["additive"])
    (told,) = [warning.message for warning in found.warnings if warning.code == "outlier"]
    assert "run run-20 lies +5" in told


def test_noise_that_grows_with_compute_is_told_with_the_weight_that_accounts_for_it() -> None:
    n, d = grid(12, 12)
    scale = (n * d / (2e7 * 1e9)) ** 0.4
    (found,) = choice.fit(table(n, d, 0.3 * errors(n.size) * scale), form=FORMS["additive"])
    (told,) = [warning.message for warning in found.warnings if warning.code == "noise-depends-on-compute"]
    assert "grows as C^0." in told
    assert "weight of C^-0." in told
    # 144 residuals tell the exponent to about 0.03: three standard errors.
    assert found.noise_exponent == pytest.approx(0.4, abs=0.1)
    cheap, dear = (np.diff(found.predict_run(*at))[0] for at in ((2e7, 1e9), (2e9, 4e10)))
    assert dear > 5 * cheap


def test_noise_that_does_not_depend_on_compute_weighs_nothing() -> None:
    n, d = grid()
    found = [
        choice.fit(table(n, d, errors(n.size, seed)), form=FORMS["additive"], num_draws=20)[0] for seed in range(8)
    ]
    assert [one.noise_exponent for one in found] == [0.0] * 8


def test_the_largest_model_at_the_edge_of_its_tuned_rate_is_said_to_be() -> None:
    n, d = grid()
    (found,) = choice.fit(table(n, d, errors(n.size)), form=FORMS["additive"])
    largest = found.used.sort("parameters")["run_id"].to_list()
    assert "rate-at-edge" in codes(doubts.at_edge(found, {largest[-1]}))
    assert "rate-at-edge" not in codes(doubts.at_edge(found, {largest[0]}))


def test_a_saved_choice_is_read_as_it_was(tmp_path: Path) -> None:
    n, d = grid(12, 12)
    (found,) = choice.fit(table(n, d, errors(n.size) * (n * d / 2e16) ** 0.3), num_draws=50, num_starts=16)
    assert found.noise_exponent > 0
    found.save(tmp_path)
    again = Fit.load(tmp_path)
    assert again.weighed() == found.weighed()
    np.testing.assert_array_equal(again.predict(2e10, 4e11), found.predict(2e10, 4e11))
    np.testing.assert_array_equal(again.predict_run(2e10, 4e11), found.predict_run(2e10, 4e11))


def test_the_command_line_weighs_forms_and_what_follows_takes_the_chosen_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCALING_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.setattr(families, "fit", partial(families.fit, num_draws=40, num_starts=40))
    n, d = grid(12, 12)
    file = str(tmp_path / "runs.csv")
    table(n, d, errors(n.size), gamma=0.4).select("parameters", "tokens", "flops", "loss").write_csv(file)

    def scaling(*arguments: str) -> str:
        shown = CliRunner().invoke(app, arguments)
        assert shown.exit_code == 0, shown.output
        return shown.stdout

    (document,) = json.loads(scaling("fit", file, "--json"))
    assert document["law"] == FORMS["additive"].formula
    assert document["parameters"].keys() == {"E", "A", "B", "alpha", "beta"}
    assert [one["form"] for one in document["forms"]] == ["additive", "coupled", "kaplan"]
    assert document["chosen"] == "coupled"
    assert [one["chosen"] for one in document["forms"]] == [False, True, False]
    assert all(one["rollout"].keys() == {"runs", "error", "outside", "widening"} for one in document["forms"])
    assert document["forms"][0]["parameters"] == document["parameters"]

    shown = scaling("fit", file)
    assert FORMS["coupled"].formula in shown.replace("\n", " ")
    assert "coupled (chosen)" in shown
    (said,) = json.loads(scaling("predict", file, "--parameters", "2B", "--tokens", "40B", "--json"))
    assert said["form"] == "coupled"
    assert said["new_run_interval"][0] < said["interval"][0] < said["interval"][1] < said["new_run_interval"][1]
    assert said["extrapolation"] == pytest.approx({"parameters": 1.0, "tokens": 1.0, "flops": 1.0})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "columns", "least", "inside"),
    [
        ("farseer", {"parameters": "N", "tokens": "D"}, 0.92, 5),
        ("data_constrained", {"parameters": "params"}, 0.97, 19),
    ],
)
def test_dear_public_runs_are_predicted_from_cheap_ones(
    name: str, columns: dict[str, str], least: float, inside: int, reference_data: Callable[[str], Path]
) -> None:
    folder = reference_data(f"scaling/scalebench/{name}/train.parquet").parent
    (found,) = choice.fit(runs.load(str(folder / "train.parquet"), columns=columns))
    target = runs.load(str(folder / "test.parquet"), columns=columns)
    n, d, loss = (target[column].to_numpy() for column in ("parameters", "tokens", "loss"))
    low, high = found.predict_run(n, d)
    residual = loss - found.predict(n, d)[0]
    assert 1 - (residual**2).sum() / ((loss - loss.mean()) ** 2).sum() >= least
    assert ((loss > low) & (loss < high)).sum() >= inside
