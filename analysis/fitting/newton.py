"""Thousands of robust fits at once: from many starts, or to many resamples, vectorised over them and exact at the end.

Every form here is a special case of

    T(N, D) = E + (A (N/N0)^-alpha + B (D/D0)^-beta)^gamma

about the geometric means N0 and D0 of the data: in these coordinates the model is linear in A, B and E for gamma = 1,
and the valleys in which descents in (log A, log E) creep are nearly straight. Each problem descends by itself, by
Newton's method with the exact Hessian under Levenberg-Marquardt damping; the first steps use the Hessian of the
quadratic that majorises the objective (weights rho'(r)/r), which is positive definite wherever one starts.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from analysis.fitting.linear import solve
from analysis.laws.additive import SMALLEST, Array
from analysis.laws.objectives import Objective
from analysis.laws.structure import Structure

LOWER = np.array([SMALLEST, SMALLEST, SMALLEST, 1e-3, 1e-3, 0.05])
UPPER = np.array([np.inf, np.inf, np.inf, 3.0, 3.0, 5.0])
"""Bounds of the coordinates: wide, there to be reported when hit."""
BLOCK = 16_384
"""Points times problems evaluated at once: what stays in a core's second-level cache."""
PATIENCE = 12
"""Steps in a row that may gain nothing before a problem is left."""


@dataclass(frozen=True)
class Points:
    """What is fitted: logarithms of N and D about their means (points,); the others (points,) or (problems, points)."""

    x: Array
    y: Array
    measured: Array
    """Log loss or loss, whichever the objective's residuals are of."""
    weights: Array
    structure: Structure
    objective: Objective

    @cached_property
    def columns(self) -> tuple[Array, Array, Array]:
        """(1, x, x²), (1, y, y²) and (1, x, y, xy), each (points, columns): what sums over points are products with."""
        x, y = self.x, self.y
        one = np.ones_like(x)
        return (
            np.stack([one, x, x * x], axis=1),
            np.stack([one, y, y * y], axis=1),
            np.stack([one, x, y, x * y], axis=1),
        )

    def blocks(self, rows: NDArray[np.intp]) -> Iterator[tuple[slice, Array, Array]]:
        """The problems `rows` in pieces that fit in cache, each with what was measured and its weights."""
        size = max(1, BLOCK // len(self.x))
        for begin in range(0, len(rows), size):
            piece = rows[begin : begin + size]
            yield (
                slice(begin, begin + size),
                self.measured[piece] if self.measured.ndim == 2 else self.measured,
                self.weights[piece] if self.weights.ndim == 2 else self.weights,
            )


@dataclass(frozen=True)
class Minima:
    """Where each problem ended."""

    free: Array
    """(problems, k): the free coordinates."""
    value: Array
    """(problems,): the objective; infinite where it could not be evaluated at the start."""
    scaled_gradient: Array
    """(problems,): the largest slope of a coordinate not at a bound, by the root of objective times curvature."""
    at_bounds: NDArray[np.bool_]
    """(problems, k): which coordinates lie on a bound."""

    @property
    def best(self) -> int:
        """The problem with the least objective."""
        return int(np.argmin(self.value))


def minimise(
    free: Array,
    points: Points,
    *,
    held: int | None = None,
    majorised: int = 3,
    iterations: int = 1000,
    tolerance: float = 1e-13,
) -> Minima:
    """Minimise from every row of `free` (problems, k) by itself, within the bounds; column `held` stays as it is.

    A problem ends when the reduction predicted for its next step is below `tolerance`, relative to the objective, or
    when PATIENCE steps in a row have gained nothing.
    """
    which = points.structure.free
    lower, upper = LOWER[which], UPPER[which]
    free = np.clip(free, lower, upper)
    problems, size = free.shape
    diagonal = np.arange(size)
    value, damping, stalled = np.full(problems, np.inf), np.full(problems, 1e-2), np.zeros(problems, int)
    gradient, hessian = np.zeros((problems, size)), np.zeros((problems, size, size))
    proposed = free.copy()
    active = np.arange(problems)
    for iteration in range(iterations):
        with np.errstate(all="ignore"):  # a step too far has an infinite objective and is not taken
            after, slope, second = _evaluate(proposed, active, points, iteration < majorised)
        better = after < value[active]
        gain = np.where(better, value[active] - after, 0.0)
        stalled[active] = np.where(gain > 1e-15 * value[active], 0, stalled[active] + 1)
        taken = active[better]
        free[taken], value[taken] = proposed[better], after[better]
        gradient[taken], hessian[taken] = slope[better], second[better]
        if iteration:
            damping[active] = np.where(better, damping[active] * 0.3, damping[active] * 10).clip(1e-12, 1e8)
        else:
            active = active[np.isfinite(value)]
        here, slope_here, curvature = free[active], gradient[active], hessian[active]
        fixed = ((here <= lower) & (slope_here > 0)) | ((here >= upper) & (slope_here < 0))
        if held is not None:
            fixed[:, held] = True
        slope_here[fixed] = 0.0
        curvature[fixed[:, :, None] | fixed[:, None, :]] = 0.0
        scale = np.abs(curvature[:, diagonal, diagonal])
        scale = np.maximum(scale, 1e-12 * scale.max(axis=1, keepdims=True)) + 1e-300
        curvature[:, diagonal, diagonal] += damping[active, None] * scale
        step = -solve(curvature, slope_here)
        predicted_reduction = np.abs((slope_here * step).sum(axis=1))
        # A coefficient falls at most to a tenth in one step: the model is linear in it, its logarithm is not.
        floor = np.where(np.array(which) < 3, np.where(here > 1e-6, 0.1 * here, lower), lower)
        proposed = np.minimum(np.maximum(here + step, floor), upper)
        done = (predicted_reduction <= 2 * tolerance * value[active]) & (damping[active] < 1) & (iteration >= majorised)
        going = ~done & (stalled[active] < PATIENCE)
        active, proposed = active[going], proposed[going]
        if not active.size:
            break
    margin = 1e-9
    at_bounds = (free <= lower * (1 + margin)) | (free >= upper * (1 - margin))
    return Minima(free, value, _scaled_gradient(free, points, at_bounds), at_bounds)


def descend_in_stages(free: Array, points: Points) -> Minima:
    """`minimise` from remote starts: first a few steps on smoother objectives, whose valleys have no kinks."""
    delta = points.objective.delta
    if delta is None:
        return minimise(free, points)
    smooth, softer = (replace(points, objective=replace(points.objective, delta=to)) for to in (None, 10 * delta))
    free = minimise(free, smooth, iterations=12, tolerance=1e-5).free
    free = minimise(free, softer, majorised=0, iterations=4, tolerance=1e-5).free
    return minimise(free, points, majorised=0)


def starts(points: Points, count: int, seed: int) -> Array:
    """Free coordinates (count, k): exponents log-uniform over 0.05-1, E below the least loss, A and B to match.

    Given exponents and E, A and B are the least squares of the relative error of (L - E)^(1/gamma).
    """
    random, structure = np.random.default_rng(seed), points.structure
    loss = np.exp(points.measured) if points.objective.logarithmic else points.measured
    six = np.tile(structure.constant, (count, 1))
    fitted = np.asarray(structure.matrix.any(axis=1))
    drawn = np.exp(random.uniform(np.log(0.05), np.log(1.0), (count, 2)))
    six[:, 3:5] = np.where(fitted[3:5], drawn, six[:, 3:5])
    if structure.coupled:
        six[:, 5] = np.exp(random.uniform(np.log(0.1), np.log(2.0), count))
    if fitted[2]:
        six[:, 2] = random.uniform(0.0, 0.98, count) * loss.min()
    six = structure.expand(six[:, structure.free])
    target = (loss - six[:, 2:3]) ** (1 / six[:, 5:6])
    u, v = np.exp(-six[:, 3:4] * points.x) / target, np.exp(-six[:, 4:5] * points.y) / target
    if fitted[0] and fitted[1]:
        uu, uv, vv = (u * u).sum(1), (u * v).sum(1), (v * v).sum(1)
        determinant = np.maximum(uu * vv - uv * uv, 1e-12 * uu * vv)
        a = (vv * u.sum(1) - uv * v.sum(1)) / determinant
        b = (uu * v.sum(1) - uv * u.sum(1)) / determinant
    else:
        a, b = u.sum(1) / (u * u).sum(1), v.sum(1) / (v * v).sum(1)
    # Where the best coefficient is negative the other one does all; it starts at a hundredth of that.
    alone_a, alone_b = u.sum(1) / (u * u).sum(1), v.sum(1) / (v * v).sum(1)
    six[:, 0], six[:, 1] = np.where(a > 0, a, 0.01 * alone_a), np.where(b > 0, b, 0.01 * alone_b)
    return np.asarray(six[:, structure.free])


def residuals(free: Array, points: Points) -> Array:
    """Predicted minus measured, of log loss or loss, for each row of `free` (problems, k): (problems, points)."""
    a, b, e, alpha, beta, gamma = (column[:, None] for column in points.structure.expand(free).T)
    predicted = e + (a * np.exp(-alpha * points.x) + b * np.exp(-beta * points.y)) ** gamma
    return np.asarray((np.log(predicted) if points.objective.logarithmic else predicted) - points.measured)


def slopes(free: Array, points: Points) -> Array:
    """Derivatives of the residuals by the free coordinates at one solution (k,): (points, k)."""
    a, b, e, alpha, beta, gamma = points.structure.expand(free)
    u, v = np.exp(-alpha * points.x), np.exp(-beta * points.y)
    inner = a * u + b * v
    power = inner**gamma
    chain = gamma * power / inner
    by_terms = [chain * u, chain * v, np.ones_like(u), -chain * a * points.x * u, -chain * b * points.y * v]
    by_total = 1 / (e + power) if points.objective.logarithmic else np.ones_like(u)
    by_six = np.stack([*by_terms, power * np.log(inner)], axis=1)
    return np.asarray((by_six * by_total[:, None]) @ points.structure.matrix)


def _scaled_gradient(free: Array, points: Points, at_bounds: NDArray[np.bool_]) -> Array:
    with np.errstate(all="ignore"):
        value, slope, hessian = _evaluate(free, np.arange(len(free)), points, True)
    size = np.arange(free.shape[1])
    predicted_reduction = np.abs(slope) / np.sqrt(np.maximum(hessian[:, size, size], 1e-300))
    predicted_reduction[at_bounds] = 0.0
    # Below rounding of the residuals there is nothing left to gain.
    noise = len(points.x) * 1e-30 * max(1.0, float(points.measured.max()) ** 2)
    return np.asarray(predicted_reduction.max(axis=1) / np.sqrt(np.maximum(value, noise)))


def _evaluate(free: Array, rows: NDArray[np.intp], points: Points, majorised: bool) -> tuple[Array, Array, Array]:
    """Objective, gradient and Hessian by the free coordinates of the problems `rows`, block by block."""
    size, structure = free.shape[1], points.structure
    value, gradient, hessian = np.empty(len(free)), np.empty((len(free), size)), np.empty((len(free), size, size))
    for piece, measured, weights in points.blocks(rows):
        six = structure.expand(free[piece])
        value[piece], slope, curvature = _derivatives(six, points, measured, weights, majorised=majorised)
        gradient[piece] = slope @ structure.matrix
        hessian[piece] = structure.matrix.T @ curvature @ structure.matrix
    return value, gradient, hessian


def _derivatives(
    six: Array, points: Points, measured: Array, weights: Array, *, majorised: bool
) -> tuple[Array, Array, Array]:
    """Value (m,), gradient (m, 6) and Hessian (m, 6, 6) of the objective; those by gamma only where it is fitted.

    With u = (N/N0)^-alpha, v = (D/D0)^-beta, S = A u + B v: every derivative is a sum over points of weights times u, v
    and powers of log N and log D, so that the sums are matrix products with a few columns that all problems share.
    """
    x, y, objective, coupled = points.x, points.y, points.objective, points.structure.coupled
    a, b, e, alpha, beta, gamma = (six[:, i : i + 1] for i in range(6))
    u, v = np.exp(-alpha * x), np.exp(-beta * y)
    inner = a * u
    inner += b * v
    if coupled:
        log_inner = np.log(inner)
        power = np.exp(gamma * log_inner)
        chain = gamma * power / inner  # dT/dS
        total = power + e
    else:
        total = inner + e
    if objective.logarithmic:
        residual = np.log(total)
        residual -= measured
        z = np.divide(1.0, total, out=total)  # derivative of the residual by T
        u *= z
        v *= z
    else:
        residual = total - measured
        z = np.ones_like(total)
    clipped = objective.clip(residual)
    weighted_residual = weights * objective.side(residual) * clipped
    value = np.einsum("ij,ij->i", weighted_residual, residual - 0.5 * clipped)
    if majorised:
        curvature = weights * objective.weights(residual)
    else:
        curvature = weights * objective.curvature(residual)
        if objective.logarithmic:
            curvature = curvature - weighted_residual
    across = curvature
    if coupled:
        u *= chain
        v *= chain
        by_gamma = z * power * log_inner
        if not majorised:
            across = curvature + weighted_residual * (gamma - 1) / (gamma * power * z)
    of_x, of_y, of_both = points.columns
    a, b = a[:, 0], b[:, 0]
    gradient_u, gradient_v = (weighted_residual * u) @ of_x, (weighted_residual * v) @ of_y
    gradient = np.zeros((len(six), 6))
    gradient[:, 0], gradient[:, 1] = gradient_u[:, 0], gradient_v[:, 0]
    gradient[:, 2] = np.einsum("ij,ij->i", weighted_residual, z)
    gradient[:, 3], gradient[:, 4] = -a * gradient_u[:, 1], -b * gradient_v[:, 1]
    curvature_u, curvature_v = across * u, across * v
    uu, uv, vv = (curvature_u * u) @ of_x, (curvature_u * v) @ of_both, (curvature_v * v) @ of_y
    curvature_z = curvature * z
    uz, vz, zz = (curvature_z * u) @ of_x[:, :2], (curvature_z * v) @ of_y[:, :2], np.einsum("ij,ij->i", curvature_z, z)
    second_u, second_v = (0.0 * gradient_u, 0.0 * gradient_v) if majorised else (gradient_u, gradient_v)
    entries = {
        (0, 0): uu[:, 0],
        (0, 1): uv[:, 0],
        (0, 2): uz[:, 0],
        (0, 3): -a * uu[:, 1] - second_u[:, 1],
        (0, 4): -b * uv[:, 2],
        (1, 1): vv[:, 0],
        (1, 2): vz[:, 0],
        (1, 3): -a * uv[:, 1],
        (1, 4): -b * vv[:, 1] - second_v[:, 1],
        (2, 2): zz,
        (2, 3): -a * uz[:, 1],
        (2, 4): -b * vz[:, 1],
        (3, 3): a * a * uu[:, 2] + a * second_u[:, 2],
        (3, 4): a * b * uv[:, 3],
        (4, 4): b * b * vv[:, 2] + b * second_v[:, 2],
    }
    if coupled:
        gradient[:, 5] = np.einsum("ij,ij->i", weighted_residual, by_gamma)
        mixed = curvature * by_gamma
        last = np.einsum("ij,ij->i", mixed, by_gamma)
        entries[2, 5] = np.einsum("ij,ij->i", mixed, z)
        if not majorised:
            last += np.einsum("ij,ij->i", weighted_residual * by_gamma, log_inner)
            mixed = mixed + weighted_residual * (1 + gamma * log_inner) / gamma
        mixed_u, mixed_v = (mixed * u) @ of_x[:, :2], (mixed * v) @ of_y[:, :2]
        entries[0, 5], entries[3, 5] = mixed_u[:, 0], -a * mixed_u[:, 1]
        entries[1, 5], entries[4, 5] = mixed_v[:, 0], -b * mixed_v[:, 1]
        entries[5, 5] = last
    hessian = np.zeros((len(six), 6, 6))
    for (row, column), sums in entries.items():
        hessian[:, row, column] = hessian[:, column, row] = sums
    return value, gradient, hessian
