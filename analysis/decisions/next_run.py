"""Which run to buy next, where the law is not yet known: by the expected drop of the prediction's variance.

What is known after some runs is an ensemble. Descents from many starts end in several optima, of one form or of
several; those that fit nearly as well are modes, weighed by their likelihood (BIC). Around each, refits of simulated
measurements (parametric bootstrap) say how far the runs determine it. Over the whole ensemble, the covariance of what
it says of a candidate and of the targets is the drop that the candidate's measurement would bring: within modes, as
V-optimal design has it, and between them, as it tells modes apart (after Li et al. 2026, arXiv 2604.22753, whose score
is drop / cost^0.4).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from analysis.findings import RefusalError
from analysis.fitting import levenberg_marquardt
from analysis.fitting.problem import Problem, Structured
from analysis.laws.additive import Array
from analysis.laws.forms import Form
from analysis.laws.objectives import LEAST_SQUARES

FIRST_STARTS, STARTS, DRAWS = 32, 8, 64
"""Descents before anything is known, new ones after each run beside those from known modes, and refits."""
STEPS, REFIT_STEPS = 100, 25
"""Steps of descents and of refits, for forms without a structure."""
MODES, NEAR, APART = 12, 1.5, 2e-3
"""The most modes; an optimum is one up to this multiple of the least objective; log losses by which two differ."""
COST_POWER = 0.4
"""Of the score, drop / cost^power, where a share of a pool is spent whatever it tells (the published one)."""
WORTH = 0.02
"""A run that promises to take less than this share off the targets' variance is not bought."""
FIRST_ROWS, FIRST_SHARE = 2.5, 0.02
"""Runs to begin with, the cheapest: so many for each parameter of the form, within this share of the pool's cost."""
LEAST_SCATTER = 1e-4


@dataclass(frozen=True)
class Mode:
    """An optimum of a form, in the coordinates of the problem it was found in."""

    problem: Problem
    free: Array
    value: float

    @property
    def criterion(self) -> float:
        """Schwarz's criterion for normal residuals of unknown variance; less is better."""
        rows, size = len(self.problem.measured), len(self.problem.form.coordinates)
        return rows * float(np.log(max(self.value, 1e-300) / rows)) + size * float(np.log(rows))


@dataclass(frozen=True)
class Knowledge:
    """What some runs say: modes, and an ensemble of laws (each form with its coordinates)."""

    modes: tuple[Mode, ...]
    draws: tuple[tuple[Form, Array], ...]
    scatter: float
    """Standard deviation of a run's loss about the best mode."""

    def losses(self, rows: pl.DataFrame) -> Array:
        """What each law of the ensemble says of rows with the forms' inputs: (draws, rows)."""
        each = [form.log_loss(theta, form.log_inputs_of(rows)) for form, theta in self.draws]
        return np.exp(np.clip(np.nan_to_num(np.concatenate(each), nan=10.0), -10.0, 10.0))

    def worth(self, candidates: pl.DataFrame, targets: pl.DataFrame, given: pl.DataFrame | None = None) -> Array:
        """The share of the targets' variance that measuring each candidate is expected to take off: (candidates,).

        Runs that are `given` are taken to have shown the loss that is expected of them.
        """
        of_candidates, of_targets = self._apart(given, candidates, targets)
        shared = (of_candidates.T @ of_targets / len(of_targets)) ** 2
        drop = shared.mean(axis=1) / ((of_candidates**2).mean(axis=0) + self.scatter**2)
        return np.asarray(drop / max(float((of_targets**2).mean()), 1e-300))

    def left(self, targets: pl.DataFrame, given: pl.DataFrame) -> float:
        """The share of the targets' variance that is left when runs are given."""
        (before,), (after,) = self._apart(None, targets), self._apart(given, targets)
        return float((after**2).mean() / max(float((before**2).mean()), 1e-300))

    def _apart(self, given: pl.DataFrame | None, *frames: pl.DataFrame) -> list[Array]:
        """How far each law of the ensemble is from its mean, after runs that are given: (draws, rows) of each frame.

        One measurement after another moves the laws together, so that their covariance is that of a Kalman filter
        (ensemble square root filter, Whitaker & Hamill 2002, equation 13).
        """
        parts = [self.losses(frame) for frame in frames]
        known = 0 if given is None else given.height
        if given is not None and known:
            parts = [self.losses(given), *parts]
        apart = np.concatenate(parts, axis=1)
        apart -= apart.mean(axis=0)
        for row in range(known):
            own = apart[:, row].copy()
            variance = float(np.mean(own**2)) + self.scatter**2
            gain = own @ apart / len(apart) / variance
            apart -= np.outer(own, gain) / (1 + self.scatter / np.sqrt(variance))
        ends = np.cumsum([part.shape[1] for part in parts])[:-1]
        return np.split(apart, ends, axis=1)[1 if known else 0 :]


def learn(rows: pl.DataFrame, forms: Sequence[Form], before: Knowledge | None = None, *, seed: int = 0) -> Knowledge:
    """What the rows say, by all forms, going on from the modes that were known `before`.

    RefusalError where no descent ends in a law.
    """
    found: list[Mode] = []
    for form in forms:
        problem = Problem.of(rows, form, LEAST_SQUARES)
        known = [mode for mode in before.modes if mode.problem.form is form] if before is not None else []
        found += _descended(problem, known, STARTS if known else FIRST_STARTS, seed)
    if not found:
        raise RefusalError("no-law", f"no descent ends in a law of {', '.join(form.name for form in forms)}")
    modes = _different(found)
    criteria = np.array([mode.criterion for mode in modes])
    weights = np.exp(-(criteria - criteria.min()) / 2)
    best = modes[int(criteria.argmin())]
    freedom = max(len(best.problem.measured) - len(best.problem.form.coordinates), 1)
    scatter = max(float(np.sqrt(2 * best.value / freedom)), LEAST_SCATTER)
    random = np.random.default_rng(seed)
    shares = random.multinomial(DRAWS, weights / weights.sum())
    draws = [
        (mode.problem.form, _refits(mode, int(share), scatter, random))
        for mode, share in zip(modes, shares, strict=True)
        if share
    ]
    return Knowledge(tuple(modes), tuple(draws), scatter)


def _descended(problem: Problem, known: Sequence[Mode], count: int, seed: int) -> list[Mode]:
    """Ends of descents from new starts, and from the modes of fewer rows."""
    if isinstance(problem, Structured):
        ends = [problem.search(count, seed)]
        ends += [problem.descend(problem.about_own_centre(mode.free[None], mode.problem)) for mode in known]
        free, value = np.concatenate([end.free for end in ends]), np.concatenate([end.value for end in ends])
    else:
        begin = np.concatenate([problem.starts(count, seed), *(mode.free[None] for mode in known)])
        free = levenberg_marquardt.descend(begin, problem, iterations=STEPS)
        value = levenberg_marquardt.totals(free, problem)
    return [Mode(problem, one, float(end)) for one, end in zip(free, value, strict=True) if np.isfinite(end)]


def _different(found: Sequence[Mode]) -> list[Mode]:
    """The best modes of each form that are near its best one, and say different things of the rows' surroundings."""
    kept: list[Mode] = []
    for mode in sorted(found, key=lambda one: one.value):
        form = mode.problem.form
        same = [other for other in kept if other.problem.form is form]
        if len(same) >= MODES or (same and mode.value > NEAR * same[0].value + 1e-30):
            continue
        far = _far(mode.problem)
        says = form.log_loss(mode.problem.theta(mode.free[None]), far)
        others = [form.log_loss(other.problem.theta(other.free[None]), far) for other in same]
        if np.isfinite(says).all() and all(np.abs(says - other).max() > APART for other in others):
            kept.append(mode)
    return kept


def _far(problem: Problem) -> Array:
    """Log inputs at all corners of a box three times as wide, on a logarithmic axis, as the rows: (inputs, corners)."""
    low, high = problem.log_inputs.min(axis=1), problem.log_inputs.max(axis=1)
    wide = high - low
    corners = np.meshgrid(*zip(low, high + 2 * wide, strict=True))
    return np.stack([corner.ravel() for corner in corners])


def _refits(mode: Mode, count: int, scatter: float, random: np.random.Generator) -> Array:
    """Coordinates (count, k) of fits to what the mode would have measured."""
    problem = mode.problem
    predicted = np.exp(problem.form.log_loss(problem.theta(mode.free[None]), problem.log_inputs)[0])
    measured = np.maximum(predicted + scatter * random.standard_normal((count, len(predicted))), 1e-6)
    weights = np.tile(problem.weights, (count, 1))
    if isinstance(problem, Structured):
        return problem.theta(problem.refit(mode.free, measured, weights).free)
    each = replace(problem, measured=measured, weights=weights)
    return levenberg_marquardt.descend(np.tile(mode.free, (count, 1)), each, iterations=REFIT_STEPS)


def choose(
    knowledge: Knowledge,
    candidates: pl.DataFrame,
    targets: pl.DataFrame,
    costs: Array,
    within: float,
    given: pl.DataFrame | None = None,
    *,
    power: float = COST_POWER,
    least: Array | float = WORTH,
) -> int | None:
    """The candidate of most worth per cost^power that costs at most `within`; None where none is worth the `least`."""
    worth = knowledge.worth(candidates, targets, given)
    scores = np.where((costs <= within) & (worth >= least), worth / costs**power, -1.0)
    best = int(np.argmax(scores)) if len(scores) else -1
    return best if best >= 0 and scores[best] > 0 else None


@dataclass
class Simulation:
    """What would have been bought of a pool whose runs are all known, and how well the targets would be predicted."""

    forms: list[str]
    start: list[int]
    """Rows of the pool to begin with."""
    rounds: list[dict[str, Any]] = field(default_factory=list)
    """Of each run: its row, the share of the pool's cost spent with it, and R² of the targets after it."""
    r2: dict[str, float] = field(default_factory=dict)
    """By each share that could be spent."""


def first_runs(costs: Array, size: int) -> list[int]:
    """Rows to begin with, the cheapest first, for a form of `size` parameters."""
    order = np.argsort(costs, kind="stable")[: round(FIRST_ROWS * size)]
    spent = np.cumsum(costs[order])
    return [int(row) for row in order[spent <= FIRST_SHARE * costs.sum()]]


def simulate(
    pool: pl.DataFrame, targets: pl.DataFrame, forms: Sequence[Form], shares: Sequence[float], *, seed: int = 0
) -> Simulation:
    """Buy runs of the pool, one at a time, until each share of its cost (`flops`) is spent or nothing is worth it.

    `pool` and `targets` have the forms' inputs and `loss`. R² is that of the ensemble's mean, within [-1, 1].
    RefusalError where the pool or the targets are too few.
    """
    size = max(len(form.coordinates) for form in forms)
    costs = pool["flops"].to_numpy()
    total = float(costs.sum())
    bought = first_runs(costs, size)
    if len(bought) <= size or targets.height < 2:
        raise RefusalError(
            "too-few-rows",
            f"{len(bought)} runs cost at most {FIRST_SHARE:.0%} of the pool together, and there are {targets.height} "
            f"targets; more than {size} and at least 2 are needed",
        )
    found = Simulation([form.name for form in forms], list(bought))
    measured = targets["loss"].to_numpy()
    knowledge, spent = learn(pool[bought], forms, seed=seed), float(costs[bought].sum())
    now = r_squared(measured, knowledge.losses(targets).mean(axis=0))
    for share in sorted(shares):
        while True:
            left = np.setdiff1d(np.arange(pool.height), bought)
            pick = choose(knowledge, pool[left], targets, costs[left], share * total * (1 + 1e-9) - spent)
            if pick is None:
                break
            row = int(left[pick])
            bought.append(row)
            spent += float(costs[row])
            knowledge = learn(pool[bought], forms, knowledge, seed=seed + 1000 * len(bought))
            now = r_squared(measured, knowledge.losses(targets).mean(axis=0))
            found.rounds.append({"bought": row, "share": spent / total, "r2": now})
        found.r2[f"{share:g}"] = now
    return found


def r_squared(measured: NDArray[Any], predicted: Array) -> float:
    """Share of the variance that is explained, no less than -1."""
    spread = float(((measured - measured.mean()) ** 2).sum())
    return float(np.clip(1 - ((measured - predicted) ** 2).sum() / max(spread, 1e-300), -1.0, 1.0))
