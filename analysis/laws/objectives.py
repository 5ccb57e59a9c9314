"""What a fit minimises: a loss of residuals, summed over points and never averaged.

A mean of values around 1e-5 stops optimisers with absolute tolerances before they have moved.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from analysis.findings import RefusalError
from analysis.laws.additive import Array
from xlstm.quantities import nearest


@dataclass(frozen=True)
class Objective:
    """The sum over points of rho of the residual, predicted minus measured.

    `logarithmic` says whether residuals are of log loss. Beyond `delta` the loss grows linearly (Huber 1964), from 1e-3
    on in Hoffmann et al. 2022, appendix D.3; None is least squares. `overestimate` multiplies the loss of points that
    the law puts too high: 1 is symmetric.
    """

    logarithmic: bool = True
    delta: float | None = 1e-3
    overestimate: float = 1.0

    @property
    def name(self) -> str:
        """In words, as every output states it."""
        kind = "least squares" if self.delta is None else f"Huber with delta {short(self.delta)}"
        side = "" if self.overestimate == 1 else f", overestimates weighted {short(self.overestimate)}"
        return f"{kind} on {'log loss' if self.logarithmic else 'loss'}{side}"

    @classmethod
    def of(cls, name: str) -> "Objective":
        """The objective that is called so: `name`, read back."""
        kind, _, rest = name.partition(" on ")
        what, _, side = rest.partition(", overestimates weighted ")
        delta = None if kind == "least squares" else float(kind.removeprefix("Huber with delta "))
        return cls(what == "log loss", delta, float(side or 1))

    @property
    def power(self) -> float:
        """p for which the likelihood's normaliser goes as scale^p: 1 with linear tails, 1/2 for squares."""
        return 0.5 if self.delta is None else 1.0

    def clip(self, residual: Array) -> Array:
        """The residual within delta, delta beyond: rho' of symmetric Huber."""
        return residual if self.delta is None else np.clip(residual, -self.delta, self.delta)

    def side(self, residual: Array) -> Array | float:
        """The weight of each residual's side."""
        return 1.0 if self.overestimate == 1 else np.where(residual > 0, self.overestimate, 1.0)

    def values(self, residual: Array) -> Array:
        """Loss of each residual."""
        clipped = self.clip(residual)
        return np.asarray(self.side(residual) * clipped * (residual - 0.5 * clipped))

    def weights(self, residual: Array) -> Array:
        """rho'(r)/r: the weights of the least-squares problem with the same gradient."""
        if self.delta is None:
            return np.asarray(self.side(residual) * np.ones_like(residual))
        return np.asarray(self.side(residual) * (self.delta / np.maximum(np.abs(residual), self.delta)))

    def curvature(self, residual: Array) -> Array:
        """rho''(r): 1 within delta, 0 beyond, times the side's weight."""
        inside = np.ones_like(residual) if self.delta is None else (np.abs(residual) <= self.delta).astype(float)
        return np.asarray(self.side(residual) * inside)


def short(number: float) -> str:
    """Six digits where they say the number exactly, else all of them."""
    return f"{number:g}" if float(f"{number:g}") == number else repr(number)


HUBER = Objective()
LEAST_SQUARES = Objective(logarithmic=False, delta=None)
LEAST_SQUARES_OF_LOG = Objective(delta=None)
OBJECTIVES = {"huber": HUBER, "least-squares": LEAST_SQUARES, "least-squares-of-log": LEAST_SQUARES_OF_LOG}
"""What can be asked for by name: Huber's loss of log loss, and the squares of loss or of log loss."""


def find(name: str, delta: float | None = None) -> Objective:
    """The objective of that name, Huber's with another `delta` where given.

    RefusalError that names the nearest one, or for a delta that is not positive and finite, or has no use.
    """
    if name not in OBJECTIVES:
        raise RefusalError("no-such-objective", f"no objective `{name}`; {nearest(name, OBJECTIVES)}")
    if delta is None:
        return OBJECTIVES[name]
    if name != "huber":
        raise RefusalError("no-delta", f"{name} has no delta; huber has")
    if not (math.isfinite(delta) and delta > 0):
        raise RefusalError("no-delta", f"delta {delta:g}: write a positive number, such as 1e-3")
    return replace(HUBER, delta=delta)
