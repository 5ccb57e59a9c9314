"""A form on rows as a problem to be solved, by whichever engine fits it.

Forms with a `structure` are fitted by `analysis.fitting.newton` in coordinates about the data's centre, all others by
`analysis.fitting.levenberg_marquardt` in the form's own.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from analysis.fitting import bootstrap, levenberg_marquardt, newton
from analysis.fitting.bootstrap import Scheme
from analysis.fitting.fit import log_inputs
from analysis.fitting.newton import Minima, Points
from analysis.laws.additive import Array
from analysis.laws.forms import FORMS, Form
from analysis.laws.objectives import Objective
from analysis.laws.structure import COORDINATES, Structure


@dataclass(frozen=True)
class Problem(ABC):
    """A form on rows under an objective: `free` are the engine's coordinates, theta the form's."""

    form: Form
    objective: Objective
    log_inputs: Array
    measured: Array
    weights: Array

    @classmethod
    def of(cls, rows: pl.DataFrame, form: Form, objective: Objective) -> "Problem":
        """The problem that a form's engine solves."""
        log_loss = np.log(rows["loss"].to_numpy())
        weights = rows["weight"].to_numpy().astype(float) if "weight" in rows.columns else np.ones(rows.height)
        measured = log_loss if objective.logarithmic else np.exp(log_loss)
        # Newton's engine has bounds of its own: those of the registered forms. Others go to the engine that takes any.
        registered = FORMS.get(form.name)
        usual = registered is not None and (form.lower, form.upper) == (registered.lower, registered.upper)
        kind = Structured if form.structure is not None and usual else General
        return kind(form, objective, log_inputs(rows, form), measured, weights)

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The free coordinates' names."""

    @abstractmethod
    def theta(self, free: Array) -> Array:
        """The form's coordinates for each row of the engine's: (problems, k)."""

    @abstractmethod
    def search(self, count: int, seed: int, begin: Array | None = None) -> Minima:
        """Descents from `count` starts drawn for the form, or from the rows of `begin` where the engine takes any."""

    @abstractmethod
    def refit(self, free: Array, measured: Array, weights: Array) -> Minima:
        """One problem per row of `measured` and `weights`, from `free` (k,)."""

    @abstractmethod
    def slopes(self, free: Array) -> Array:
        """Derivatives of the residuals by the free coordinates at one solution: (points, k)."""

    @abstractmethod
    def residuals(self, free: Array) -> Array:
        """Predicted minus measured at one solution: (points,)."""

    def bootstrap(
        self, best: Array, cluster: NDArray[np.intp], scheme: Scheme | None, count: int, seed: int
    ) -> tuple[Minima, str]:
        """Fits of resamples, and what kind they are."""
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
        drawn = bootstrap.resample(experiment, self.objective, scheme, count, seed)
        return self.refit(best, drawn.measured, drawn.weights), drawn.description

    def condition_number(self, free: Array) -> float:
        """The weighted least-squares problem's condition number at the solution, columns scaled."""
        root = np.sqrt(self.weights * self.objective.weights(self.residuals(free)))
        slopes = self.slopes(free) * root[:, None]
        if not np.isfinite(slopes).all():
            return float("inf")
        singular = np.linalg.svd(slopes / np.maximum(np.linalg.norm(slopes, axis=0), 1e-300), compute_uv=False)
        return float((singular[0] / max(singular[-1], 1e-150)) ** 2)


class Structured(Problem):
    """A special case of E + (A/N^alpha + B/D^beta)^gamma."""

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
        drawn = newton.starts(self.points, self.structure, self.objective, count, seed)
        return newton.descend_in_stages(drawn, self.points, self.structure, self.objective)

    def refit(self, free: Array, measured: Array, weights: Array) -> Minima:
        begin, points = np.tile(free, (len(measured), 1)), replace(self.points, measured=measured, weights=weights)
        return newton.minimise(begin, points, self.structure, self.objective)

    def slopes(self, free: Array) -> Array:
        return newton.slopes(free, self.points, self.structure, self.objective)

    def residuals(self, free: Array) -> Array:
        return np.asarray(newton.residuals(free[None], self.points, self.structure, self.objective)[0])

    @property
    def points(self) -> Points:
        """The rows, as the optimizer takes them."""
        centered = self.log_inputs - self.log_inputs.mean(axis=1, keepdims=True)
        return Points(centered[0], centered[-1], self.measured, self.weights)


class General(Problem):
    """Any form: derivatives by complex step, in the form's own coordinates."""

    @property
    def names(self) -> tuple[str, ...]:
        return self.form.coordinates

    def theta(self, free: Array) -> Array:
        return free

    def search(self, count: int, seed: int, begin: Array | None = None) -> Minima:
        if begin is None:
            log_loss = self.measured if self.objective.logarithmic else np.log(self.measured)
            begin = levenberg_marquardt.starts(self.form, self.log_inputs, log_loss, count, seed)
        data = (self.form, self.objective, self.log_inputs, self.measured, self.weights)
        ends = levenberg_marquardt.descend(begin, *data)
        best = int(np.nanargmin(levenberg_marquardt.totals(ends, *data)))
        ends[best] = levenberg_marquardt.polish(ends[best], *data)
        return self._minima(ends, self.measured, self.weights)

    def refit(self, free: Array, measured: Array, weights: Array) -> Minima:
        begin = np.tile(free, (len(measured), 1))
        ends = levenberg_marquardt.descend(begin, self.form, self.objective, self.log_inputs, measured, weights)
        return self._minima(ends, measured, weights)

    def slopes(self, free: Array) -> Array:
        _, factor = levenberg_marquardt.residuals(free[None], self.form, self.objective, self.log_inputs, self.measured)
        return np.asarray((self.form.jacobian(free[None], self.log_inputs) * factor[:, None])[0].T)

    def residuals(self, free: Array) -> Array:
        found, _ = levenberg_marquardt.residuals(free[None], self.form, self.objective, self.log_inputs, self.measured)
        return np.asarray(found[0])

    def _minima(self, ends: Array, measured: Array, weights: Array) -> Minima:
        data = (self.form, self.objective, self.log_inputs)
        value = levenberg_marquardt.totals(ends, *data, measured, weights)
        gradient = levenberg_marquardt.scaled_gradient(ends, *data, measured, weights)
        margin = 1e-9 * (np.array(self.form.upper) - np.array(self.form.lower))
        hit = (ends - self.form.lower <= margin) | (self.form.upper - ends <= margin)
        return Minima(ends, np.where(np.isfinite(value), value, np.inf), np.where(hit, 0.0, gradient).max(axis=1), hit)
