"""Laws of the best learning rate: found again where they are known, edges told, and as a verb."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from analysis.decisions import hyperparameters
from analysis.findings import RefusalError
from orchestrator.cli import app
from xlstm.run.rates.law import RateLaws

SIZES, BUDGETS = (1e7, 4e7, 1.6e8), (1e9, 4e9, 1.6e10)
GRID = [(n, d) for n in SIZES for d in BUDGETS]
K, P, Q = 2.0, -0.4, 0.1


def truth(n: float, d: float) -> float:
    return float(K * n**P * d**Q)


def ladder(
    scatter: float = 1e-4,
    factors: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0),
    points: Sequence[tuple[float, float]] = GRID,
    shift: float = 0.0,
    seed: int = 0,
) -> pl.DataFrame:
    """Losses that are a parabola in the log of the rate, on rates that were chosen knowing nothing of the best, which
    lies off the law by a factor of its own, of deviation `shift` in logarithms.
    """
    random, rows = np.random.default_rng(seed), []
    for n, d in points:
        best = truth(n, d) * np.exp(shift * random.standard_normal()) if shift else truth(n, d)
        for factor in factors:
            rate = 2.0 ** round(np.log2(truth(n, d))) * factor
            loss = (1.7 + 400 / n**0.34 + 2000 / d**0.36) * np.exp(0.01 * np.log(rate / best) ** 2)
            rows.append((n, d, 6 * n * d, rate, loss * np.exp(scatter * random.standard_normal())))
    frame = pl.DataFrame(rows, schema=["parameters", "tokens", "flops", "learning_rate", "loss"], orient="row")
    return frame.with_columns(pl.lit("one").alias("family"), pl.lit(None, pl.String).alias("excluded"))


def test_a_known_law_is_found_again() -> None:
    (law,) = hyperparameters.fit(ladder(), "learning_rate")
    for name, value in (("K", K), ("N", P), ("D", Q)):
        low, high = law.intervals[name]
        assert low <= value <= high
    assert law.exponents["N"] == pytest.approx(P, abs=0.03)
    best, low, high = law.predict(6.4e8, 3e10)
    assert low <= truth(6.4e8, 3e10) <= high
    assert best == pytest.approx(truth(6.4e8, 3e10), rel=0.05)
    assert not any(cell.at_edge for cell in law.cells)
    for cell in law.cells:
        assert cell.off_by_two == pytest.approx(np.expm1(0.01 * np.log(2) ** 2), rel=0.2)


def test_a_cell_whose_best_is_the_last_that_was_tried_takes_no_part() -> None:
    frame = ladder(factors=(0.0625, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0))
    small = pl.col("parameters") == SIZES[0]
    low = frame.filter(~(small & (pl.col("learning_rate") > truth(SIZES[0], 1e9) / 1.9)))
    (law,) = hyperparameters.fit(low, "learning_rate")
    edges = [cell for cell in law.cells if cell.at_edge]
    assert edges
    assert all(cell.interval is None and cell.off_by_two is None for cell in edges)
    assert law.predict(SIZES[1], BUDGETS[1])[0] == pytest.approx(truth(SIZES[1], BUDGETS[1]), rel=0.05)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    held = 0
    for seed in range(60):
        noisy = ladder(0.0).with_columns(
            pl.col("loss") * np.exp(1e-3 * np.random.default_rng(seed).standard_normal(45))
        )
        (law,) = hyperparameters.fit(noisy, "learning_rate")
        _, low, high = law.predict(6.4e8, 3e10)
        held += low <= truth(6.4e8, 3e10) <= high
    assert held >= 51  # 57 of 60 are expected; fewer than 51 have a chance below 1 %


def best_of_five(frame: pl.DataFrame) -> float:
    """Where the parabola through the losses of one cell is lowest, by numpy's own polynomial."""
    bend, slope, _ = np.polyfit(np.log(frame["learning_rate"]), np.log(frame["loss"]), 2)
    return float(np.exp(-slope / (2 * bend)))


@pytest.mark.parametrize(("scatter", "shift"), [(1e-3, 0.0), (1e-3, 0.1), (3e-3, 0.1)])
def test_the_interval_of_a_new_cell_holds_what_a_search_finds_there(scatter: float, shift: float) -> None:
    """Beyond the cells that were fitted, the new one searched as they were and as far off the law as they are."""
    at, of_cell, of_law = (6.4e8, 3e10), 0, 0
    for seed in range(100):
        (law,) = hyperparameters.fit(ladder(scatter, shift=shift, seed=seed), "learning_rate")
        best = best_of_five(ladder(scatter, points=[at], shift=shift, seed=1000 + seed))
        low, high = law.predict_cell(*at)
        of_cell += low <= best <= high
        _, low, high = law.predict(*at)
        of_law += low <= best <= high
    assert of_cell >= 89  # 95 of 100 are expected; fewer than 89 have a chance below 1 %
    assert of_cell > of_law


def test_too_few_cells_are_refused() -> None:
    with pytest.raises(RefusalError, match="no size and budget has three values"):
        hyperparameters.fit(ladder(factors=(1.0, 2.0)), "learning_rate")


def test_it_is_a_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALING_WORKSPACE", str(tmp_path / "workspace"))
    ladder().drop("family", "excluded").rename({"learning_rate": "lr"}).write_csv(tmp_path / "rates.csv")
    asked = ["fit", str(tmp_path / "rates.csv"), "--hyperparameters", "--columns", "learning_rate=lr"]
    run = CliRunner().invoke(app, [*asked, "--at", "640M,30B", "--json"])
    assert run.exit_code == 0, run.output
    (document,) = json.loads(run.output)
    (predicted,) = document["predictions"]
    assert predicted["best"] == pytest.approx(truth(6.4e8, 3e10), rel=0.05)
    assert predicted["new_cell_interval"][0] < predicted["low"] < predicted["high"] < predicted["new_cell_interval"][1]
    assert len(document["cells"]) == 9
    assert document["published"]["at_cells"][0] == pytest.approx(1.79 * 1e7**-0.713 * 1e9**0.307)
    (kept,) = (tmp_path / "workspace" / "fits").glob("rates-*/best-learning_rate.json")
    (law,) = RateLaws.model_validate_json(kept.read_text()).laws
    assert list(law.at(6.4e8, 3e10)) == [predicted[name] for name in ("best", "low", "high")]
    low, high = predicted["new_cell_interval"]
    printed = " ".join(CliRunner().invoke(app, [*asked, "--at", "640M,30B"]).output.split())
    assert f"a new cell's [{low:.4g}, {high:.4g}] at N = 6.4e+08" in printed
    for wrong, said in ((["--at", "640M"], "write N,D"), (["--axis", "momentum"], "no column for momentum")):
        run = CliRunner().invoke(app, [*asked, *wrong])
        assert run.exit_code == 2
        assert said in " ".join(run.output.split())
