"""Fits of forms that `analysis.fitting.newton` does not fit: Levenberg-Marquardt, derivatives by complex step."""

from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize

from analysis.fitting.linear import solve
from analysis.laws.additive import Array
from analysis.laws.forms import Form
from analysis.laws.objectives import Objective

ITERATIONS = 200
SCREENED = 100
"""Starts drawn for each one kept, of a form whose coordinates are its own."""


@dataclass(frozen=True)
class Data:
    """A form, an objective, and the rows that are fitted."""

    form: Form
    objective: Objective
    log_inputs: Array
    """(inputs, points)"""
    measured: Array
    """(points,) or (problems, points), as the weights: log loss or loss, whichever the residuals are of."""
    weights: Array


def starts(form: Form, log_inputs: Array, log_loss: Array, count: int, seed: int) -> Array:
    """Exponents spread log-uniformly over 0.05-1, coefficients sized so that each term matters at the data's centre.

    A form may draw its own (`Form.starts`). Of one with coordinates that are not known here, SCREENED times as many are
    drawn, those within its bounds, and the best are kept.
    """
    random = np.random.default_rng(seed)
    lower, upper = np.array(form.lower), np.array(form.upper)
    if form.whole is not None:
        drawn = starts(form.whole, log_inputs, log_loss, count, seed)
        return np.clip(drawn[:, [form.whole.coordinates.index(name) for name in form.coordinates]], lower, upper)
    if form.starts is not None:
        return np.clip(form.starts(log_inputs, log_loss, random, count), lower, upper)
    position = {name: index for index, name in enumerate(form.coordinates)}
    known = {"alpha", "beta", "log A", "log B", "log E", "log R", "log R_N", "log C1", "kappa", "f"}
    if form.structure is None and not ({"alpha", "log A"} <= set(position) <= known):
        return _screened(form, log_inputs, log_loss, count, random)
    exponents = np.exp(random.uniform(np.log(0.05), np.log(1.0), (count, len(form.coordinates))))
    shares = np.log(random.dirichlet([1.0, 1.0, 1.0], count)) + log_loss.mean()
    center = log_inputs.mean(axis=1)
    alpha = exponents[:, position["alpha"]] if "alpha" in position else exponents[:, position["eta"]]
    sized = {
        "log A": shares[:, 0] + alpha * center[0],
        "log E": shares[:, 2],
        "log R": random.uniform(0.0, 4.0, count),
        "log R_N": random.uniform(0.0, 4.0, count),
        "log C1": random.uniform(log_inputs[0].min(), log_inputs[0].max(), count),
        "kappa": random.uniform(-0.5, 0.5, count),
        "log Nc": center[0] + random.uniform(0.0, 20.0, count),
        "log Dc": center[-1] + random.uniform(0.0, 20.0, count),
    }
    if "log B" in position:
        beta = exponents[:, position["beta"]] if "beta" in position else alpha
        sized["log B"] = shares[:, 1] + beta * center[1]
    theta = exponents
    for name, values in sized.items():
        if name in position:
            theta[:, position[name]] = values
    return np.clip(theta, lower, upper)


def _screened(form: Form, log_inputs: Array, log_loss: Array, count: int, random: np.random.Generator) -> Array:
    """The starts nearest the data, by least squares of log loss, among many within the form's bounds."""
    many = SCREENED * count
    columns = []
    for name, low, high in zip(form.coordinates, form.lower, form.upper, strict=True):
        if name.startswith("log "):
            columns.append(random.uniform(max(low, -10.0), min(high, 30.0), many))
        elif low > 0:
            columns.append(np.exp(random.uniform(np.log(max(low, 0.03)), np.log(max(min(high, 1.5), low)), many)))
        else:
            columns.append(random.uniform(max(low, -1.0), min(high, 1.0), many))
    theta = np.stack(columns, axis=1)
    with np.errstate(all="ignore"):
        misses = ((form.log_loss(theta, log_inputs) - log_loss) ** 2).sum(axis=1)
    return theta[np.argsort(np.where(np.isfinite(misses), misses, np.inf))[:count]]


def _predicted(theta: Array, data: Data) -> Array:
    """Log loss or loss, whichever was measured: (problems, points)."""
    log_loss = data.form.log_loss(theta, data.log_inputs)
    return log_loss if data.objective.logarithmic else np.exp(np.minimum(log_loss, 300.0))


def residuals(theta: Array, data: Data) -> Array:
    """Predicted minus measured: (problems, points)."""
    return _predicted(theta, data) - data.measured


def linearised(theta: Array, data: Data) -> tuple[Array, Array]:
    """Residuals (problems, points), and their derivatives by theta (problems, k, points)."""
    predicted, slope = _predicted(theta, data), data.form.jacobian(theta, data.log_inputs)
    return predicted - data.measured, slope if data.objective.logarithmic else slope * predicted[:, None]


def totals(theta: Array, data: Data) -> Array:
    """The objective at each row of `theta`."""
    return np.asarray((data.weights * data.objective.values(residuals(theta, data))).sum(axis=1))


def descend(theta: Array, data: Data, *, iterations: int = ITERATIONS) -> Array:
    """Minimise every row of `theta` by itself."""
    theta, form = theta.copy(), data.form
    shape = (len(theta), data.log_inputs.shape[1])
    measured, weights = np.broadcast_to(data.measured, shape), np.broadcast_to(data.weights, shape)
    diagonal = range(theta.shape[1])
    value = totals(theta, data)
    damping, stalled = np.full(len(theta), 1e-3), np.zeros(len(theta), int)
    active = np.flatnonzero(np.isfinite(value))
    for _ in range(iterations):
        if not active.size:
            break
        current, here = theta[active], replace(data, measured=measured[active], weights=weights[active])
        residual, slope = linearised(current, here)
        weighted = slope * (here.weights * here.objective.weights(residual))[:, None]
        gradient = (weighted @ residual[:, :, None])[:, :, 0]
        hessian = weighted @ slope.transpose(0, 2, 1)
        trace = np.trace(hessian, axis1=1, axis2=2)[:, None]
        scale = np.maximum(hessian[:, diagonal, diagonal], 1e-12 * trace) + 1e-300
        hessian[:, diagonal, diagonal] += damping[active, None] * scale + 1e-14 * trace + 1e-300
        proposed = np.clip(current - solve(hessian, gradient), form.lower, form.upper)
        after = totals(proposed, here)
        better = after < value[active]
        gained = better & (value[active] - after > 1e-9 * value[active])
        stalled[active] = np.where(gained, 0, stalled[active] + 1)
        theta[active[better]], value[active[better]] = proposed[better], after[better]
        damping[active] = np.where(better, damping[active] / 5, damping[active] * 4).clip(1e-15, 1e12)
        active = active[stalled[active] < 10]
    return theta


def scaled_gradient(theta: Array, data: Data) -> Array:
    """The scaled gradient of `newton.Minima`, for each coordinate: (problems, k)."""
    residual, slope = linearised(theta, data)
    weighted = data.weights * data.objective.weights(residual)
    gradient = (slope @ (weighted * residual)[:, :, None])[:, :, 0]
    curvature = (slope**2 @ weighted[:, :, None])[:, :, 0]
    total = (data.weights * data.objective.values(residual)).sum(axis=1)
    noise = len(data.log_inputs[0]) * 1e-30 * max(1.0, float(np.max(data.measured)) ** 2)
    return np.asarray(np.abs(gradient) / np.sqrt(np.maximum(curvature * np.maximum(total, noise)[:, None], 1e-300)))


def polish(theta: Array, data: Data) -> Array:
    """Continue one solution with BFGS, coordinates scaled by curvature, objective of order one; never worse."""
    start = float(totals(theta[None], data)[0])
    if start < 1e-28:
        return theta

    def evaluate(x: Array) -> tuple[float, Array, Array]:
        residual, slope = (found[0] for found in linearised(x[None], data))
        weighted = data.weights * data.objective.weights(residual)
        total = float((data.weights * data.objective.values(residual)).sum())
        return total / start, slope @ (weighted * residual) / start, (slope * weighted) @ slope.T / start

    hessian = evaluate(theta)[2]
    if not np.isfinite(hessian).all():
        return theta
    values, vectors = np.linalg.eigh(hessian)
    change = vectors / np.sqrt(np.maximum(values, 1e-12 * values.max()))
    lower, upper = np.array(data.form.lower), np.array(data.form.upper)

    def value_and_slope(z: Array) -> tuple[float, Array]:
        x = theta + change @ z
        if ((x < lower) | (x > upper)).any():
            return 1e6 * (1 + float(z @ z)), 2e6 * z
        total, gradient, _ = evaluate(x)
        return total, change.T @ gradient

    found = optimize.minimize(value_and_slope, np.zeros(len(theta)), jac=True, method="BFGS", options={"gtol": 1e-12})
    return np.asarray(theta + change @ found.x) if found.fun < 1 else theta
