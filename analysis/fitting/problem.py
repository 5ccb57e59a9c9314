"""A form on rows as a problem to be solved, by whichever engine fits it.

Forms with a `structure` are fitted by `analysis.fitting.newton` in coordinates about the data's centre, all others by
`analysis.fitting.levenberg_marquardt` in the form's own.
"""

from dataclasses import replace
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from analysis.fitting import bootstrap, levenberg_marquardt, newton
from analysis.fitting.levenberg_marquardt import Data
from analysis.fitting.newton import Minima, Points
from analysis.laws.additive import Array
from analysis.laws.forms import FORMS, Form
from analysis.laws.objectives import Objective
from analysis.laws.structure import COORDINATES, Structure


def is_structured(form: Form) -> bool:
    """Whether Newton's engine fits it, whose bounds are those of the registered forms; the other engine takes any."""
    registered = FORMS.get(form.name)
    usual = registered is not None and (form.lower, form.upper) == (registered.lower, registered.upper)
    return form.structure is not None and usual


MANY = 5_000
"""Rows beyond which descents begin on a sample of them, and draws come from the asymptotic distribution."""
SAMPLE = 2_000
ROUGH, ROUGH_STEPS, FINALISTS, LARGER, LAST_STEPS = 200, 60, 3, 20_000, 3
"""Rows, and steps on them, that begin descents of a form without structure; how many of their ends go on; the sample
whose end is so near that of all rows that a few steps on those suffice; and how many."""
BEGINNINGS, DIFFERENT = 2, 1e-3
"""From how many ends of the sample's descents all rows are fitted, and by what share their objectives differ."""
AGREEMENT = 1e-6
"""Relative difference of objectives within which two starts count as having found the same optimum."""


class Problem(Data):
    """A form on rows under an objective, in its own coordinates, with derivatives by complex step.

    `free` are the coordinates that are fitted, theta the form's: of a `Structured` problem they are others.
    """

    @classmethod
    def of(cls, rows: pl.DataFrame, form: Form, objective: Objective, noise_exponent: float = 0.0) -> "Problem":
        """The problem that a form's engine solves.

        Scatter that goes as C to `noise_exponent` weighs a row by what the objective's likelihood makes of its scale.
        """
        log_loss = np.log(rows["loss"].to_numpy())
        weights = rows["weight"].to_numpy().astype(float) if "weight" in rows.columns else np.ones(rows.height)
        if noise_exponent:
            log_c = np.log(rows["flops"].to_numpy())
            weights = weights * np.exp(-noise_exponent / objective.power * (log_c - log_c.mean()))
        measured = log_loss if objective.logarithmic else np.exp(log_loss)
        kind = Structured if is_structured(form) else Problem
        return kind(form, objective, form.log_inputs_of(rows), measured, weights)

    @property
    def names(self) -> tuple[str, ...]:
        """The free coordinates' names."""
        return self.form.coordinates

    def theta(self, free: Array) -> Array:
        """The form's coordinates for each row of the free ones: (problems, k)."""
        return free

    def starts(self, count: int, seed: int) -> Array:
        """Where descents of a form without structure begin: (count, k)."""
        log_loss = self.measured if self.objective.logarithmic else np.log(self.measured)
        return levenberg_marquardt.starts(self.form, self.log_inputs, log_loss, count, seed)

    def search(self, count: int, seed: int, begin: Array | None = None) -> Minima:
        """Descents from `count` starts drawn for the form, or from the rows of `begin` where the engine takes any."""
        return self.descend(self.starts(count, seed) if begin is None else begin)

    def descend(self, free: Array) -> Minima:
        """Descents from each row of `free` (starts, k)."""
        ends = levenberg_marquardt.descend(free, self)
        best = int(np.nanargmin(levenberg_marquardt.totals(ends, self)))
        ends[best] = levenberg_marquardt.polish(ends[best], self)
        return self._minima(ends)

    def refit(self, free: Array, measured: Array, weights: Array) -> Minima:
        """One problem per row of `measured` and `weights`, from `free` (k,)."""
        each = replace(self, measured=measured, weights=weights)
        return each._minima(levenberg_marquardt.descend(np.tile(free, (len(measured), 1)), each))

    def bounded(self, free: Array) -> Array:
        """The coordinates (problems, k) within their bounds."""
        return np.clip(free, self.form.lower, self.form.upper)

    def slopes(self, free: Array) -> Array:
        """Derivatives of the residuals by the free coordinates at one solution: (points, k)."""
        return np.asarray(levenberg_marquardt.linearised(free[None], self)[1][0].T)

    def residuals(self, free: Array) -> Array:
        """Predicted minus measured at one solution: (points,)."""
        return np.asarray(levenberg_marquardt.residuals(free[None], self)[0])

    def _minima(self, ends: Array) -> Minima:
        value = levenberg_marquardt.totals(ends, self)
        gradient = levenberg_marquardt.scaled_gradient(ends, self)
        margin = 1e-9 * (np.array(self.form.upper) - np.array(self.form.lower))
        hit = (ends - self.form.lower <= margin) | (self.form.upper - ends <= margin)
        return Minima(ends, np.where(np.isfinite(value), value, np.inf), np.where(hit, 0.0, gradient).max(axis=1), hit)

    def bootstrap(self, best: Array, cluster: NDArray[np.intp], count: int, seed: int) -> tuple[Minima, str]:
        """Fits of resamples, and what kind they are; beyond MANY rows draws from the asymptotic distribution."""
        if len(self.measured) > MANY:
            return self._asymptotic(best, cluster, count, seed)
        smooth = replace(self, objective=replace(self.objective, delta=None))
        fitted = smooth.refit(best, self.measured[None], self.weights[None]).free[0]
        experiment = bootstrap.Experiment(
            self.measured,
            self.measured + self.residuals(best),
            self.weights,
            cluster,
            -smooth.residuals(fitted),
            smooth.slopes(fitted),
        )
        drawn = bootstrap.resample(experiment, count, seed)
        return self.refit(best, drawn.measured, drawn.weights), drawn.description

    def _asymptotic(self, best: Array, cluster: NDArray[np.intp], count: int, seed: int) -> tuple[Minima, str]:
        """Normal draws about the solution, by the sandwich covariance of clusters (White 1980; Liang & Zeger 1986)."""
        residual, slopes = self.residuals(best), self.slopes(best)
        free = np.linalg.norm(slopes, axis=0) > 0
        columns = slopes[:, free] / (scale := np.linalg.norm(slopes[:, free], axis=0))
        score = columns * (self.weights * self.objective.weights(residual) * residual)[:, None]
        summed = np.zeros((int(cluster.max()) + 1, int(free.sum())))
        np.add.at(summed, cluster, score)
        bread = np.linalg.pinv((columns * (self.weights * self.objective.curvature(residual))[:, None]).T @ columns)
        values, vectors = np.linalg.eigh(bread @ (summed.T @ summed) @ bread)
        normal = np.random.default_rng(seed).normal(size=(count, len(values)))
        draws = np.tile(best, (count, 1))
        draws[:, free] += (normal * np.sqrt(np.maximum(values, 0.0))) @ vectors.T / scale
        draws = self.bounded(draws)
        none = np.zeros(count)
        told = f"the normal distribution that estimates from many rows tend to ({len(summed)} clusters)"
        return Minima(draws, none, none, np.zeros(draws.shape, bool)), told

    def optimum(self, count: int, seed: int, begin: Array | None = None) -> tuple[Minima, float]:
        """Where descents end, and the share of the starts that found the best of it."""
        if len(self.measured) > MANY:
            return self._optimum_of_many(count, seed, begin)
        ends = self.search(count, seed, begin)
        return ends, _agreeing(ends)

    def _optimum_of_many(self, count: int, seed: int, begin: Array | None) -> tuple[Minima, float]:
        """All starts descend on ROUGH of the rows, the best ends on SAMPLE, and of those one on LARGER.

        That one takes LAST_STEPS on all, since derivatives by complex step cost ten times what others' do; the scaled
        gradient says whether they sufficed.
        """
        rough, sample = self.sample(ROUGH, seed), self.sample(SAMPLE, seed)
        begin = rough.starts(count, seed) if begin is None else begin
        ends = rough._minima(levenberg_marquardt.descend(begin, rough, iterations=ROUGH_STEPS))
        further = sample.descend(ends.free[np.argsort(ends.value)[:FINALISTS]])
        one, larger = further.free[further.best][None], self.sample(min(LARGER, len(self.measured)), seed)
        for stage, steps in ((larger, ROUGH_STEPS), (self, LAST_STEPS)):
            one = levenberg_marquardt.descend(one, stage, iterations=steps)
        return self._minima(one), _agreeing(ends)

    def sample(self, count: int, seed: int) -> Self:
        """The same problem on `count` of its rows."""
        some = np.sort(np.random.default_rng(seed).choice(len(self.measured), count, replace=False))
        return replace(
            self, log_inputs=self.log_inputs[:, some], measured=self.measured[some], weights=self.weights[some]
        )

    def condition_number(self, free: Array) -> float:
        """The weighted least-squares problem's condition number at the solution, columns scaled."""
        root = np.sqrt(self.weights * self.objective.weights(self.residuals(free)))
        slopes = self.slopes(free) * root[:, None]
        if not np.isfinite(slopes).all():
            return float("inf")
        singular = np.linalg.svd(slopes / np.maximum(np.linalg.norm(slopes, axis=0), 1e-300), compute_uv=False)
        return float((singular[0] / max(singular[-1], 1e-150)) ** 2)


def _agreeing(ends: Minima) -> float:
    least = float(ends.value[ends.best])
    return float(np.mean(ends.value <= least * (1 + AGREEMENT) + 1e-18))


class Structured(Problem):
    """A special case of E + (A/N^alpha + B/D^beta)^gamma, in coordinates about the data's centre."""

    @property
    def structure(self) -> Structure:
        """How the free coordinates enter the six of that form."""
        assert self.form.structure is not None
        return self.form.structure

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(COORDINATES[index] for index in self.structure.free)

    def theta(self, free: Array) -> Array:
        return self.form.from_centered(self.structure.expand(free), self.log_inputs.mean(axis=1))

    def search(self, count: int, seed: int, begin: Array | None = None) -> Minima:
        return newton.descend_in_stages(newton.starts(self.points, count, seed), self.points)

    def descend(self, free: Array) -> Minima:
        return newton.minimise(free, self.points)

    def about_own_centre(self, free: Array, other: Problem) -> Array:
        """Coordinates (problems, k) of the same form on other rows, in those of this problem."""
        six = self.structure.expand(free)
        shift = self.log_inputs.mean(axis=1) - other.log_inputs.mean(axis=1)
        six[:, 0] *= np.exp(-six[:, 3] * shift[0])
        six[:, 1] *= np.exp(-six[:, 4] * shift[-1])
        return np.asarray(six[:, self.structure.free])

    def _optimum_of_many(self, count: int, seed: int, begin: Array | None) -> tuple[Minima, float]:
        """The starts descend on a sample of the rows, and the best BEGINNINGS different ends of those on all."""
        sample = self.sample(SAMPLE, seed)
        ends = sample.search(count, seed, begin)
        order = np.argsort(ends.value)
        apart = np.flatnonzero(np.diff(np.log(ends.value[order] + 1e-300)) > DIFFERENT) + 1
        chosen = order[np.array([0, *apart[: BEGINNINGS - 1]], int)]
        return self.descend(self.about_own_centre(ends.free[chosen], sample)), _agreeing(ends)

    def bounded(self, free: Array) -> Array:
        return np.clip(free, newton.LOWER[self.structure.free], newton.UPPER[self.structure.free])

    def refit(self, free: Array, measured: Array, weights: Array) -> Minima:
        begin, points = np.tile(free, (len(measured), 1)), replace(self.points, measured=measured, weights=weights)
        return newton.minimise(begin, points)

    def slopes(self, free: Array) -> Array:
        return newton.slopes(free, self.points)

    def residuals(self, free: Array) -> Array:
        return np.asarray(newton.residuals(free[None], self.points)[0])

    @property
    def points(self) -> Points:
        """The rows, as the optimizer takes them."""
        centered = self.log_inputs - self.log_inputs.mean(axis=1, keepdims=True)
        return Points(centered[0], centered[-1], self.measured, self.weights, self.structure, self.objective)
