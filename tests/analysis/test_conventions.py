"""Chinchilla's three approaches under each convention, against laws whose exponent is known in closed form."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer import Typer
from typer.testing import CliRunner

from analysis.data import quality
from analysis.data.columns import SCHEMA
from analysis.decisions import conventions
from analysis.laws.additive import AdditiveLaw

LAW = AdditiveLaw(E=1.7, A=400.0, B=800.0, alpha=0.34, beta=0.30)
EMBEDDING = 3.0e6


@pytest.fixture(scope="module")
def known() -> tuple[pl.DataFrame, pl.DataFrame]:
    """Noise-free IsoFLOP runs of a law in total parameters, and training curves that follow the same law."""
    budgets, n = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e18, 1e21, 5), np.geomspace(3e7, 1e10, 13)))
    d = budgets / (6 * n)
    frame = pl.DataFrame({"parameters": n, "tokens": d, "flops": budgets, "loss": LAW.predict(n, d)})
    frame = frame.with_columns(
        run_id=pl.format("r{}", pl.int_range(pl.len())),
        family=pl.lit("x"),
        non_embedding=pl.col("parameters") - EMBEDDING,
    )
    absent = [pl.lit(None, dtype=kind).alias(name) for name, kind in SCHEMA.items() if name not in frame.columns]
    frame = quality.judge(frame.with_columns(absent))
    shares = np.linspace(0.02, 1, 50)
    curves = pl.concat(
        pl.DataFrame({"run_id": [run] * 50, "tokens": shares * d, "loss": LAW.predict(n, shares * d)})
        for run, n, d in frame.select("run_id", "parameters", "tokens").iter_rows()
    )
    return frame, curves


@pytest.fixture(scope="module")
def found(known: tuple[pl.DataFrame, pl.DataFrame]) -> dict[tuple[str, str], conventions.Answer]:
    """Every approach's answer by convention of N."""
    return {(one.approach, one.parameters): one for one in conventions.compare(*known)}


def test_on_runs_without_noise_each_approach_finds_the_laws_exponent(
    found: dict[tuple[str, str], conventions.Answer],
) -> None:
    a = LAW.parameters_exponent
    assert found["3 parametric", "total"].exponent == pytest.approx(a, abs=1e-4)
    # Akima is biased by its grid, an envelope by its few sizes.
    assert found["2 akima", "total"].exponent == pytest.approx(a, abs=0.01)
    assert found["1 envelope", "total"].exponent == pytest.approx(a, abs=0.05)
    assert {one.flops for one in found.values()} == {"6ND"}
    assert not any(parameters == "non_embedding_with_head" for _, parameters in found)


def test_leaving_embeddings_out_steepens_the_exponent(found: dict[tuple[str, str], conventions.Answer]) -> None:
    """log(N - c) is steeper in log N than log N itself (Pearce & Song 2024), and 6(N - c)D smaller than 6ND."""
    for approach in ("1 envelope", "3 parametric"):
        total, without = (found[approach, counted].exponent for counted in ("total", "non_embedding"))
        assert total is not None
        assert without is not None
        assert without > total


def test_a_dearer_head_changes_exact_counts_alone(known: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    frame, curves = known
    exact = frame.with_columns(flops=6 * (pl.col("parameters") + 4e4 * pl.col("parameters").sqrt()) * pl.col("tokens"))
    found = {(one.approach, one.flops): one for one in conventions.compare(exact, curves) if one.parameters == "total"}
    a = LAW.parameters_exponent
    assert found["3 parametric", "6ND"].exponent == pytest.approx(a, abs=1e-4)
    # The lower the model, the larger the square root's share: compute buys size faster.
    assert (found["3 parametric", "exact"].exponent or 0) > a + 0.01


def test_what_an_approach_cannot_answer_says_why(known: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    frame, curves = known
    found = conventions.compare(frame, curves.clear())
    assert {one.refusal[:14] for one in found if one.approach == "1 envelope"} == {"an envelope of"}
    assert all(one.exponent is None for one in found if one.refusal)


def test_the_command_line_shows_all_of_them(
    reference_data: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCALING_WORKSPACE", str(tmp_path))
    table = str(reference_data("scaling/cs336/isoflops_curves.csv"))
    given = ["fit", table, "--columns", "flops=compute_budget,loss=final_loss", "--conventions"]
    shown = CliRunner().invoke(app(), [*given, "--json"])
    assert shown.exit_code == 0, shown.output
    found = {one["approach"]: one["exponent"] for one in json.loads(shown.stdout)}
    assert found["3 parametric"] == pytest.approx(0.5142857, abs=1e-4)
    assert found["2 parabola"] == pytest.approx(0.51458, abs=1e-4)
    shown = CliRunner().invoke(app(), given)
    assert shown.exit_code == 0, shown.output
    assert "3 parametric" in shown.stdout
    assert "1 envelope" in shown.stdout


def app() -> Typer:
    from orchestrator.cli import app

    return app
