"""IsoFLOP profiles against Porian et al.'s published exponents and against a synthetic law whose exponent is known."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from analysis.data import runs
from analysis.decisions import isoflop
from analysis.findings import RefusalError
from analysis.laws.additive import AdditiveLaw

CONVENTIONS = {
    # (hyper-parameters, warm-up, decay, counting of parameters): exponent of N*, Porian et al. 2024, RefinedWeb
    ("base", "long", "kaplan", "kaplan"): 0.835,
    ("base", "long", "kaplan", "standard"): 0.706,
    ("base", "short", "kaplan", "standard"): 0.602,
    ("base", "short", "chinchilla", "standard"): 0.571,
    ("tuned", "short", "const", "standard"): 0.497,
}


@pytest.fixture(scope="module")
def porian(reference_data: Callable[[str], Path]) -> pl.DataFrame:
    table = pl.read_csv(reference_data("scaling/porian/isoflop_points.csv"))
    return table.filter(pl.col("dataset") == "rw").rename({"n": "parameters", "t": "tokens"})


def of_convention(table: pl.DataFrame, convention: tuple[str, str, str, str]) -> pl.DataFrame:
    names = ("hparams", "warmup", "decay", "param_count")
    return table.filter(*(pl.col(name) == value for name, value in zip(names, convention, strict=True)))


@pytest.mark.parametrize("convention", CONVENTIONS, ids=" ".join)
def test_akima_profiles_give_the_published_exponents(
    porian: pl.DataFrame, convention: tuple[str, str, str, str]
) -> None:
    found = isoflop.frontier(of_convention(porian, convention), "akima")
    assert found.exponent == pytest.approx(CONVENTIONS[convention], abs=0.01)


@pytest.mark.parametrize(("warmup", "by_parabola", "by_akima"), [("long", 0.780, 0.701), ("short", 0.659, 0.604)])
def test_a_parabola_through_the_whole_profile_moves_the_exponent(
    porian: pl.DataFrame, warmup: str, by_parabola: float, by_akima: float
) -> None:
    rows = of_convention(porian, ("base", warmup, "kaplan", "standard"))
    assert isoflop.frontier(rows, "parabola").exponent == pytest.approx(by_parabola, abs=1e-3)
    assert isoflop.frontier(rows, "akima").exponent == pytest.approx(by_akima, abs=2e-3)


@pytest.fixture(scope="module")
def cs336(reference_data: Callable[[str], Path]) -> pl.DataFrame:
    table = reference_data("scaling/cs336/isoflops_curves.csv")
    return runs.load(str(table), columns={"flops": "compute_budget", "loss": "final_loss"})


def test_the_bias_of_each_method_without_any_noise_is_what_it_is(cs336: pl.DataFrame) -> None:
    # The law behind these points has the exponent 0.36 / (0.34 + 0.36) = 0.51429.
    assert isoflop.frontier(cs336, "parabola").exponent == pytest.approx(0.51458, abs=1e-5)
    assert isoflop.frontier(cs336, "argmin").exponent == pytest.approx(0.46868, abs=1e-5)


def test_budgets_that_share_their_leading_digit_stay_apart() -> None:
    law = AdditiveLaw(E=1.7, A=400.0, B=400.0, alpha=0.34, beta=0.28)
    n = np.geomspace(1e7, 1e10, 9)
    rows = [pl.DataFrame({"parameters": n, "flops": c, "loss": law.predict(n, c / (6 * n))}) for c in (1.1e19, 1.4e19)]
    assert [part.height for part in isoflop.budgets(pl.concat(rows))] == [9, 9]


def test_a_profile_without_an_inner_minimum_is_left_out_and_too_few_budgets_refused() -> None:
    law = AdditiveLaw(E=1.7, A=400.0, B=400.0, alpha=0.34, beta=0.28)
    n = np.geomspace(1e5, 1e6, 6)
    rows = [
        pl.DataFrame({"parameters": n, "flops": c, "loss": law.predict(n, c / (6 * n))}) for c in (1e21, 1e22, 1e23)
    ]
    with pytest.raises(RefusalError, match="no minimum inside the sampled sizes") as refusal:
        isoflop.frontier(pl.concat(rows))
    assert refusal.value.code == "too-few-budgets"


def test_the_envelope_of_training_curves_finds_the_laws_exponent() -> None:
    law = AdditiveLaw(E=1.7, A=400.0, B=400.0, alpha=0.34, beta=0.28)
    n, d = np.meshgrid(np.geomspace(1e7, 1e10, 40), np.geomspace(1e8, 1e12, 400))
    curves = pl.DataFrame({"parameters": n.ravel(), "flops": (6 * n * d).ravel(), "loss": law.predict(n, d).ravel()})
    # The winner's size is quantised to the grid of sizes, 0.177 in log N; 45 bins over the decades average it out.
    assert isoflop.envelope(curves).exponent == pytest.approx(law.parameters_exponent, abs=0.02)
