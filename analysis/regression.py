"""Fit any form under any objective: many starts at once, the best polished, with what tells a true optimum from a halt.

`fitting.fit` is the fast path for the additive law with its bootstrap; this is the way to ask what another form or
another objective would have said of the same rows. `compare` puts forms side by side by information criterion and by
rollout (fit the cheap runs, predict the dear ones): the error of a fit says little about the error of its prediction.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy import optimize

from analysis.findings import RefusalError
from analysis.forms import Form
from analysis.laws import Array

STARTS = 64
ITERATIONS = 200
AGREEMENT = 1e-6


@dataclass(frozen=True)
class Objective:
    """What is minimised, summed over points: rho of the residual, predicted minus measured.

    `logarithmic` says whether residuals are of log loss. Beyond `delta` the loss grows linearly (Huber); None is least
    squares. `overestimate` multiplies the loss of points that the law puts too high: 1 is symmetric.
    """

    logarithmic: bool = True
    delta: float | None = 1e-3
    overestimate: float = 1.0

    @property
    def name(self) -> str:
        """In words, as every output states it."""
        kind = "least squares" if self.delta is None else f"Huber with delta {self.delta:g}"
        side = "" if self.overestimate == 1 else f", overestimates weighted {self.overestimate:g}"
        return f"{kind} on {'log loss' if self.logarithmic else 'loss'}{side}"

    def values(self, residual: Array) -> Array:
        """Loss of each residual."""
        size = np.abs(residual)
        loss = 0.5 * residual**2
        if self.delta is not None:
            loss = np.where(size <= self.delta, loss, self.delta * (size - 0.5 * self.delta))
        return np.asarray(np.where(residual > 0, self.overestimate, 1.0) * loss)

    def weights(self, residual: Array) -> Array:
        """rho'(r)/r: the weights of the least-squares problem with the same gradient."""
        side = np.where(residual > 0, self.overestimate, 1.0)
        if self.delta is None:
            return side
        return np.asarray(side * np.minimum(1.0, self.delta / np.maximum(np.abs(residual), 1e-300)))


HUBER = Objective()
LEAST_SQUARES = Objective(logarithmic=False, delta=None)
LEAST_SQUARES_OF_LOG = Objective(delta=None)


@dataclass(frozen=True)
class FormFit:
    """A form fitted to rows: the optimum at full precision and how sure it is that it is one."""

    form: Form
    objective: Objective
    theta: Array
    objective_value: float
    agreeing_starts: float
    relative_gradient: float
    """Largest decrease of the objective, relative to it, that a Gauss-Newton step still promises; ~0 at an optimum."""
    bounds_hit: tuple[str, ...]
    count: int

    @property
    def parameters(self) -> dict[str, float]:
        """Coefficients and exponents by name, coefficients no longer as logarithms."""
        named = zip(self.form.coordinates, self.theta, strict=True)
        return {
            name.removeprefix("log "): float(np.exp(value) if name.startswith("log ") else value)
            for name, value in named
        }

    def predict(self, frame: pl.DataFrame) -> Array:
        """Loss at the rows of a frame that has the form's inputs."""
        return np.asarray(np.exp(self.form.log_loss(self.theta[None], _log_inputs(frame, self.form))[0]))

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
        power = 0.5 if self.objective.delta is None else 1.0
        return float(
            2 * n * power * np.log(max(self.objective_value, 1e-300) / n) + 2 * k + 2 * k * (k + 1) / (n - k - 1)
        )


def fit_form(
    frame: pl.DataFrame, form: Form, objective: Objective = HUBER, *, num_starts: int = STARTS, seed: int = 0
) -> FormFit:
    """Fit one form to the rows of `frame` that are not excluded.

    Raises RefusalError for missing columns, too few rows, an input with one value only, or a constant loss.
    """
    rows = frame.filter(pl.col("excluded").is_null()) if "excluded" in frame.columns else frame
    _refuse(rows, form)
    inputs, log_loss = _log_inputs(rows, form), np.log(rows["loss"].to_numpy())
    lower, upper = np.array(form.lower), np.array(form.upper)
    ends = _descend(_starts(form, inputs, log_loss, num_starts, seed), form, objective, inputs, log_loss)
    values = _totals(ends, form, objective, inputs, log_loss)
    values = np.where(np.isfinite(values), values, np.inf)
    best = _polish(ends[int(np.argmin(values))], form, objective, inputs, log_loss)
    value = float(_totals(best[None], form, objective, inputs, log_loss)[0])
    margin = 1e-9 * (upper - lower)
    hit = (best - lower <= margin) | (upper - best <= margin)
    return FormFit(
        form,
        objective,
        best,
        value,
        float(np.mean(values <= value * (1 + AGREEMENT) + 1e-18)),
        _promise(best, ~hit, form, objective, inputs, log_loss, value),
        tuple(name for name, is_hit in zip(form.coordinates, hit, strict=True) if is_hit),
        rows.height,
    )


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


def evaluate(frame: pl.DataFrame, form: Form, theta: Array, objective: Objective = HUBER) -> float:
    """The objective at given parameters: whether a published or earlier fit is at the optimum of its own objective."""
    rows = frame.filter(pl.col("excluded").is_null()) if "excluded" in frame.columns else frame
    log_loss = np.log(rows["loss"].to_numpy())
    return float(_totals(np.asarray(theta, float)[None], form, objective, _log_inputs(rows, form), log_loss)[0])


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
    for name in (*form.inputs, "loss"):
        values = rows[name].to_numpy()
        if not (np.isfinite(values) & (values > 0)).all():
            raise RefusalError("not-positive", f"{name} holds values that are not positive finite numbers")
        if name != "loss" and rows[name].n_unique() < 2:
            raise RefusalError("one-value", f"all runs have the same {name}; {form.name} needs at least two")
    if rows["loss"].n_unique() == 1:
        raise RefusalError("constant-loss", f"every run has the same loss {rows['loss'][0]}")


def _log_inputs(frame: pl.DataFrame, form: Form) -> Array:
    return np.stack([np.log(frame[name].cast(pl.Float64).to_numpy()) for name in form.inputs])


def _starts(form: Form, inputs: Array, log_loss: Array, count: int, seed: int) -> Array:
    """Exponents spread log-uniformly over 0.05-1, coefficients sized so that each term matters at the data's centre."""
    random = np.random.default_rng(seed)
    theta = np.empty((count, len(form.coordinates)))
    center = dict(zip(form.inputs, inputs.mean(axis=1), strict=True))
    exponents = np.exp(random.uniform(np.log(0.05), np.log(1.0), theta.shape))
    shares = np.log(random.dirichlet([1.0, 1.0, 1.0], count)) + log_loss.mean()
    position = {name: index for index, name in enumerate(form.coordinates)}
    theta[:] = exponents
    slope = exponents[:, position.get("alpha", position.get("eta", 0))]
    first = center[form.inputs[0]]
    second = center[form.inputs[1]] if len(form.inputs) > 1 else first
    other = exponents[:, position["beta"]] if "beta" in position else slope
    coupled = "gamma" in position
    gamma = np.exp(random.uniform(np.log(0.4), np.log(2.0), count)) if coupled else np.ones(count)
    sized = {
        "log A": shares[:, 0] / gamma + slope * first,
        "log B": shares[:, 1] / gamma + other * second,
        "log E": shares[:, 2],
        "log Nc": shares[:, 0] / slope + first,
        "log Dc": shares[:, 1] / other + second,
        "log R": random.uniform(0.0, 4.0, count),
        "log C1": random.uniform(inputs[0].min(), inputs[0].max(), count),
        "gamma": gamma,
        "kappa": random.uniform(-0.5, 0.5, count),
    }
    for name, values in sized.items():
        if name in position:
            theta[:, position[name]] = values
    return np.clip(theta, form.lower, form.upper)


def _residuals(theta: Array, form: Form, objective: Objective, inputs: Array, log_loss: Array) -> tuple[Array, Array]:
    """Residuals (problems, points), and the factor that turns derivatives of log loss into theirs."""
    predicted = form.log_loss(theta, inputs)
    if objective.logarithmic:
        return predicted - log_loss, np.ones_like(predicted)
    raised = np.exp(np.minimum(predicted, 300.0))
    return raised - np.exp(log_loss), raised


def _totals(theta: Array, form: Form, objective: Objective, inputs: Array, log_loss: Array) -> Array:
    residual, _ = _residuals(theta, form, objective, inputs, log_loss)
    return np.asarray(objective.values(residual).sum(axis=1))


def _descend(theta: Array, form: Form, objective: Objective, inputs: Array, log_loss: Array) -> Array:
    """Levenberg-Marquardt on iteratively reweighted residuals, every row of `theta` by itself."""
    theta = theta.copy()
    size = theta.shape[1]
    diagonal = range(size)
    value = _totals(theta, form, objective, inputs, log_loss)
    damping, stalled = np.full(len(theta), 1e-3), np.zeros(len(theta), int)
    active = np.flatnonzero(np.isfinite(value))
    for _ in range(ITERATIONS):
        current = theta[active]
        residual, factor = _residuals(current, form, objective, inputs, log_loss)
        slope = form.jacobian(current, inputs) * factor[:, None]
        weighted = slope * objective.weights(residual)[:, None]
        gradient = (weighted @ residual[:, :, None])[:, :, 0]
        hessian = weighted @ slope.transpose(0, 2, 1)
        trace = np.trace(hessian, axis1=1, axis2=2)[:, None]
        scale = np.maximum(hessian[:, diagonal, diagonal], 1e-12 * trace) + 1e-300
        hessian[:, diagonal, diagonal] += damping[active, None] * scale + 1e-14 * trace + 1e-300
        proposed = np.clip(current - np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0], form.lower, form.upper)
        after = _totals(proposed, form, objective, inputs, log_loss)
        better = after < value[active]
        gained = better & (value[active] - after > 1e-9 * value[active])
        stalled[active] = np.where(gained, 0, stalled[active] + 1)
        theta[active[better]], value[active[better]] = proposed[better], after[better]
        damping[active] = np.where(better, damping[active] / 5, damping[active] * 4).clip(1e-15, 1e12)
        active = active[stalled[active] < 10]
        if not active.size:
            break
    return theta


def _polish(theta: Array, form: Form, objective: Objective, inputs: Array, log_loss: Array) -> Array:
    """Continue with BFGS, in coordinates scaled by curvature and an objective of order one; never a worse point."""
    start = float(_totals(theta[None], form, objective, inputs, log_loss)[0])
    if start < 1e-28:
        return theta
    residual, factor = _residuals(theta[None], form, objective, inputs, log_loss)
    slope = (form.jacobian(theta[None], inputs) * factor[:, None])[0]
    curvature = (slope * objective.weights(residual)[0]) @ slope.T / start
    values, vectors = np.linalg.eigh(curvature)
    change = vectors / np.sqrt(np.maximum(values, 1e-12 * values.max()))
    lower, upper = np.array(form.lower), np.array(form.upper)

    def value_and_slope(z: Array) -> tuple[float, Array]:
        x = theta + change @ z
        if ((x < lower) | (x > upper)).any():
            return 1e6 * (1 + float(z @ z)), 2e6 * z
        residual, factor = _residuals(x[None], form, objective, inputs, log_loss)
        slope = (form.jacobian(x[None], inputs) * factor[:, None])[0]
        total = float(objective.values(residual).sum())
        return total / start, change.T @ (slope @ (objective.weights(residual)[0] * residual[0])) / start

    found = optimize.minimize(value_and_slope, np.zeros(len(theta)), jac=True, method="BFGS", options={"gtol": 1e-12})
    return np.asarray(theta + change @ found.x) if found.fun < 1 else theta


def _promise(
    theta: Array, free: Array, form: Form, objective: Objective, inputs: Array, log_loss: Array, value: float
) -> float:
    if value < 1e-28:
        return 0.0
    residual, factor = _residuals(theta[None], form, objective, inputs, log_loss)
    slope = (form.jacobian(theta[None], inputs) * factor[:, None])[0][free]
    weights = objective.weights(residual)[0]
    gradient = slope @ (weights * residual[0])
    step = np.linalg.lstsq((slope * weights) @ slope.T, gradient, rcond=1e-12)[0]
    return float(abs(gradient @ step) / 2 / value)
