"""Many robust fits at once: Huber loss on log loss, from many starts or for many resamples, vectorised over them.

Each start descends by Levenberg-Marquardt on iteratively reweighted residuals (the Huber weight delta/|r| majorises the
objective, so that a full step cannot increase it by much and damping does the rest); the best is polished by a
trust-region Newton method with the exact Hessian. The objective is a sum over points, never a mean: a mean of values
around 1e-5 stops optimisers before they have moved.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from analysis.laws import Array, log_loss

LOWER = np.array([-30.0, -30.0, -30.0, 1e-3, 1e-3])
UPPER = np.array([80.0, 80.0, 10.0, 3.0, 3.0])
"""Bounds on (log A, log B, log E, alpha, beta): wide, there to be reported when hit."""


@dataclass(frozen=True)
class Points:
    """What is fitted: logarithms of N, D and loss; the others (points,) or (problems, points)."""

    log_n: Array
    log_d: Array
    log_loss: Array
    weights: Array


def huber(residual: Array, delta: float) -> Array:
    """Huber's loss: r²/2 within delta, delta (|r| - delta/2) beyond."""
    size = np.abs(residual)
    return np.where(size <= delta, 0.5 * residual**2, delta * (size - 0.5 * delta))


def objective(theta: Array, points: Points, delta: float) -> Array:
    """Sum of weighted Huber losses for each row of `theta` (problems, 5)."""
    predicted, _ = log_loss(theta, points.log_n, points.log_d)
    total: Array = (points.weights * huber(predicted - points.log_loss, delta)).sum(axis=-1)
    return total


def jacobian(shares: Array, points: Points) -> Array:
    """Derivatives of log loss by theta: (problems, 5, points)."""
    by_alpha = -shares[:, 0] * points.log_n
    by_beta = -shares[:, 1] * points.log_d
    return np.concatenate([shares, by_alpha[:, None], by_beta[:, None]], axis=1)


def descend(theta: Array, points: Points, delta: float, *, iterations: int = 300, tolerance: float = 1e-11) -> Array:
    """Minimise every row of `theta` (problems, 5) by itself, within the bounds; returns the same shape.

    A problem stops when several steps in a row lower its objective by less than `tolerance`, relative.
    """
    theta = np.clip(theta, LOWER, UPPER).copy()
    problems, count = theta.shape
    many = points.log_loss.ndim == 2
    value = objective(theta, points, delta)
    damping = np.full(problems, 1e-3)
    stalled = np.zeros(problems, int)
    active = np.arange(problems)
    for _ in range(iterations):
        here = Points(
            points.log_n,
            points.log_d,
            points.log_loss[active] if many else points.log_loss,
            points.weights[active] if points.weights.ndim == 2 else points.weights,
        )
        current = theta[active]
        predicted, shares = log_loss(current, here.log_n, here.log_d)
        residual = predicted - here.log_loss
        majorant = here.weights * np.minimum(1.0, delta / np.maximum(np.abs(residual), 1e-300))
        slope = jacobian(shares, here)
        weighted = slope * majorant[:, None]
        gradient = (weighted @ residual[:, :, None])[:, :, 0]
        hessian = weighted @ slope.transpose(0, 2, 1)
        scale = np.maximum(hessian[:, range(count), range(count)], 1e-12 * np.trace(hessian, axis1=1, axis2=2)[:, None])
        hessian[:, range(count), range(count)] += damping[active, None] * scale + 1e-300
        step = -np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        proposed = np.clip(current + step, LOWER, UPPER)
        after = objective(proposed, here, delta)
        better = after < value[active]
        gain = np.where(better, value[active] - after, 0.0)
        stalled[active] = np.where(gain > tolerance * value[active], 0, stalled[active] + 1)
        theta[active[better]] = proposed[better]
        value[active[better]] = after[better]
        damping[active] = np.where(better, damping[active] / 5, damping[active] * 4).clip(1e-15, 1e12)
        active = active[stalled[active] < 12]
        if not active.size:
            break
    return theta


def polish(theta: Array, points: Points, delta: float) -> Array:
    """Drive one solution (5,) to a stationary point at machine precision; never returns a worse one."""
    # The objective is of the order of delta times the residuals: bring it to the order of one.
    unit = 1.0 / max(float(objective(theta[None], points, delta)[0]), 1e-30)

    def value(x: Array) -> float:
        return unit * float(objective(x[None], points, delta)[0])

    found = optimize.minimize(
        value,
        theta,
        jac=lambda x: unit * gradient(x, points, delta),
        hess=lambda x: unit * exact_hessian(x, points, delta),
        method="trust-exact",
        options={"gtol": 1e-13, "maxiter": 2000},
    )
    inside = np.all((found.x >= LOWER) & (found.x <= UPPER))
    return np.asarray(found.x) if inside and found.fun <= value(theta) else theta


def gradient(theta: Array, points: Points, delta: float) -> Array:
    """Gradient of the objective at one solution (5,)."""
    predicted, shares = log_loss(theta[None], points.log_n, points.log_d)
    bounded = np.clip(predicted[0] - points.log_loss, -delta, delta)
    result: Array = jacobian(shares, points)[0] @ (points.weights * bounded)
    return result


def exact_hessian(theta: Array, points: Points, delta: float) -> Array:
    """Second derivatives of the objective at one solution (5,), those of the law included."""
    predicted, shares = log_loss(theta[None], points.log_n, points.log_d)
    residual = predicted[0] - points.log_loss
    slope = jacobian(shares, points)[0]  # (5, points)
    inside = points.weights * (np.abs(residual) <= delta)
    pull = points.weights * np.clip(residual, -delta, delta)
    # log-sum-exp of terms linear in theta: its Hessian is the covariance of their coefficients under the shares.
    coefficients = np.zeros((3, 5, len(points.log_n)))
    coefficients[0, 0] = coefficients[1, 1] = coefficients[2, 2] = 1.0
    coefficients[0, 3], coefficients[1, 4] = -points.log_n, -points.log_d
    second = np.einsum("tp,tip,tjp->ijp", shares[0], coefficients, coefficients) - slope[:, None] * slope[None]
    result: Array = (slope * inside) @ slope.T + second @ pull
    return result


def scaled_gradient(theta: Array, points: Points, delta: float) -> float:
    """Largest change of the objective, relative to it, that a first-order step of one curvature unit promises."""
    slope = gradient(theta, points, delta)
    predicted, shares = log_loss(theta[None], points.log_n, points.log_d)
    residual = np.maximum(np.abs(predicted[0] - points.log_loss), delta)
    curvature = (jacobian(shares, points)[0] ** 2) @ (points.weights * delta / residual)
    free = ~at_bounds(theta)
    promise = np.abs(slope) / np.sqrt(np.maximum(curvature, 1e-300))
    total = float(objective(theta[None], points, delta)[0])
    return float(np.max(promise[free] / np.sqrt(max(total, 1e-300)), initial=0.0))


def at_bounds(theta: Array) -> NDArray[np.bool_]:
    """Which coordinates lie on a bound."""
    margin = 1e-9 * (UPPER - LOWER)
    result: NDArray[np.bool_] = (theta - LOWER <= margin) | (UPPER - theta <= margin)
    return result


def starts(points: Points, count: int, seed: int) -> Array:
    """`count` starting points (count, 5): exponents spread over 0.05-1, terms sized to the data at its centre."""
    random = np.random.default_rng(seed)
    alpha, beta = np.exp(random.uniform(np.log(0.05), np.log(1.0), (2, count)))
    loss = np.atleast_2d(points.log_loss).mean()
    share = random.dirichlet([1.0, 1.0, 1.0], count)
    logs = loss + np.log(share)
    a = logs[:, 0] + alpha * points.log_n.mean()
    b = logs[:, 1] + beta * points.log_d.mean()
    return np.stack([a, b, logs[:, 2], alpha, beta], axis=1)
