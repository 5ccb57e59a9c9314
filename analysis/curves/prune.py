"""Which runs of a search cannot win any more: their ends by the law of curves, while they train.

Runs that differ in a searched value alone, such as the learning rate, follow L0 + A S^-alpha - C S2 (Tissue et al.
2024, arXiv 2408.11029), S the rate summed over updates and S2 its drops, forgotten slowly. L0 and A are a run's own,
as they are what the search is about; alpha, C and how fast drops are forgotten belong to all. Over a grid of alpha and
of the time in which drops are forgotten the law is linear: its coefficients have a normal posterior under flat priors,
and each place of the grid the weight that its residuals and its determinant leave it (Box & Tiao 1973, section 2.7).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from analysis.curves.curve import Curve, Path
from analysis.curves.fit import SCATTER
from analysis.laws.additive import Array

ALPHAS = np.linspace(0.1, 1.0, 7)
FORGOTTEN_IN = (0.01, 0.03, 0.1, 0.3)
"""Times in which a drop of the rate is felt, as shares of the longest run."""
LEAST_ROWS = 3
"""Losses after the warm-up below which nothing is said of a run."""
LEAST_FREEDOM = 3


@dataclass(frozen=True)
class Loser:
    """A run that cannot win."""

    run: str
    better: str
    """The run that is expected to end lower than all others."""
    chance: float
    """That this run ends below that one."""


def losers(curves: Sequence[Curve], risk: float) -> list[Loser]:
    """Runs that end below the best one with a chance of less than `risk` each.

    A curve's losses are those so far; its rate's path reaches to its end, where it has ended if its last loss lies
    there. Of runs with too few losses nothing is said, and none is a loser as long as the curves leave open how much
    the decay to come gives.
    """
    known = [late for curve in curves if len((late := curve.after_warmup).steps) >= LEAST_ROWS]
    size, rows = 2 * len(known) + 1, sum(len(curve.steps) for curve in known)
    if len(known) < 2 or rows - size < LEAST_FREEDOM:
        return []
    measured = np.concatenate([curve.losses for curve in known])
    features = [_features(curve, max(one.rate_steps[-1] for one in known)) for curve in known]
    found = [
        _solved(known, measured, [(sums**-alpha, areas[:, felt]) for sums, areas in features])
        for alpha in ALPHAS
        for felt in range(len(FORGOTTEN_IN))
    ]
    solved = [one for one in found if one is not None]
    if len(solved) < len(found):
        return []
    log_weights, expected, covariances = zip(*solved, strict=True)
    weights = np.exp(np.array(log_weights) - max(log_weights))
    weights /= weights.sum()
    ends = np.array(expected)
    best = int(np.argmin(weights @ ends))
    spread = np.array(covariances)
    own = np.diagonal(spread, axis1=1, axis2=2)
    variances = own + own[:, [best]] - 2 * spread[:, :, best]
    open_ends = np.array([curve.steps[-1] < curve.rate_steps[-1] for curve in known])
    variances = variances + (SCATTER * ends.mean()) ** 2 * (open_ends.astype(float) + float(open_ends[best]))
    apart = (ends[:, [best]] - ends) / np.sqrt(np.maximum(variances, 1e-300))
    chances = weights @ special.stdtr(rows - size, apart)
    return [
        Loser(curve.run, known[best].run, float(chance))
        for place, (curve, chance) in enumerate(zip(known, chances, strict=True))
        if place != best and open_ends[place] and chance < risk
    ]


def _features(curve: Curve, longest: float) -> tuple[Array, Array]:
    """What the law reads of a rate's path at each loss and, last, at the end.

    S (rows + 1,) as shares of the last, and S2 over the highest rate (rows + 1, times), for each time in which drops
    are forgotten.
    """
    at = np.append(curve.steps, curve.rate_steps[-1])
    path = Path.of(curve.rate_steps, curve.rates, curve.warmup_steps, at)
    fallen = np.maximum(path.drop, 0.0)  # what the warm-up's rise tells of C is nothing to go by
    felt = [-np.expm1(-path.steps_since / (share * longest)) for share in FORGOTTEN_IN]
    areas = [np.bincount(path.row, fallen * one, len(at)) for one in felt]
    return path.sums / path.sums[-1], np.stack(areas, axis=1) / curve.rates.max()


def _solved(
    curves: Sequence[Curve], measured: Array, features: Sequence[tuple[Array, Array]]
) -> tuple[float, Array, Array] | None:
    """At one place of the grid: the logarithm of its weight, the expected ends (runs,) and their covariance.

    `features` are of each curve S^-alpha and S2, (rows + 1,). The end of a run that has ended is what was measured.
    None where the rows do not determine the coefficients.
    """
    size = 2 * len(curves) + 1
    design, ends = [], np.zeros((len(curves), size))
    for place, (falling, area) in enumerate(features):
        rows = np.zeros((len(falling), size))
        rows[:, 2 * place], rows[:, 2 * place + 1], rows[:, -1] = 1.0, falling, -area
        design.append(rows[:-1])
        ends[place] = rows[-1]
    matrix = np.concatenate(design)
    if not (np.abs(matrix[:, -1]) > 1e-9).any() and not (np.abs(ends[:, -1]) > 1e-9).any():  # no rate falls, nor will
        matrix, ends = matrix[:, :-1], ends[:, :-1]
    scales = np.linalg.norm(matrix, axis=0)
    if not scales.all():
        return None
    u, singular, vt = np.linalg.svd(matrix / scales, full_matrices=False)
    if singular[-1] < 1e-7 * singular[0]:
        return None
    coefficients = (vt.T @ ((u.T @ measured) / singular)) / scales
    freedom = len(measured) - matrix.shape[1]
    squares = float(((measured - matrix @ coefficients) ** 2).sum())
    scatter = max(squares / freedom, 1e-12)
    root = (ends / scales) @ vt.T / singular
    over = np.array([curve.steps[-1] >= curve.rate_steps[-1] for curve in curves])
    root[over] = 0.0
    expected = np.where(over, [curve.losses[-1] for curve in curves], ends @ coefficients)
    log_weight = -freedom / 2 * np.log(scatter) - np.log(singular).sum() - np.log(scales).sum()
    return float(log_weight), expected, scatter * root @ root.T
