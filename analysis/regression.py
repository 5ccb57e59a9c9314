"""Fit any form under any objective: many starts at once, the best taken to machine precision, with what certifies it.

`fit_form` fits one form to rows, with bootstrap draws where asked for; `fitting.fit` does so with the additive law for
each family, as a value that is kept and drawn. `compare` puts forms side by side by information criterion and by
rollout (fit the cheap runs, predict the dear ones): the error of a fit says little about the error of its prediction.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from analysis import descent, optimizer, resampling
from analysis.findings import FitWarning, RefusalError
from analysis.forms import Form
from analysis.laws import Array
from analysis.objectives import HUBER, LEAST_SQUARES, LEAST_SQUARES_OF_LOG, Objective
from analysis.optimizer import Minima, Points
from analysis.resampling import Scheme

__all__ = ["HUBER", "LEAST_SQUARES", "LEAST_SQUARES_OF_LOG", "Certificate", "FormFit", "Objective"]

STARTS = 64
LEVEL = 0.95
AGREEMENT = 1e-6
"""Relative difference of objectives within which two starts count as having found the same optimum."""
CONVERGED = 1e-5
"""Largest scaled gradient of a fit that is called converged; a draw may have a hundred times as much."""


@dataclass(frozen=True)
class Certificate:
    """What is known about the optimum that was found."""

    converged: bool
    agreeing_starts: float
    """Share of starts that ended at the same optimum."""
    scaled_gradient: float
    """Largest change of the objective, by its square root, that a first-order step of one curvature unit promises."""
    bounds_hit: tuple[str, ...]
    condition_number: float
    """Of the weighted least-squares problem at the optimum, columns scaled: how far the data tell parameters apart."""
    converged_draws: float
    """Share of bootstrap draws that converged; 1 where none were asked for."""


@dataclass(frozen=True)
class FormFit:
    """A form fitted to rows: the optimum at full precision, how sure it is that it is one, and how well it is known."""

    form: Form
    objective: Objective
    theta: Array
    objective_value: float
    certificate: Certificate
    count: int
    draws: Array
    """(draws, k): theta of each bootstrap resample."""
    resampling: str
    warnings: tuple[FitWarning, ...]

    @property
    def parameters(self) -> dict[str, float]:
        """Coefficients and exponents by name, coefficients no longer as logarithms."""
        values = self.form.parameters(self.theta)
        return {name: float(value) for name, value in values.items()}

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Interval of each parameter over the draws, at level 0.95."""
        return {name: percentile(drawn) for name, drawn in self.form.parameters(self.draws).items()}

    def interval(self, quantity: Callable[[dict[str, Array]], Array]) -> tuple[float, float]:
        """Interval over the draws, at level 0.95, of what `quantity` makes of the parameters by name, (draws,) each."""
        return percentile(quantity(self.form.parameters(self.draws)))

    def predict(self, frame: pl.DataFrame) -> Array:
        """Loss at the rows of a frame that has the form's inputs."""
        return np.asarray(np.exp(self.form.log_loss(self.theta[None], _log_inputs(frame, self.form))[0]))

    def predict_interval(self, frame: pl.DataFrame) -> tuple[Array, Array]:
        """Bounds of the predicted loss at the rows of a frame, over the draws, at level 0.95."""
        drawn = np.exp(self.form.log_loss(self.draws, _log_inputs(frame, self.form)))
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        return low, high

    @property
    def information(self) -> float:
        """Akaike's criterion with small-sample correction (Hurvich & Tsai 1989), lower is better.

        The likelihood is the objective's own, exp(-rho(r)/s), with the scale s fitted: for Huber far beyond delta a
        Laplace density, for least squares a normal one. Comparable between forms under one objective only.
        """
        k, n = len(self.theta) + 1, self.count
        if n <= k + 1:
            return float("inf")
        # Profiling s out of n log Z(s) + sum rho / s; Z(s) ~ s for linear tails and s^(1/2) for squares.
        fitted = 2 * n * self.objective.power * np.log(max(self.objective_value, 1e-300) / n)
        return float(fitted + 2 * k + 2 * k * (k + 1) / (n - k - 1))


def fit_form(
    frame: pl.DataFrame,
    form: Form,
    objective: Objective = HUBER,
    *,
    num_starts: int = STARTS,
    num_draws: int = 0,
    scheme: Scheme | None = None,
    seed: int = 0,
    begin: Array | None = None,
) -> FormFit:
    """Fit one form to the rows of `frame` that are not excluded, with `num_draws` bootstrap draws.

    Descents begin at `num_starts` points drawn for the form, or at the rows of `begin` (starts, k) where given, which
    a form without `structure` takes.

    A column `weight` (positive, such as one over the variance between seeds) weighs the rows, a column `cluster` says
    whose errors are in common; without them each row weighs 1 and stands alone. `scheme` as `resampling.resample` has
    it. Raises RefusalError for missing columns, too few rows, an input with one value only, or a constant loss.
    """
    rows = frame.filter(pl.col("excluded").is_null()) if "excluded" in frame.columns else frame
    _refuse(rows, form)
    problem = Problem.of(rows, form, objective)
    ends = problem.search(num_starts, seed, begin)
    best = ends.free[ends.best]
    theta = problem.theta(best[None])[0]
    if num_draws:
        labels = rows["cluster"].to_list() if "cluster" in rows.columns else [None] * rows.height
        cluster = resampling.clusters_of(labels)
        drawn, description = problem.bootstrap(best, cluster, scheme, num_draws, seed + 1)
        draws, converged = problem.theta(drawn.free), float(np.mean(drawn.scaled_gradient < 100 * CONVERGED))
        clusters = int(cluster.max()) + 1
    else:
        draws, converged, description, clusters = np.empty((0, len(theta))), 1.0, "none", rows.height
    value = float(ends.value[ends.best])
    certificate = Certificate(
        converged=bool(ends.scaled_gradient[ends.best] < CONVERGED),
        agreeing_starts=float(np.mean(ends.value <= value * (1 + AGREEMENT) + 1e-18)),
        scaled_gradient=float(ends.scaled_gradient[ends.best]),
        bounds_hit=tuple(np.array(problem.names)[ends.at_bounds[ends.best]].tolist()),
        condition_number=problem.condition_number(best),
        converged_draws=converged,
    )
    warnings = _warnings(form, certificate, rows.height, clusters)
    return FormFit(form, objective, theta, value, certificate, rows.height, draws, description, warnings)


@dataclass(frozen=True)
class Candidate:
    """One form among several on the same rows."""

    fit: FormFit
    information: float
    rollout_error: float
    """Root mean square of relative errors on the runs of most compute, the form fitted to the others."""


def compare(
    frame: pl.DataFrame, forms: Sequence[Form], objective: Objective = HUBER, *, held_out: float = 0.2
) -> list[Candidate]:
    """The forms on the same rows, best rollout first; `held_out` is the share of runs, dearest first, kept for test."""
    rows = frame.filter(pl.col("excluded").is_null()) if "excluded" in frame.columns else frame
    cheap_first = rows.sort("flops")
    kept = rows.height - max(1, round(held_out * rows.height))
    small, large = cheap_first.head(kept), cheap_first.tail(rows.height - kept)
    found = []
    for form in forms:
        fitted = fit_form(rows, form, objective)
        predicted = fit_form(small, form, objective).predict(large)
        error = float(np.sqrt(np.mean((predicted / large["loss"].to_numpy() - 1) ** 2)))
        found.append(Candidate(fitted, fitted.information, error))
    return sorted(found, key=lambda candidate: candidate.rollout_error)


def sweep_delta(frame: pl.DataFrame, form: Form, deltas: Sequence[float], *, held_out: float = 0.2) -> pl.DataFrame:
    """The same rows under Huber's objective at each delta: parameters, agreeing starts, and the error of the rollout.

    A delta far above the residuals is least squares, one far below is least absolute deviations.
    """
    rows = []
    for delta in deltas:
        (candidate,) = compare(frame, [form], Objective(delta=delta), held_out=held_out)
        share = candidate.fit.certificate.agreeing_starts
        rows.append({"delta": delta, **candidate.fit.parameters, "agreeing_starts": share})
        rows[-1]["rollout_error"] = candidate.rollout_error
    return pl.DataFrame(rows)


def evaluate(frame: pl.DataFrame, form: Form, theta: Array, objective: Objective = HUBER) -> float:
    """The objective at given parameters: whether a published or earlier fit is at the optimum of its own objective."""
    rows = frame.filter(pl.col("excluded").is_null()) if "excluded" in frame.columns else frame
    problem = Problem.of(rows, form, objective)
    given = np.asarray(theta, float)[None]
    data = (problem.log_inputs, problem.measured, problem.weights)
    return float(descent.totals(given, form, objective, *data)[0])


@dataclass(frozen=True)
class Problem:
    """A form on rows, by whichever engine fits it: `free` are the engine's coordinates, theta the form's."""

    form: Form
    objective: Objective
    log_inputs: Array
    measured: Array
    weights: Array

    @classmethod
    def of(cls, rows: pl.DataFrame, form: Form, objective: Objective) -> "Problem":
        log_loss = np.log(rows["loss"].to_numpy())
        weights = rows["weight"].to_numpy().astype(float) if "weight" in rows.columns else np.ones(rows.height)
        return cls(
            form,
            objective,
            _log_inputs(rows, form),
            log_loss if objective.logarithmic else np.exp(log_loss),
            weights,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Of the free coordinates."""
        if self.form.structure is None:
            return self.form.coordinates
        return tuple(optimizer.COORDINATES[index] for index in self.form.structure.free)

    def theta(self, free: Array) -> Array:
        if self.form.structure is None:
            return free
        return self.form.from_centered(self.form.structure.expand(free), self.log_inputs.mean(axis=1))

    def search(self, count: int, seed: int, begin: Array | None = None) -> Minima:
        """From many starts."""
        structure = self.form.structure
        if structure is not None:
            points = self.points
            drawn = optimizer.starts(points, structure, self.objective, count, seed)
            return optimizer.descend_in_stages(drawn, points, structure, self.objective)
        log_loss = self.measured if self.objective.logarithmic else np.log(self.measured)
        if begin is None:
            begin = descent.starts(self.form, self.log_inputs, log_loss, count, seed)
        data = (self.form, self.objective, self.log_inputs, self.measured, self.weights)
        ends = descent.descend(begin, *data)
        values = descent.totals(ends, *data)
        best = int(np.nanargmin(values))
        ends[best] = descent.polish(ends[best], *data)
        return self._minima(ends, self.measured, self.weights)

    def refit(self, free: Array, measured: Array, weights: Array) -> Minima:
        """One problem per row of `measured` and `weights`, from `free` (k,)."""
        begin = np.tile(free, (len(measured), 1))
        if self.form.structure is not None:
            return optimizer.minimise(begin, self._points(measured, weights), self.form.structure, self.objective)
        ends = descent.descend(begin, self.form, self.objective, self.log_inputs, measured, weights)
        return self._minima(ends, measured, weights)

    def bootstrap(
        self, best: Array, cluster: NDArray[np.intp], scheme: Scheme | None, count: int, seed: int
    ) -> tuple[Minima, str]:
        """Fits of resamples, and what kind they are."""
        smooth = replace(self, objective=replace(self.objective, delta=None))
        fitted = smooth.refit(best, self.measured[None], self.weights[None]).free[0]
        experiment = resampling.Experiment(
            self.measured,
            self.measured + self._residuals(best),
            self.weights,
            cluster,
            -smooth._residuals(fitted),
            smooth.slopes(fitted),
        )
        drawn = resampling.resample(experiment, self.objective, scheme, count, seed)
        return self.refit(best, drawn.measured, drawn.weights), drawn.description

    def slopes(self, free: Array) -> Array:
        """Derivatives of the residuals by the free coordinates at one solution: (points, k)."""
        if self.form.structure is not None:
            return optimizer.slopes(free, self.points, self.form.structure, self.objective)
        _, factor = descent.residuals(free[None], self.form, self.objective, self.log_inputs, self.measured)
        return np.asarray((self.form.jacobian(free[None], self.log_inputs) * factor[:, None])[0].T)

    def condition_number(self, free: Array) -> float:
        """Of the weighted least-squares problem at the solution, columns scaled."""
        root = np.sqrt(self.weights * self.objective.weights(self._residuals(free)))
        slopes = self.slopes(free) * root[:, None]
        singular = np.linalg.svd(slopes / np.maximum(np.linalg.norm(slopes, axis=0), 1e-300), compute_uv=False)
        return float((singular[0] / max(singular[-1], 1e-150)) ** 2)

    def _residuals(self, free: Array) -> Array:
        if self.form.structure is not None:
            return np.asarray(optimizer.residuals(free[None], self.points, self.form.structure, self.objective)[0])
        found, _ = descent.residuals(free[None], self.form, self.objective, self.log_inputs, self.measured)
        return np.asarray(found[0])

    @property
    def points(self) -> Points:
        """The rows, as the optimizer takes them."""
        return self._points(self.measured, self.weights)

    def _points(self, measured: Array, weights: Array) -> Points:
        centered = self.log_inputs - self.log_inputs.mean(axis=1, keepdims=True)
        return Points(centered[0], centered[-1], measured, weights)

    def _minima(self, ends: Array, measured: Array, weights: Array) -> Minima:
        data = (self.form, self.objective, self.log_inputs)
        value = descent.totals(ends, *data, measured, weights)
        gradient = descent.scaled_gradient(ends, *data, measured, weights)
        margin = 1e-9 * (np.array(self.form.upper) - np.array(self.form.lower))
        hit = (ends - self.form.lower <= margin) | (self.form.upper - ends <= margin)
        return Minima(ends, np.where(np.isfinite(value), value, np.inf), np.where(hit, 0.0, gradient).max(axis=1), hit)


def percentile(values: Array) -> tuple[float, float]:
    """The interval that holds the middle 95 % of drawn values."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _warnings(form: Form, certificate: Certificate, count: int, clusters: int) -> tuple[FitWarning, ...]:
    """What is wrong with a fit of any form; those of its draws where there are any."""
    found = []
    size = len(form.coordinates)
    if not certificate.converged:
        found.append(
            FitWarning("not-converged", f"the scaled gradient is {certificate.scaled_gradient:.1e} at the best point")
        )
    if certificate.bounds_hit:
        listed = ", ".join(certificate.bounds_hit)
        found.append(FitWarning("bounds-hit", f"{listed} lies on its bound: the data do not determine it"))
    if certificate.agreeing_starts < 0.1:
        found.append(
            FitWarning("few-starts-agree", f"{certificate.agreeing_starts:.0%} of the starts found this optimum")
        )
    if count <= 3 * size:
        found.append(
            FitWarning("few-points", f"{count} runs for {size} parameters: their intervals are not to be trusted")
        )
    if clusters < count and clusters <= size:
        found.append(
            FitWarning(
                "few-clusters",
                f"the {count} runs share {clusters} trunks: too few for intervals of {size} parameters to be trusted",
            )
        )
    if certificate.converged_draws < 0.95:
        share = f"{certificate.converged_draws:.0%} of the bootstrap fits converged"
        found.append(FitWarning("draws-not-converged", share))
    return tuple(found)


def _refuse(rows: pl.DataFrame, form: Form) -> None:
    missing = [name for name in (*form.inputs, "loss") if name not in rows.columns]
    if missing:
        raise RefusalError(
            "missing-column", f"{form.name} needs {', '.join(missing)}; there are: {', '.join(rows.columns)}"
        )
    needed = len(form.coordinates)
    if rows.height < needed:
        raise RefusalError(
            "too-few-points", f"{rows.height} runs cannot determine the {needed} parameters of {form.name}"
        )
    for name in (*form.inputs, "loss", *(("weight",) if "weight" in rows.columns else ())):
        values = rows[name].cast(pl.Float64).to_numpy()
        if not (np.isfinite(values) & (values > 0)).all():
            raise RefusalError("not-positive", f"{name} holds values that are not positive finite numbers")
        if name in form.inputs and rows[name].n_unique() < 2:
            raise RefusalError("one-value", f"all runs have the same {name}; {form.name} needs at least two")
    if rows["loss"].n_unique() == 1:
        raise RefusalError("constant-loss", f"every run has the same loss {rows['loss'][0]}")


def _log_inputs(frame: pl.DataFrame, form: Form) -> Array:
    return np.stack([np.log(frame[name].cast(pl.Float64).to_numpy()) for name in form.inputs])
