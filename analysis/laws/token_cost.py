"""What a training token costs at N parameters, smoothly in N, from runs of a few sizes.

Shapes of nearly equal N differ in depth and width, so that exact FLOPs over 6N jump from size to size. Interpolated
through every size, the cheapest shapes are knots to which the best split of any budget sticks; a smooth rule is what
one may extrapolate.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from analysis.laws.additive import Array

FADING = 0.5
"""Beyond the sizes trained, log(C / 6ND) goes on from its slope at the end, which fades as N^-1/2: so do the shares of
attention and of the head, which grow with width, in models whose parameters grow with its square."""


@dataclass(frozen=True)
class TokenCost:
    """log(C / 6ND) as a polynomial in log N: a constant, a line or a parabola, as the sizes tell."""

    coefficients: Array
    """(3,): constant, slope and curvature about `center`."""
    covariance: Array
    """(3, 3): of the coefficients, from the scatter of the sizes about the curve; zero where there is none."""
    center: float
    ends: tuple[float, float]
    """log N of the smallest and the largest size, about `center`."""

    @classmethod
    def of(cls, parameters: Array, tokens: Array, flops: Array) -> "TokenCost":
        """Of runs, (runs,) each; every size counts once, by the mean of its runs."""
        sizes, index = np.unique(parameters, return_inverse=True)
        count = np.bincount(index)
        excess = np.bincount(index, np.log(flops / tokens / (6 * parameters))) / count
        center = float(np.mean(np.log(sizes)))
        x = np.log(sizes) - center
        # A trend is taken where it halves the variance that is left: the jags of few sizes are no trend.
        design, found, variance = _polynomial(x, excess, 0)
        for degree in (1, 2):
            if len(x) > degree + 1 or len(x) == 2 == degree + 1:
                higher = _polynomial(x, excess, degree)
                if higher[2] <= variance / 2:
                    design, found, variance = higher
        coefficients, covariance = np.zeros(3), np.zeros((3, 3))
        size = len(found)
        coefficients[:size] = found
        covariance[:size, :size] = variance * np.linalg.pinv(design.T @ design)
        return cls(coefficients, covariance, center, (float(x[0]), float(x[-1])))

    def per_token(self, parameters: ArrayLike) -> Array:
        """FLOPs per token of models of N parameters; broadcasts."""
        return np.exp(self.log_per_token(np.log(np.asarray(parameters, float))))

    def log_per_token(self, log_n: Array, coefficients: Array | None = None) -> Array:
        """Logarithm of FLOPs per token at log N; with `coefficients` (problems, 3), `log_n` is (problems, points)."""
        if coefficients is None:
            constant, slope, curvature = self.coefficients
        else:
            constant, slope, curvature = coefficients.T[:, :, None]
        x = log_n - self.center
        inside = np.clip(x, *self.ends)
        beyond = x - inside
        faded = np.sign(beyond) * -np.expm1(-FADING * np.abs(beyond)) / FADING
        excess = constant + slope * inside + curvature * inside**2 + (slope + 2 * curvature * inside) * faded
        return np.asarray(np.log(6) + log_n + excess)

    def draws(self, count: int) -> Array:
        """Coefficients (count, 3) that the scatter of the sizes allows for, the same at every call."""
        values, vectors = np.linalg.eigh(self.covariance)
        normal = np.random.default_rng(2).normal(size=(count, 3))
        return np.asarray(self.coefficients + normal * np.sqrt(np.maximum(values, 0.0)) @ vectors.T)


def _polynomial(x: Array, y: Array, degree: int) -> tuple[Array, Array, float]:
    """The columns of the least squares, the coefficients, and the variance left per degree of freedom."""
    design = np.vander(x, degree + 1, increasing=True)
    found, *_ = np.linalg.lstsq(design, y, rcond=None)
    left = y - design @ found
    return np.asarray(design), np.asarray(found), float(left @ left) / max(len(x) - degree - 1, 1)
