"""Compute-optimal model size from IsoFLOP profiles and from the envelope of training curves, without a law L(N, D).

Approaches 1 and 2 of Hoffmann et al. 2022 (arXiv 2203.15556, section 3). How the minimum of a profile is found is a
choice that moves the exponent by up to 0.08 on the same runs, so that it is a value here, and `compare` tries them all.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import polars as pl
from scipy import special

from analysis.data.quality import usable
from analysis.findings import RefusalError
from analysis.fitting.bootstrap import TAILS
from analysis.laws.additive import Array

SAME_BUDGET = 0.05
"""Runs whose FLOPs follow each other within this relative gap belong to one budget. Rounding to significant figures
instead would merge budgets that differ."""
SPREAD = 1.25
"""Runs of one budget lie within this factor: where budgets run into each other, none of them has a profile."""
SAME_SIZE = 0.02
"""Sizes of one budget that follow each other within this gap count as one where losses are interpolated, which would
follow their noise. A polynomial averages it and takes every run."""
INTERPOLATED = ("akima", "argmin")
DENSITY = 25
"""Points of the interpolated grid per sampled point (Porian et al. 2024, arXiv 2406.19146)."""


@dataclass(frozen=True)
class IsoFlopProfile:
    """One budget: its sampled sizes and losses, and the minimum found, or why there is none."""

    flops: float
    parameters: Array
    loss: Array
    optimum: float | None
    """N* of this budget; None where the profile has no minimum inside it."""
    loss_at_optimum: float | None
    excluded: str | None
    tokens: float | None = None
    """D* of this budget, between those of its runs; None without a minimum or a column of tokens."""


@dataclass(frozen=True)
class Frontier:
    """N* = coefficient * C^exponent through the minima of several budgets, by least squares in logarithms."""

    method: str
    exponent: float
    interval: tuple[float, float]
    """Student's t interval at 0.95 of the regression's slope: the scatter among budgets, not the choice of method."""
    coefficient: float
    profiles: tuple[IsoFlopProfile, ...]
    tokens_exponent: float | None = None
    """b of D* ~ C^b: 1 - a under C = 6ND alone. None where the budgets' tokens are not known."""
    tokens_interval: tuple[float, float] | None = None


Minimum = Callable[[Array, Array], tuple[float, float]]
"""From log N, ascending, and loss to (log N*, loss*)."""


def polynomial(log_n: Array, loss: Array, degree: int) -> tuple[float, float]:
    """Lowest point of a polynomial in log N through all points."""
    center, width = log_n.mean(), np.ptp(log_n) / 2
    curve = np.polynomial.Polynomial.fit(log_n, loss, degree, domain=[center - width, center + width])
    turning = [float(root.real) for root in curve.deriv().roots() if abs(root.imag) < 1e-12]
    minima = [x for x in turning if curve.deriv(2)(x) > 0 and log_n[0] < x < log_n[-1]]
    best = min([*minima, float(log_n[0]), float(log_n[-1])] if degree > 2 or not minima else minima, key=curve)
    return best, float(curve(best))


def akima(log_n: Array, loss: Array) -> tuple[float, float]:
    """Lowest point of Akima's interpolation of log loss on a finer grid (Porian et al. 2024)."""
    from scipy import interpolate  # which takes longer to import than all the rest

    grid = np.linspace(log_n[0], log_n[-1], DENSITY * len(log_n))
    values = interpolate.Akima1DInterpolator(log_n, np.log(loss))(grid)
    lowest = int(np.argmin(values))
    return float(grid[lowest]), float(np.exp(values[lowest]))


def argmin(log_n: Array, loss: Array) -> tuple[float, float]:
    """The best sampled size. Biased: the grid's spacing stays in the answer; here to show by how much."""
    lowest = int(np.argmin(loss))
    return float(log_n[lowest]), float(loss[lowest])


METHODS: dict[str, Minimum] = {
    "parabola": partial(polynomial, degree=2),  # its vertex (Hoffmann et al. 2022, approach 2)
    "cubic": partial(polynomial, degree=3),  # which lets a profile be steeper on one side
    "akima": akima,
    "argmin": argmin,
}
LEAST_POINTS = {"parabola": 4, "cubic": 5, "akima": 4, "argmin": 3}


def frontier(frame: pl.DataFrame, method: str = "akima") -> Frontier:
    """N* against C through the minima of the budgets in `frame` (columns parameters, flops, loss).

    Rows with a reason in `excluded` are left out. A budget whose lowest point lies at an end of its sizes is left out
    with its reason. RefusalError where fewer than three budgets remain.
    """
    if method not in METHODS:
        raise ValueError(f"no method {method!r}; there are: {', '.join(METHODS)}")
    profiles = tuple(_profile(rows, method) for rows in budgets(usable(frame), merged=method in INTERPOLATED))
    used = [profile for profile in profiles if profile.optimum is not None]
    if len(used) < 3:
        said = [f"{profile.flops:.3g}: {profile.excluded}" for profile in profiles if profile.excluded]
        reasons = "; ".join(said[:3] + [f"and {len(said) - 3} more"] * (len(said) > 3))
        raise RefusalError(
            "too-few-budgets",
            f"{len(used)} compute budgets have a minimum inside their profile; at least 3 are needed"
            + (f" ({reasons})" if reasons else ""),
        )
    log_c = np.log([profile.flops for profile in used])
    log_n = np.log([profile.optimum for profile in used if profile.optimum is not None])
    found = _line(method, log_c, log_n, profiles)
    log_d = [np.log(profile.tokens) for profile in used if profile.tokens is not None]
    if len(log_d) < len(used):
        return found
    by_tokens = _line(method, log_c, np.array(log_d), profiles)
    return replace(found, tokens_exponent=by_tokens.exponent, tokens_interval=by_tokens.interval)


def compare(frame: pl.DataFrame) -> dict[str, Frontier | RefusalError]:
    """The frontier by every method: how far the choice alone moves the exponent."""
    found: dict[str, Frontier | RefusalError] = {}
    for method in METHODS:
        try:
            found[method] = frontier(frame, method)
        except RefusalError as refusal:
            found[method] = refusal
    return found


def envelope(curves: pl.DataFrame, *, bins: int = 100) -> Frontier:
    """Approach 1: of all training curves, the model with the lowest loss at each compute; then a line.

    `curves` has columns parameters, flops and loss, a row per validation, and `run_id` where runs share a size.
    Each curve is interpolated in log C onto `bins` values of compute, for else the curve that happens to have a point
    would win. Where the smallest or the largest model wins, the value is left out: what wins beyond was not trained.
    """
    sizes = np.sort(curves["parameters"].unique().to_numpy())
    if len(sizes) < 4:
        raise RefusalError("too-few-sizes", f"an envelope of {len(sizes)} model sizes has no inside; at least 4")
    log_c = np.log(curves["flops"].to_numpy())
    grid = np.linspace(log_c.min(), log_c.max(), bins)
    runs = curves.sort("flops").partition_by("run_id" if "run_id" in curves.columns else "parameters")
    loss = np.stack(
        [
            np.interp(grid, np.log(run["flops"].to_numpy()), run["loss"].to_numpy(), left=np.inf, right=np.inf)
            for run in runs
        ]
    )
    winner = np.array([run["parameters"][0] for run in runs])[loss.argmin(axis=0)]
    inside = (winner > sizes[0]) & (winner < sizes[-1]) & np.isfinite(loss.min(axis=0))
    if len(np.unique(winner[inside])) < 2:
        raise RefusalError("no-frontier", "the training curves do not cross: no compute has an inner optimum")
    return _line("envelope", grid[inside], np.log(winner[inside]), ())


def along_runs(curves: pl.DataFrame, runs: pl.DataFrame) -> pl.DataFrame:
    """Validations during training (run_id, tokens, loss) with N and the compute so far, as `envelope` takes them."""
    per_token = runs.select("run_id", "parameters", flops=pl.col("flops") / pl.col("tokens"))
    points = curves.filter(pl.col("tokens") > 0).join(per_token, on="run_id")
    return points.with_columns(flops=pl.col("tokens") * pl.col("flops"))


def budgets(frame: pl.DataFrame, *, merged: bool = True) -> list[pl.DataFrame]:
    """The rows of each compute budget, ascending in FLOPs, within a budget in parameters; best loss per size.

    Sizes within SAME_SIZE count as one where `merged`; else every row is kept.
    """
    ordered = frame.sort("flops")
    gap = (ordered["flops"] / ordered["flops"].shift(1)).fill_null(1.0) > 1 + SAME_BUDGET
    labelled = ordered.with_columns(gap.cum_sum().alias("budget"))
    parts = labelled.partition_by("budget", maintain_order=True)
    return [_best_per_size(rows) if merged else rows.sort("parameters") for rows in parts]


def _best_per_size(rows: pl.DataFrame) -> pl.DataFrame:
    gap = (pl.col("parameters") / pl.col("parameters").shift(1)).fill_null(1.0) > 1 + SAME_SIZE
    labelled = rows.sort("parameters").with_columns(gap.cum_sum().alias("size_group"))
    best = labelled.sort("loss").unique("size_group", keep="first", maintain_order=True)
    return best.drop("size_group").sort("parameters")


def _profile(rows: pl.DataFrame, method: str) -> IsoFlopProfile:
    n, loss = rows["parameters"].to_numpy(), rows["loss"].to_numpy()
    flops = float(np.exp(np.mean(np.log(rows["flops"].to_numpy()))))
    spread = float(np.max(rows["flops"].to_numpy()) / np.min(rows["flops"].to_numpy()))
    if spread > SPREAD:
        return IsoFlopProfile(flops, n, loss, None, None, f"FLOPs within a factor of {spread:.3g} are no one budget")
    needed, sizes = LEAST_POINTS[method], len(np.unique(n))
    if sizes < needed:
        return IsoFlopProfile(flops, n, loss, None, None, f"{sizes} sizes; {method} needs {needed}")
    log_n, lowest = METHODS[method](np.log(n), loss)
    margin = 1e-9
    if not np.log(n[0]) + margin < log_n < np.log(n[-1]) - margin:
        return IsoFlopProfile(flops, n, loss, None, None, "no minimum inside the sampled sizes")
    tokens = float(np.exp(np.interp(log_n, np.log(n), np.log(rows["tokens"])))) if "tokens" in rows.columns else None
    return IsoFlopProfile(flops, n, loss, float(np.exp(log_n)), lowest, None, tokens)


def _line(method: str, log_c: Array, log_n: Array, profiles: tuple[IsoFlopProfile, ...]) -> Frontier:
    (spread_c, together), (_, spread_n) = np.cov(log_c, log_n, bias=True)
    free, slope = max(len(log_c) - 2, 1), float(together / spread_c)
    error = math.sqrt(max(spread_n - slope * together, 0.0) / spread_c / free)
    half = float(special.stdtrit(free, TAILS[1]) * error)
    intercept = float(np.mean(log_n) - slope * np.mean(log_c))
    return Frontier(method, slope, (slope - half, slope + half), math.exp(intercept), profiles)
