"""Any form from the command line: fitted, saved, predicted, drawn and reported as the additive law is."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from analysis.fitting import families
from analysis.fitting.fit import JUDGEMENT, Fit
from analysis.laws.forms import FORMS, Form
from orchestrator.cli import app

Scaling = Callable[..., Any]
TRUTH = {
    "power-N": {"A": 20.0, "alpha": 0.08},
    "power-N-floor": {"E": 1.7, "A": 150.0, "alpha": 0.3},
    "power-D": {"A": 20.0, "alpha": 0.08},
    "power-D-floor": {"E": 1.7, "A": 150.0, "alpha": 0.3},
    "power-C": {"A": 20.0, "alpha": 0.05},
    "power-C-floor": {"E": 1.7, "A": 400.0, "alpha": 0.15},
    "additive": {"E": 1.7, "A": 330.0, "B": 490.0, "alpha": 0.34, "beta": 0.3},
    "coupled": {"E": 1.7, "A": 400.0, "B": 660.0, "alpha": 0.4, "beta": 0.38, "gamma": 0.7},
    "kaplan": {"Nc": 8.8e13, "Dc": 5.4e13, "alpha": 0.076, "beta": 0.103},
    "overtraining": {"E": 1.8, "A": 160.0, "B": 360.0, "eta": 0.27},
    "data-constrained": {"E": 1.7, "A": 330.0, "B": 490.0, "alpha": 0.34, "beta": 0.3, "R": 7.0},
    "data-constrained-both": {"E": 1.7, "A": 330.0, "B": 490.0, "alpha": 0.34, "beta": 0.3, "R": 7.0, "R_N": 5.0},
    "vocabulary": {"E": 1.7, "A": 330.0, "alpha": 0.34, "V": 8.0, "nu": 0.2, "B": 490.0, "beta": 0.3},
    "experts": {"d": 3.0, "a": 0.1, "b": 0.05, "c": 0.002},
    "granularity": {"E": 1.7, "A": 150.0, "alpha": 0.34, "B": 490.0, "beta": 0.3, "G0": 150.0, "gamma": 0.6},
    "farseer": {"s": 4.0, "q": -0.12, "S": 0.2, "B": 60.0, "b": -0.25, "Q": 4.0, "A": -0.02, "a": 0.15, "V": -0.9},
    "broken": {"E": 1.4, "A": 400.0, "alpha": 0.08, "C1": 6.4e17, "kappa": 0.1, "f": 0.8},
}


def runs(form: Form) -> pl.DataFrame:
    """49 runs whose losses are the form's but for a millionth of noise."""
    n, d = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e6, 1e10, 7), np.geomspace(1e8, 1e12, 7)))
    frame = pl.DataFrame({"parameters": n, "tokens": d, "flops": 6 * n * d, "unique_tokens": np.minimum(d, 3e9)})
    place = np.arange(49)
    frame = frame.with_columns(
        non_embedding=n,
        vocabulary_parameters=1e6 * 2.0 ** (place * 3 % 5),
        experts=2.0 ** (place * 2 % 7 + 1),
        granularity=2.0 ** (place * 5 % 6),
    )
    inputs = np.log(frame.select(form.inputs).to_numpy().T)
    noise = np.exp(np.random.default_rng(0).normal(0, 1e-6, frame.height))
    return frame.with_columns(loss=form.loss(form.theta(TRUTH[form.name])[None], inputs)[0] * noise)


@pytest.fixture
def scaling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scaling:
    """`scaling …` with few bootstrap draws; what it prints as JSON where `--json` is asked for, else the lines."""
    monkeypatch.setenv("SCALING_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.setattr(families, "fit", partial(families.fit, num_draws=12, num_starts=64))

    def run(*arguments: str, code: int = 0) -> Any:
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == code, result.output
        return json.loads(result.stdout) if "--json" in arguments and code == 0 else result.output

    return run


@pytest.mark.parametrize("name", [name for name in FORMS if name != "farseer"])
def test_every_form_is_recovered_from_runs_that_lie_on_it(name: str, scaling: Scaling, tmp_path: Path) -> None:
    runs(FORMS[name]).write_csv(tmp_path / "runs.csv")
    asked = ["--form", name, "--objective", "least-squares-of-log"]
    (found,) = scaling("fit", str(tmp_path / "runs.csv"), *asked, "--json")
    assert found["law"] == FORMS[name].formula
    assert found["objective"] == "least squares on log loss"
    assert found["certificate"]["converged"]
    # A millionth of noise; coefficients lie 1e8 to 1e12 from the data's centre, where their logarithms carry 28 times
    # the exponents' errors, and these, at 49 runs, several times the noise.
    assert found["parameters"] == pytest.approx(TRUTH[name], rel=3e-4)


def test_farseers_law_predicts_what_lies_on_it_and_splits_a_budget(scaling: Scaling, tmp_path: Path) -> None:
    """Its nine parameters trade off within any noise: what it predicts is compared, not they."""
    form, table = FORMS["farseer"], str(tmp_path / "runs.csv")
    runs(form).write_csv(table)
    (found,) = scaling("fit", table, "--form", "farseer", "--objective", "least-squares-of-log", "--json")
    assert (found["law"], found["chosen"], found["compute_optimal"]) == (form.formula, "farseer", None)
    (said,) = scaling("predict", table, "--parameters", "20B", "--tokens", "2T", "--json")
    theta = form.theta(TRUTH["farseer"])[None]
    assert said["loss"] == pytest.approx(float(form.loss(theta, form.log_inputs(2e10, 2e12))[0]), rel=1e-4)
    (split,) = scaling("allocate", table, "--flops", "1e22", "--json")["allocations"]
    n = np.geomspace(1e8, 1e12, 20001)
    best = n[np.argmin(form.loss(theta, form.log_inputs(n, 1e22 / (6 * n)))[0])]
    assert split["parameters"] == pytest.approx(best, rel=1e-2)


def test_what_follows_a_coupled_fit_is_said_of_the_coupled_law(scaling: Scaling, tmp_path: Path) -> None:
    form, table = FORMS["coupled"], str(tmp_path / "runs.csv")
    runs(form).write_csv(table)
    (fitted,) = scaling("fit", table, "--form", "coupled", "--objective", "huber", "--delta", "1e-2", "--json")
    assert fitted["objective"] == "Huber with delta 0.01 on log loss"
    assert (fitted["rules"]["form"], fitted["rules"]["objective"]) == ("coupled", fitted["objective"])
    assert fitted["certificate"].keys() >= {"agreeing_starts", "scaled_gradient", "condition_number", "converged_draws"}

    (saved,) = (tmp_path / "workspace" / "fits").glob("runs-*")
    written = (saved / "all" / "fit.json").stat().st_mtime_ns
    (said,) = scaling("predict", table, "--parameters", "7B", "--tokens", "300B", "--json")
    theta, at = form.theta(TRUTH["coupled"])[None], form.log_inputs(7e9, 3e11)
    assert said["loss"] == pytest.approx(float(form.loss(theta, at)[0]), rel=1e-5)
    assert said["interval"][0] <= said["loss"] * (1 + 1e-6)
    assert (saved / "all" / "fit.json").stat().st_mtime_ns == written

    # The best split of a budget under C = 6ND, against a search over sizes with the true law.
    (split,) = scaling("allocate", table, "--flops", "1e22", "--json")["allocations"]
    n = np.geomspace(1e8, 1e12, 20001)
    best = n[np.argmin(form.loss(theta, form.log_inputs(n, 1e22 / (6 * n)))[0])]
    assert split["parameters"] == pytest.approx(best, rel=2e-3)
    (designed,) = scaling("design", table, "--parameters", "7B", "--tokens", "300B", "--budget", "1e22", "--json")
    assert designed["proposals"]

    drawn = scaling("plot", table)
    for name in ("law", "sizes", "frontier", "residuals", "exponents"):
        assert (saved / f"{name}.png").exists(), drawn
    page = (saved / "report.html").read_text()
    assert form.formula in page
    data = json.loads(page.partition("<script>const DATA = ")[2].partition(";\n")[0])
    log_a, log_b, log_e, alpha, beta, gamma = data["families"][0]["law"]
    inner = np.exp(log_a - alpha * np.log(7e9)) + np.exp(log_b - beta * np.log(3e11))
    assert np.exp(log_e) + inner**gamma == pytest.approx(said["loss"], rel=1e-9)

    assert scaling("fit", table, "--json")[0]["law"] == FORMS["additive"].formula
    assert scaling("fit", table, "--json")[0]["rules"].keys() == {"applied", "switched_off", "ranges", "mixed"}


def test_a_law_of_compute_is_predicted_at_the_runs_own_cost_and_splits_nothing(
    scaling: Scaling, tmp_path: Path
) -> None:
    form, table = FORMS["power-C-floor"], str(tmp_path / "runs.csv")
    runs(form).with_columns(flops=pl.col("flops") * 1.5).write_csv(table)
    scaling("fit", table, "--form", form.name)
    (said,) = scaling("predict", table, "--parameters", "1B", "--tokens", "20B", "--json")
    expected = float(form.loss(form.theta(TRUTH[form.name])[None], form.log_inputs(1e9, 2e10))[0])
    assert said["loss"] == pytest.approx(expected, rel=1e-5)
    told = scaling("allocate", table, "--flops", "1e22", code=2)
    assert "power-C-floor, E + A/C^alpha, does not say how to split compute" in told
    assert "additive, coupled, kaplan, overtraining, data-constrained" in told
    assert "frontier: not drawn: power-C-floor" in scaling("plot", table)
    assert scaling("report", table).endswith("report.html\n")


def test_repeated_tokens_are_predicted_to_be_worth_less(scaling: Scaling, tmp_path: Path) -> None:
    form, table = FORMS["data-constrained"], str(tmp_path / "runs.csv")
    runs(form).write_csv(table)
    scaling("fit", table, "--form", form.name)
    asked = ("predict", table, "--parameters", "1B", "--tokens", "200B", "--json")
    (fresh,), (repeated,) = scaling(*asked), scaling(*asked, "--unique-tokens", "10B")
    theta = form.theta(TRUTH[form.name])[None]
    for said, unique in ((fresh, 2e11), (repeated, 1e10)):
        expected = float(form.loss(theta, form.log_inputs(1e9, 2e11, unique_tokens=unique))[0])
        assert said["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["--form", "couled"], "no form `couled`; did you mean `coupled`?"),
        (["--objective", "hubr"], "no objective `hubr`; did you mean `huber`?"),
        (["--objective", "least-squares", "--delta", "1"], "least-squares has no delta; huber has"),
        (["--delta", "0"], "delta 0: write a positive number, such as 1e-3"),
        (["--form", "data-constrained"], "data-constrained needs unique_tokens"),
    ],
)
def test_a_word_that_is_no_form_or_objective_is_answered_by_the_nearest(
    asked: list[str], told: str, scaling: Scaling, tmp_path: Path
) -> None:
    runs(FORMS["additive"]).drop("unique_tokens").write_csv(tmp_path / "runs.csv")
    assert told in scaling("fit", str(tmp_path / "runs.csv"), *asked, code=2)


def test_a_fit_that_an_earlier_version_saved_still_answers(scaling: Scaling, tmp_path: Path) -> None:
    folder = Path(__file__).parent / "saved_fit"
    saved = tmp_path / "workspace" / "fits" / "runs"
    shutil.copytree(folder / "llama", saved / "llama")
    written = (saved / "llama" / "fit.json").stat().st_mtime_ns
    (said,) = scaling("predict", str(folder / "runs.csv"), "--parameters", "7B", "--tokens", "300B", "--json")
    assert (said["loss"], *said["interval"]) == (2.0122594766001667, 2.0003788512175866, 2.0198513050931792)
    assert (saved / "llama" / "fit.json").stat().st_mtime_ns == written
    scaling("fit", str(folder / "runs.csv"), "--form", "additive", "--json")
    judged = json.loads((saved / "llama" / "fit.json").read_text())
    assert judged["judgement"] == JUDGEMENT
    assert judged["parameters"] == pytest.approx(json.loads((folder / "llama" / "fit.json").read_text())["parameters"])
    # What a new run does so far away was not asked when it was saved; its rows tell since.
    assert np.diff(said["new_run_interval"]) > np.diff(Fit.load(folder / "llama").predict_run(7e9, 3e11))
