"""Bootstrap resamples of runs: what else the same experiment might have measured.

Runs of one cluster (a shared trunk) have errors in common: they are drawn together, or given one sign together.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from analysis.fitting.linear import orthonormal
from analysis.laws.additive import Array

LEVEL = 0.95
TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
"""Quantiles between which an interval at LEVEL lies."""
UNBOUNDED = 1e3
"""Times the largest loss that was fitted above which an upper bound of a loss is none."""
CASES_FROM = 40
"""Clusters from which resampling whole clusters is safe; with fewer, a resample may not determine five parameters."""
SMALLEST_SHARE = 0.02
"""Least share of a residual's variance that a fit is taken to leave: a point that it follows wholly says nothing."""


@dataclass(frozen=True)
class Experiment:
    """The points of a fit and what the fit says of them; residuals are measured minus predicted."""

    measured: Array
    predicted: Array
    weights: Array
    cluster: NDArray[np.intp]
    """(points,): which cluster each point is of, 0, 1, …"""
    smooth_residuals: Array
    """Residuals of the least-squares fit: those of a robust one are zero where it goes through a point."""
    smooth_slopes: Array
    """(points, k): derivatives of the prediction at the least-squares fit."""

    @property
    def clusters(self) -> int:
        """How many clusters there are."""
        return int(np.unique(self.cluster).size)


@dataclass(frozen=True)
class Resamples:
    """What each draw is fitted to: (draws, points) each."""

    measured: Array
    weights: Array
    description: str


def clusters_of(rows: pl.DataFrame) -> NDArray[np.intp]:
    """The cluster of each run, 0, 1, …, by the column `cluster`; a run without a label is alone in its own."""
    labels = rows["cluster"] if "cluster" in rows.columns else [None] * rows.height
    names = [f"run {index}" if label is None else f"cluster {label}" for index, label in enumerate(labels)]
    return np.unique(names, return_inverse=True)[1]


def resample(experiment: Experiment, count: int, seed: int) -> Resamples:
    """`count` resamples: of CASES_FROM clusters or more by cases, of fewer wild.

    cases: clusters drawn with replacement (Efron 1979). wild: every point keeps its place, its residual gets a random
    sign per cluster (Cameron, Gelbach & Miller 2008), corrected for what the fit took of it (CR3; Bell & McCaffrey
    2002).
    """
    random = np.random.default_rng(seed)
    size, groups = len(experiment.measured), experiment.clusters
    if groups >= CASES_FROM:
        drawn = random.multinomial(groups, np.full(groups, 1 / groups), size=count)[:, experiment.cluster]
        measured = np.broadcast_to(experiment.measured, (count, size))
        return Resamples(measured, drawn * experiment.weights, f"case bootstrap over {groups} clusters")
    signs = random.choice([-1.0, 1.0], (count, groups))[:, experiment.cluster]
    measured = experiment.predicted + signs * _corrected(experiment)
    weights = np.broadcast_to(experiment.weights, (count, size))
    return Resamples(measured, weights, f"wild bootstrap over {groups} clusters")


def _corrected(experiment: Experiment) -> Array:
    """Residuals as large as they would be had the fit not seen their cluster: (1 - H_gg)^-1 r_g."""
    root = np.sqrt(experiment.weights)
    basis = orthonormal(experiment.smooth_slopes * root[:, None])
    residual = np.zeros(len(root))
    for group in range(experiment.clusters):
        of_group = np.flatnonzero(experiment.cluster == group)
        unseen, axes = np.linalg.eigh(np.eye(len(of_group)) - basis[of_group] @ basis[of_group].T)
        own = axes.T @ (root * experiment.smooth_residuals)[of_group]
        residual[of_group] = axes @ (own / np.maximum(unseen, SMALLEST_SHARE))
    return residual / root


def percentile(values: Array) -> tuple[float, float]:
    """The interval that holds the middle 95 % of drawn values; a bound is infinite where the draws beyond it are."""
    if np.isfinite(values).all():
        low, high = np.quantile(values, TAILS)
    else:  # between infinite values there is nothing to interpolate
        low = np.quantile(values, TAILS[0], method="lower")
        high = np.quantile(values, TAILS[1], method="higher")
    return float(low), float(high)
