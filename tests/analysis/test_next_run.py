"""Which run to buy next: on pools whose law is known, and on public runs against the published method's numbers."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from analysis.decisions import next_run, pool
from analysis.findings import RefusalError
from analysis.laws.forms import FORMS
from orchestrator.cli import app

PUBLISHED = {"farseer": (0.60, 0.88, 0.93), "data_constrained": (0.73, 0.85, 0.86)}
"""R² at 1, 5 and 10 % of the pool's cost, Li et al. 2026, arXiv 2604.22753."""
SHARES = (0.01, 0.05, 0.1)


def table(count: int, low: float, high: float, seed: int) -> pl.DataFrame:
    """Runs of an additive law, read off with a scatter of 0.1 %."""
    random = np.random.default_rng(seed)
    n, d = np.exp(random.uniform(np.log(low), np.log(high), (2, count)))
    d = 100 * d
    loss = 1.7 + 400 * n**-0.34 + 2000 * d**-0.36
    columns = {
        "parameters": n,
        "tokens": d,
        "flops": 6 * n * d,
        "loss": loss * np.exp(1e-3 * random.standard_normal(count)),
    }
    return pl.DataFrame(columns)


POOL, TARGETS = table(150, 1e7, 1e9, 0), table(12, 3e9, 1e10, 1)


def test_a_simulation_spends_within_the_shares_and_buys_no_run_twice() -> None:
    found = next_run.simulate(POOL, TARGETS, (FORMS["additive"],), SHARES)
    cost = POOL["flops"].to_numpy()
    bought = [*found.start, *(one["bought"] for one in found.rounds)]
    assert len(set(bought)) == len(bought)
    assert set(found.start) == set(np.argsort(cost)[: len(found.start)].tolist())
    assert len(found.start) <= 12  # 2.5 for each of five parameters
    spent = (np.cumsum(cost[bought]) / cost.sum())[len(found.start) :]
    np.testing.assert_allclose([one["share"] for one in found.rounds], spent)
    assert spent.max() <= 0.1
    assert found.r2["0.1"] > 0.95
    again = next_run.simulate(POOL, TARGETS, (FORMS["additive"],), SHARES)
    assert again == found


def test_a_run_that_tells_the_modes_apart_is_worth_most() -> None:
    """Two laws that agree on small models and not on the target: only a large model decides between them."""
    form = FORMS["power-N"]
    small = pl.DataFrame({"parameters": [1e7, 1.1e7], "flops": [1.0, 1.0], "loss": [3.0, 2.99]})
    modes = next_run.learn(small, (form,)).modes
    apart = np.array([[np.log(3.0) + 0.05 * np.log(1e7), 0.05], [np.log(3.0) + 0.3 * np.log(1e7), 0.3]])
    knowledge = next_run.Knowledge(modes, ((form, apart),), 1e-3)
    candidates = pl.DataFrame({"parameters": [1.05e7, 1e8, 1e9]})
    worth = knowledge.worth(candidates, pl.DataFrame({"parameters": [1e10]}))
    assert worth[0] < worth[1] < worth[2]
    assert worth[2] == pytest.approx(1, abs=1e-4)  # whichever it is, is known after it


def test_runs_that_are_given_leave_the_covariance_that_measuring_them_together_would() -> None:
    known = next_run.learn(POOL.head(20), (FORMS["additive"],))
    given, rest = POOL[[30, 40, 50]], pl.concat([POOL[[60, 70]], TARGETS])
    drawn = known.losses(pl.concat([given, rest]))
    covariance = np.cov(drawn.T, bias=True)
    measured = covariance[:3, :3] + known.scatter**2 * np.eye(3)
    expected = covariance[3:, 3:] - covariance[3:, :3] @ np.linalg.solve(measured, covariance[:3, 3:])
    (apart,) = known._apart(given, rest)
    np.testing.assert_allclose(apart.T @ apart / len(apart), expected, rtol=1e-6, atol=1e-9 * expected.max())
    left = np.trace(expected[2:, 2:]) / np.trace(covariance[5:, 5:])
    assert known.left(TARGETS, given) == pytest.approx(left)


def test_a_run_is_bought_where_it_tells_more_than_repeats_for_as_much_would() -> None:
    few, candidates, form = POOL.sort("flops").head(14), POOL.sort("flops")[[20, 30, 40]], (FORMS["additive"],)

    def pick(cost: float, spent: float | None) -> pool.Pick | str:
        costs = np.array([1e9, cost, 1e9])
        return pool.pick(few, few.head(0), candidates, [(5e9, 5e11)], costs, 1e8, form, 7, 0, spent)

    free = pick(1.0, None)
    assert isinstance(free, pool.Pick)
    assert free.row == 1  # the others are beyond what is left
    assert free.worth is not None
    assert pick(1.0, 1.01 / free.worth - 1) == free  # repeats would take 1 / (spent + 1)
    assert pick(1.0, 0.99 / free.worth - 1) == "worth"
    assert pick(1e7, None) == free


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "form", "columns"),
    [("farseer", "farseer", "parameters=N,tokens=D"), ("data_constrained", "data-constrained", "parameters=params")],
)
def test_public_runs_are_predicted_better_than_by_the_published_method(
    name: str, form: str, columns: str, reference_data: Callable[[str], Path]
) -> None:
    folder = reference_data(f"scaling/scalebench/{name}")
    asked = ["--simulate", "--targets", str(folder / "test.parquet"), "--form", form, "--columns", columns, "--json"]
    run = CliRunner().invoke(app, ["design", str(folder / "train.parquet"), *asked])
    assert run.exit_code == 0, run.output
    found = json.loads(run.output)
    for share, published in zip(SHARES, PUBLISHED[name], strict=True):
        assert found["r2"][f"{share:g}"] >= published
    assert all(one["share"] <= 0.1 for one in found["rounds"])


def test_what_cannot_be_simulated_is_refused(tmp_path: Path) -> None:
    POOL.write_csv(tmp_path / "pool.csv")
    TARGETS.write_csv(tmp_path / "targets.csv")
    with pytest.raises(RefusalError, match="at least 2 are needed"):
        next_run.simulate(POOL, TARGETS.head(1), (FORMS["additive"],), SHARES)
    pool, targets = str(tmp_path / "pool.csv"), str(tmp_path / "targets.csv")
    for asked, said in (
        ([pool, "--simulate"], "--simulate needs --targets"),
        ([pool, "--simulate", "--targets", targets, "--shares", "0.1,2"], "--shares 2"),
        ([pool, "--simulate", "--targets", targets, "--shares", "a"], "--shares a"),
        ([pool, "--simulate", "--targets", targets, "--form", "data-constrained"], "no column for unique_tokens"),
        ([pool, "--targets", targets], "--targets only with --simulate"),
        ([pool], "--parameters, --tokens and --budget"),
    ):
        run = CliRunner().invoke(app, ["design", *asked])
        assert run.exit_code == 2, run.output
        assert said in " ".join(run.output.split()), run.output
