"""A law of curves fitted to runs, with its certificate, its covariance and what it predicts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from scipy import optimize

from analysis.curves.curve import Curve, metrics
from analysis.curves.laws import CurveLaw, find
from analysis.findings import RefusalError
from analysis.fitting.certificate import Certificate
from analysis.fitting.problem import AGREEMENT
from analysis.laws.additive import Array
from analysis.laws.objectives import HUBER, Objective

STARTS, FINALISTS, SEED = 12, 3, 0
COARSE_ROWS = 48
"""Rows of each curve, evenly spread in log step, on which descents begin."""
SCATTER = 3e-3
"""Of whole runs' log losses about the law, which rows of few runs do not show: beliefs are weighed against it, and a
new run scatters by no less."""
STEADY = 0.02
"""Standard deviation of the steadied coordinate about what it comes to where the believed ones are held."""
BLOCKS = 8
"""Into how many stretches a curve is cut, whose residuals are taken to be independent of each other."""
LEVEL, WIDTH = 0.95, 1.96
MEASURES = ("r2", "mae", "rmse", "mean_relative_error", "worst_relative_error", "inside_interval")
"""What is said of each run, and as means over the runs that were not fitted."""


@dataclass(frozen=True)
class CurveFit:
    """A fitted law of curves."""

    law: CurveLaw
    theta: Array
    objective: Objective
    objective_value: float
    certificate: Certificate
    covariance: Array
    """(k, k): of the coordinates, by the sandwich of stretches of curves, with the beliefs."""
    scatter: float
    """Root mean square of the fitted rows' log residuals."""
    fitted: tuple[str, ...]
    """The runs it was fitted to."""

    @property
    def parameters(self) -> dict[str, float]:
        """Constants by their names in the formula."""
        return self.law.parameters(self.theta)

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """Of each constant, at LEVEL."""
        apart = WIDTH * np.sqrt(np.diag(self.covariance))
        lowest, highest = (np.clip(self.theta + way * apart, self.law.lower, self.law.upper) for way in (-1, 1))
        low, high = self.law.parameters(lowest), self.law.parameters(highest)
        return {name: (min(low[name], high[name]), max(low[name], high[name])) for name in low}

    def predict(self, curve: Curve) -> tuple[Array, Array, Array]:
        """Losses at a curve's rows, and the bounds of the interval for what a run would measure there."""
        loss, slopes = self.law.evaluate(curve.path, self.theta)
        relative = slopes / loss[:, None]
        variance = np.einsum("ij,jk,ik->i", relative, self.covariance, relative) + max(self.scatter, SCATTER) ** 2
        factor = np.exp(WIDTH * np.sqrt(np.maximum(variance, 0.0)))
        return loss, loss / factor, loss * factor

    def saved(self) -> dict[str, Any]:
        """Plain values from which `of_saved` makes it again."""
        return {
            "form": self.law.name,
            "beliefs": [list(belief) for belief in self.law.beliefs],
            "theta": self.theta.tolist(),
            "objective": self.objective.name,
            "objective_value": self.objective_value,
            "certificate": vars(self.certificate),
            "covariance": self.covariance.tolist(),
            "scatter": self.scatter,
            "fitted": list(self.fitted),
        }

    @classmethod
    def of_saved(cls, stored: Mapping[str, Any]) -> "CurveFit":
        """From what `saved` gave. RefusalError for a law that is no longer known."""
        certificate = stored["certificate"] | {"bounds_hit": tuple(stored["certificate"]["bounds_hit"])}
        law = find(stored["form"])
        beliefs = tuple((name, mean, width) for name, mean, width in stored.get("beliefs", law.beliefs))
        return cls(
            replace(law, beliefs=beliefs),
            np.array(stored["theta"]),
            Objective.of(stored["objective"]),
            stored["objective_value"],
            Certificate(**certificate),
            np.array(stored["covariance"]),
            stored["scatter"],
            tuple(stored["fitted"]),
        )

    def to_json(self, curves: Sequence[Curve]) -> dict[str, Any]:
        """Plain values, in the shape of `scaling fit --curves --json`."""
        runs: list[dict[str, Any]] = []
        for curve in curves:
            loss, low, high = self.predict(curve)
            inside = float(((low <= curve.losses) & (curve.losses <= high)).mean())
            told = {"run": curve.run, "fitted": curve.run in self.fitted, "rows": len(curve.steps)}
            runs.append(told | metrics(curve.losses, loss) | {"inside_interval": inside})
        unseen = [run for run in runs if not run["fitted"]]
        return {
            "form": self.law.name,
            "law": self.law.formula,
            "source": self.law.source,
            "objective": self.objective.name,
            "objective_value": self.objective_value,
            "parameters": self.parameters,
            "intervals": {name: list(bounds) for name, bounds in self.intervals.items()},
            "interval_level": LEVEL,
            "beliefs": {name.removeprefix("log "): [mean, width] for name, mean, width in self.law.beliefs},
            "certificate": vars(self.certificate),
            "warmup_steps": sorted({curve.warmup_steps for curve in curves}),
            "runs": runs,
            "prediction": {name: float(np.mean([run[name] for run in unseen])) for name in MEASURES} if unseen else {},
        }


@dataclass(frozen=True)
class _Problem:
    """Residuals of all curves under an objective, and of the beliefs: as squares whose sum is least."""

    law: CurveLaw
    objective: Objective
    curves: Sequence[Curve]
    errors: Array | None = None
    """(beliefs, causes): by how many of its standard deviations each belief errs by each of independent causes, which
    are of size one; None where each has a cause of its own."""

    @property
    def weights(self) -> Array:
        """Of each row, one in the mean: curves are read evenly in log step, however densely they were measured.

        A curve of one row stands for a factor of e.
        """
        each = [np.gradient(np.log(curve.steps)) if len(curve.steps) > 1 else np.ones(1) for curve in self.curves]
        weights = np.concatenate(each)
        return np.asarray(weights / weights.mean())

    def evaluate(self, theta: Array) -> tuple[Array, Array]:
        """Residuals of log loss (rows,), and their derivatives (rows, k)."""
        losses, slopes = zip(*(self.law.evaluate(curve.path, theta) for curve in self.curves), strict=True)
        loss = np.maximum(np.concatenate(losses), 1e-6)
        measured = np.concatenate([curve.losses for curve in self.curves])
        return np.log(loss / measured), np.concatenate(slopes) / loss[:, None]

    def beliefs(self, theta: Array) -> tuple[Array, Array]:
        """How many standard deviations each believed coordinate is off, by SCATTER, and the derivatives."""
        slopes = np.zeros((len(self.law.beliefs), len(theta)))
        off = np.zeros(len(self.law.beliefs))
        for row, (name, mean, width) in enumerate(self.law.beliefs):
            place = self.law.coordinates.index(name)
            off[row], slopes[row, place] = SCATTER * (theta[place] - mean) / width, SCATTER / width
        return off, slopes

    def squares(self, theta: Array) -> tuple[Array, Array]:
        """What is squared and summed to twice the objective, and the derivatives."""
        residual, slopes = self.evaluate(theta)
        weights = np.sqrt(self.weights)
        root = np.sqrt(2 * self.objective.values(residual))
        by_residual = np.abs(self.objective.clip(residual)) / np.maximum(root, 1e-300)
        by_residual[root == 0] = 1.0
        off, belief_slopes = self.beliefs(theta)
        squared = np.concatenate([np.sign(residual) * root * weights, off])
        return squared, np.concatenate([slopes * (by_residual * weights)[:, None], belief_slopes])

    def descend(self, theta: Array, evaluations: int) -> tuple[Array, float]:
        """Where a descent ends, and the objective there."""
        lower, upper = np.array(self.law.lower), np.array(self.law.upper)
        with np.errstate(all="ignore"):
            found = optimize.least_squares(
                lambda at: self.squares(at)[0],
                np.clip(theta, lower + 1e-9, upper - 1e-9),
                lambda at: self.squares(at)[1],
                bounds=(lower, upper),
                x_scale="jac",
                max_nfev=evaluations,
                xtol=1e-12,
                ftol=1e-12,
                gtol=1e-14,
            )
        return found.x, float(found.cost)


def fit(curves: Sequence[Curve], law: CurveLaw, objective: Objective = HUBER, *, seed: int = SEED) -> CurveFit:
    """The law with the least objective over all rows of the curves after their warm-ups.

    Descents begin from STARTS points on few rows of each curve; the best FINALISTS of the ends that differ go on on
    all rows.
    RefusalError where the rows are too few.
    """
    curves = [curve.after_warmup for curve in curves]
    rows = sum(len(curve.steps) for curve in curves)
    if rows <= len(law.coordinates) + 1:
        raise RefusalError(
            "too-few-rows", f"{rows} losses after the warm-up; {law.name} has {len(law.coordinates)} constants"
        )
    problem = _steadied(_Problem(law, objective, curves), seed)
    ends = _ends(replace(problem, curves=[_thinned(curve) for curve in curves]), seed)
    agreeing = sum(end[1] <= ends[0][1] * (1 + 1e-3) for end in ends) / len(ends)
    finals = [problem.descend(theta, 300) for theta in _distinct([theta for theta, _ in ends])[:FINALISTS]]
    theta, value = min(finals, key=lambda end: end[1])
    return CurveFit(
        problem.law,
        theta,
        objective,
        value,
        _certificate(problem, theta, agreeing, finals),
        _covariance(problem, theta),
        float(np.sqrt(np.mean(problem.evaluate(theta)[0] ** 2))),
        tuple(curve.run for curve in curves),
    )


def _ends(problem: _Problem, seed: int) -> list[tuple[Array, float]]:
    """Where descents from STARTS points end, and the objective there, the least first."""
    least = min(float(curve.losses.min()) for curve in problem.curves)
    random = np.random.default_rng(seed)
    begin = np.stack([random.uniform(low, high, STARTS) for low, high in problem.law.starts], axis=1)
    begin[:, 0] *= least
    return sorted((problem.descend(one, 200) for one in begin), key=lambda end: end[1])


def _distinct(ends: Sequence[Array]) -> list[Array]:
    """Ends without those that are where one before them is."""
    kept: list[Array] = []
    for end in ends:
        if not any(np.allclose(end, other, rtol=1e-3, atol=1e-3) for other in kept):
            kept.append(end)
    return kept


def _steadied(problem: _Problem, seed: int) -> _Problem:
    """The problem with a belief about the steadied coordinate: what it comes to where the believed ones are held.

    Few curves tell it from those together by their last digits alone (a large drop that comes slowly from a small one
    that is quick), and where all are free it runs along that valley. Its belief errs with those that it is made of: by
    how much is found by holding each of them one standard deviation off, either way. The problem stays as it is where
    nothing is to be steadied, or where the rate does not fall.
    """
    law = problem.law
    rates = np.concatenate([curve.path.total(np.ones(len(curve.path.row))) for curve in problem.curves])
    if law.steadied is None or np.ptp(rates) <= 1e-6 * np.abs(rates).max():
        return problem
    believed = {name: mean for name, mean, _ in law.beliefs}
    held = replace(problem, law=law.holding(believed), curves=[_thinned(curve) for curve in problem.curves])
    place = held.law.coordinates.index(law.steadied)
    theta = _ends(held, seed)[0][0]
    own = float(np.sqrt(_covariance(held, theta)[place, place]))
    by_others = []
    for name, mean, width in law.beliefs:
        moved = [
            replace(held, law=law.holding(believed | {name: mean + way * width})).descend(theta, 100)[0][place]
            for way in (1, -1)
        ]
        by_others.append(max(moved[0] - theta[place], theta[place] - moved[1], key=abs))
    width = float(np.hypot(STEADY, own))
    errors = np.eye(len(believed) + 1)
    errors[-1, :-1] = np.array(by_others) / width
    belief = (law.steadied, float(theta[place]), width)
    return replace(problem, law=replace(law, beliefs=(*law.beliefs, belief)), errors=errors)


def _thinned(curve: Curve) -> Curve:
    """COARSE_ROWS of a curve's rows, evenly spread in log step."""
    wanted = np.geomspace(curve.steps[0], curve.steps[-1], COARSE_ROWS) if len(curve.steps) else curve.steps
    kept = np.unique(np.clip(np.searchsorted(curve.steps, wanted), 0, len(curve.steps) - 1))
    return replace(curve, steps=curve.steps[kept], losses=curve.losses[kept])


def _certificate(
    problem: _Problem, theta: Array, agreeing: float, finals: Sequence[tuple[Array, float]]
) -> Certificate:
    squares, slopes = problem.squares(theta)
    law = problem.law
    width = np.array(law.upper) - np.array(law.lower)
    hit = tuple(
        name
        for name, value, low, high, range_ in zip(law.coordinates, theta, law.lower, law.upper, width, strict=True)
        if min(value - low, high - value) < 1e-6 * range_
    )
    free = [place for place, name in enumerate(law.coordinates) if name not in hit]
    norms = np.linalg.norm(slopes, axis=0)
    gradient = np.abs(slopes.T @ squares) / np.maximum(norms, 1e-300) / max(float(np.linalg.norm(squares)), 1e-300)
    least = min(value for _, value in finals)
    steady = sum(value <= least * (1 + 100 * AGREEMENT) for _, value in finals) / len(finals)
    scaled = float(gradient[free].max(initial=0.0))
    singular = np.linalg.svd(slopes[:, free] / np.maximum(norms[free], 1e-300), compute_uv=False)
    condition = float(singular[0] / max(singular[-1], 1e-300)) if len(singular) else 1.0
    return Certificate(scaled < 1e-3, min(agreeing, steady) if steady < 1 else agreeing, scaled, hit, condition, 1.0)


def _covariance(problem: _Problem, theta: Array) -> Array:
    """Of the coordinates, by the sandwich of stretches of curves (Liang & Zeger 1986), beliefs in the bread."""
    residual, slopes = problem.evaluate(theta)
    weights, objective = problem.weights, problem.objective
    score = slopes * (weights * objective.clip(residual))[:, None]
    stretches, begin = [], 0
    for curve in problem.curves:
        edges = np.linspace(0, len(curve.steps), BLOCKS + 1).astype(int) + begin
        stretches += [score[low:high].sum(axis=0) for low, high in pairwise(edges) if high > low]
        begin += len(curve.steps)
    # Rows beyond delta have no curvature of their own; by their secant the bread is what each step of a descent uses.
    bread = (slopes * (weights * objective.weights(residual))[:, None]).T @ slopes
    believed = problem.beliefs(theta)[1]
    prior = believed.T @ believed
    erring = believed.T if problem.errors is None else believed.T @ problem.errors
    inverse = np.linalg.pinv(bread + prior)
    summed = np.stack(stretches)
    spread = len(stretches) / max(len(stretches) - len(theta), 1)
    return np.asarray(inverse @ (spread * summed.T @ summed + SCATTER**2 * erring @ erring.T) @ inverse)
