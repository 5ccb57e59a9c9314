"""Laws of curves against their definitions summed update by update, against published errors, and as a verb."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from analysis.curves import fit as fitting
from analysis.curves import read
from analysis.curves.curve import Curve, schedule
from analysis.curves.laws import ANNEALING, LAWS, MULTI_POWER, CurveLaw
from analysis.findings import RefusalError
from orchestrator.cli import app

Array = NDArray[np.float64]
FITTED = ("cosine_24000", "constant_24000", "wsdcon_9")
PUBLISHED = {"25M": (0.9988, 0.00376, 0.00465, 0.00110, 0.00409), "100M": (0.9983, 0.00435, 0.00592, 0.00142, 0.00583)}
"""R², then mean absolute, root mean square, mean relative and worst relative error: means over the six predicted curves
(Luo et al. 2025, as their repository has them now)."""
TRUTH = {
    MULTI_POWER.name: np.array([2.6, np.log(0.6), 0.45, np.log(400.0), np.log(2.0), 0.6, 0.65]),
    ANNEALING.name: np.array([2.6, np.log(0.6), 0.45, np.log(2.0), np.log(0.01)]),
}


def rates(kind: str, steps: int, warmup: int) -> Array:
    """The rate of every update, 1 to `steps`."""
    done = np.arange(1, steps + 1)
    after = (done - warmup) / (steps - warmup)
    shape = {"cosine": 0.1 + 0.9 * (1 + np.cos(np.pi * after)) / 2, "constant": np.ones(steps)}
    shape["wsd"] = np.interp(done, [0.7 * steps, steps], [1.0, 0.1])
    shape["jump"] = np.where(done < 0.6 * steps, 1.0, 0.3)
    return np.asarray(3e-4 * np.where(done < warmup, done / warmup, shape[kind]))


def by_definition(law: CurveLaw, theta: Array, rate: Array, step: int) -> float:
    """The loss after an update, every sum as the papers write it."""
    before = np.concatenate([[0.0], rate[:-1]])
    total, drops = rate[:step].sum(), (before - rate)[:step]
    loss = theta[0] + np.exp(theta[1]) * total ** -theta[2]
    if law is ANNEALING:
        kept = 1 - np.exp(theta[4])
        area = sum((drops[: i + 1] * kept ** np.arange(i, -1, -1)).sum() for i in range(step))
        return float(loss - np.exp(theta[3]) * area)
    since = np.array([rate[k:step].sum() for k in range(step)])
    gained = 1 - (1 + np.exp(theta[4]) * rate[:step] ** -theta[6] * since) ** -theta[5]
    return float(loss - np.exp(theta[3]) * (drops * gained).sum())


def curve_of(kind: str, steps: int, warmup: int, every: int, losses: Callable[[int], float]) -> Curve:
    rate = rates(kind, steps, warmup)
    at = np.arange(warmup, steps + 1, every)
    found = np.array([losses(int(step)) for step in at])
    return Curve(kind, at.astype(float), found, at.astype(float), rate[at - 1], float(warmup))


@pytest.mark.parametrize("law", LAWS.values(), ids=list(LAWS))
@pytest.mark.parametrize("kind", ["cosine", "constant", "wsd", "jump"])
def test_a_law_is_its_sums_over_updates(law: CurveLaw, kind: str) -> None:
    steps, warmup, theta = 2000, 100, TRUTH[law.name]
    curve = curve_of(kind, steps, warmup, 100, lambda _: 1.0)
    expected = [by_definition(law, theta, rates(kind, steps, warmup), int(step)) for step in curve.steps]
    # The path is cut into pieces of twelve updates, and its sums begin half an update later.
    np.testing.assert_allclose(law.evaluate(curve.path, theta)[0][1:], expected[1:], rtol=3e-3)


@pytest.mark.parametrize("law", LAWS.values(), ids=list(LAWS))
def test_slopes_are_those_of_central_differences(law: CurveLaw) -> None:
    path, theta = curve_of("cosine", 600, 50, 50, lambda _: 1.0).path, TRUTH[law.name]
    slopes = law.evaluate(path, theta)[1]
    for place in range(len(theta)):
        apart = np.zeros(len(theta))
        apart[place] = 1e-6
        numeric = (law.evaluate(path, theta + apart)[0] - law.evaluate(path, theta - apart)[0]) / 2e-6
        np.testing.assert_allclose(slopes[:, place], numeric, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("law", LAWS.values(), ids=list(LAWS))
def test_constants_are_found_again(law: CurveLaw) -> None:
    noise = np.random.default_rng(0)
    curves = []
    for kind, steps in (("cosine", 6000), ("constant", 6000), ("jump", 4000)):
        bare = curve_of(kind, steps, 500, 50, lambda _: 1.0)
        loss = law.evaluate(bare.path, TRUTH[law.name])[0] * np.exp(5e-4 * noise.standard_normal(len(bare.steps)))
        curves.append(Curve(kind, bare.steps, loss, bare.rate_steps, bare.rates, bare.warmup_steps))
    fitted = fitting.fit(curves, law)
    assert fitted.certificate.converged
    assert fitted.certificate.agreeing_starts > 0.3
    for name, (low, high) in fitted.intervals.items():
        assert low <= law.parameters(TRUTH[law.name])[name] <= high, name
    unseen = curve_of("wsd", 8000, 500, 50, lambda _: 1.0)
    truth = law.evaluate(unseen.path, TRUTH[law.name])[0]
    np.testing.assert_allclose(fitted.predict(unseen)[0], truth, rtol=2e-3)


def test_intervals_hold_laws_that_are_as_believed() -> None:
    random = np.random.default_rng(7)
    held = []
    for _ in range(8):
        believed = [random.normal(mean, width) for _, mean, width in MULTI_POWER.beliefs]
        others = [random.uniform(2.4, 3.2), np.log(random.uniform(0.4, 0.7)), random.uniform(0.4, 0.55)]
        theta = np.array([*others, np.log(random.uniform(300, 550)), *believed])
        curves = []
        for kind, steps in (("cosine", 6000), ("constant", 6000), ("jump", 4000)):
            bare = curve_of(kind, steps, 500, 50, lambda _: 1.0)
            loss = MULTI_POWER.evaluate(bare.path, theta)[0] * np.exp(5e-4 * random.standard_normal(len(bare.steps)))
            curves.append(Curve(kind, bare.steps, loss, bare.rate_steps, bare.rates, bare.warmup_steps))
        intervals, truth = fitting.fit(curves, MULTI_POWER).intervals, MULTI_POWER.parameters(theta)
        held += [low <= truth[name] <= high for name, (low, high) in intervals.items()]
    assert len(held) == 56
    assert np.mean(held) >= 0.9


@pytest.mark.parametrize("size", PUBLISHED)
def test_curves_that_were_not_fitted_are_predicted_as_published(
    size: str, reference_data: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = reference_data("scaling/multi-power-law") / size
    lines = ["run,step,lr,loss"]
    for path in sorted(folder.glob("*.csv")):
        lines += [f"{path.stem},{row}" for row in path.read_text().split("\n")[1:] if row]
    (tmp_path / "curves.csv").write_text("\n".join(lines))
    (group,) = read.from_table(tmp_path / "curves.csv", {"learning_rate": "lr"})
    fitted = fitting.fit([curve for curve in group.curves if curve.run in FITTED], MULTI_POWER)
    found = fitted.to_json(group.curves)["prediction"]
    r2, *errors = PUBLISHED[size]
    assert found["r2"] >= r2
    for name, error in zip(("mae", "rmse", "mean_relative_error", "worst_relative_error"), errors, strict=True):
        assert found[name] <= error, name
    assert found["inside_interval"] > 0.9


def table(path: Path, *more: str) -> Path:
    lines = ["run,step,learning_rate,loss"]
    for kind in ("cosine", "constant", "jump", "wsd"):
        bare = curve_of(kind, 3000, 300, 100, lambda _: 1.0)
        loss = MULTI_POWER.evaluate(bare.path, TRUTH[MULTI_POWER.name])[0]
        rows = zip(bare.steps, bare.rates, loss, strict=True)
        lines += [f"{kind},{step:g},{rate:.10g},{value:.10g}" for step, rate, value in rows]
    path.write_text("\n".join([*lines, *more]) + "\n")
    return path


def test_fit_and_predict_are_verbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALING_WORKSPACE", str(tmp_path / "workspace"))
    path = str(table(tmp_path / "curves.csv"))
    run = CliRunner().invoke(app, ["fit", path, "--curves", "--fit-runs", "cosine,constant,jump", "--json"])
    assert run.exit_code == 0, run.output
    document = json.loads(run.output)
    assert {one["run"]: one["fitted"] for one in document["runs"]}["wsd"] is False
    assert document["prediction"]["r2"] > 0.9999
    asked = ["predict", path, "--schedule", "wsd", "--steps", "3000", "--decay-share", "0.3", "--json"]
    (told,) = json.loads(CliRunner().invoke(app, asked).output)
    end = schedule("wsd", 3000, peak=3e-4, final=3e-5, warmup_steps=300.0, decay_share=0.3)
    assert told["loss"] == pytest.approx(MULTI_POWER.evaluate(end.path, TRUTH[MULTI_POWER.name])[0][-1], rel=1e-4)
    assert told["beyond"] == ""
    best = json.loads(
        CliRunner().invoke(app, ["predict", path, "--schedule", "wsd", "--steps", "3000", "--json"]).output
    )
    assert best[0]["loss"] <= told["loss"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("cosine,x,1e-4,3", "curves.csv:114: step: 'x' is no number"),
        ("cosine,5000,1e-4,-3", "curves.csv:114: loss is -3"),
        ("cosine,5000,,3", "curves.csv:114: learning_rate is empty"),
        (",5000,1e-4,3", "curves.csv:114: run is empty"),
        ("cosine,300,1e-4,3", "run cosine has step 300 twice"),
        ("other,300,0,3", "run other has a learning rate of 0 throughout"),
        ("other,300,1e-4,", "run other has no loss"),
    ],
)
def test_a_wrong_cell_is_named(line: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(RefusalError, match=said.replace(".", r"\.")):
        read.from_table(table(tmp_path / "curves.csv", line), {})


def test_wishes_that_exclude_each_other_are_refused(tmp_path: Path) -> None:
    path = str(table(tmp_path / "curves.csv"))
    for asked, said in (
        (["fit", path, "--fit-runs", "cosine", "--axis", "lr"], "--fit-runs only with --curves"),
        (["fit", path, "--at", "1M,2M"], "--at only with --hyperparameters"),
        (["fit", path, "--curves", "--hyperparameters"], "--curves and --hyperparameters exclude each other"),
        (["fit", path, "--hyperparameters", "--form", "auto"], "--hyperparameters does not go with --form"),
        (["fit", path, path, "--curves"], "--curves takes one source, and 2 are given"),
        (["predict", path, "--schedule", "wsd", "--unique-tokens", "3"], "--schedule does not go with --unique-tokens"),
        (["predict", path, "--steps", "9"], "--steps only with --schedule"),
        (["fit", path, "--curves", "--pooled"], "--curves does not go with --pooled"),
        (["fit", path, "--curves", "--form", "kaplan"], "laws of curves are multi-power, annealing"),
        (["fit", path, "--curves", "--fit-runs", "cosin"], "--fit-runs cosin: did you mean `cosine`?"),
        (["predict", path], "--parameters and --tokens, or --schedule"),
        (["predict", path, "--schedule", "linear", "--steps", "9"], "--schedule linear"),
    ):
        run = CliRunner().invoke(app, asked)
        assert run.exit_code == 2, run.output
        assert said in " ".join(run.output.split()), run.output
