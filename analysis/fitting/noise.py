"""Whether the scatter of runs about a law depends on their compute.

The scale of the residuals is taken to be a power of C, fitted by the likelihood of exponentially distributed sizes:
that of least absolute deviations, and consistent for errors of another shape (Glejser 1969; Machado & Santos Silva
2000).
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from analysis.fitting.fit import Fit
from analysis.fitting.linear import orthonormal
from analysis.laws.additive import Array

SURPRISING = 0.001
"""Chance of so steep a slope, were there none, below which it is believed: weights that chance alone asks for harm."""
LEAST_FREEDOM = 5
"""Runs beyond the parameters below which nothing is said of how they scatter."""
STEPS = 50
MOST_LEVERAGE = 0.98
"""Share of a run's error that the fit is taken to follow at most."""


@dataclass(frozen=True)
class Growth:
    """The scatter goes as C to `exponent`."""

    exponent: float
    error: float
    """The exponent's standard error."""
    chance: float
    """That residuals whose scatter does not depend on C show as steep a slope."""

    @property
    def is_believed(self) -> bool:
        return self.chance < SURPRISING


def growth(fitted: Fit) -> Growth | None:
    """The power of C that the residuals go with, as the fit weighted them; None where there is nothing to tell it by.

    Residuals are as large as they would be had the fit not bent to their runs: r / (1 - h)^(1/2), h the leverage.
    """
    used = fitted.used
    x = np.log(used["flops"].to_numpy())
    x = x - x.mean()
    scale = scales(fitted)
    slopes = fitted.slopes * (1 / scale)[:, None]
    if not np.isfinite(slopes).all():  # as at the end of what its parameters may be
        return None
    leverage = (orthonormal(slopes) ** 2).sum(axis=1)
    size = np.abs(fitted.residuals) / scale / np.sqrt(1 - np.minimum(leverage, MOST_LEVERAGE))
    freedom = used.height - len(fitted.form.coordinates) - 2
    if freedom < LEAST_FREEDOM or np.ptp(x) == 0 or not size.sum() > 1e-12:
        return None
    slope = 0.0
    for _ in range(STEPS):  # of the convex log sum |r| exp(-slope x)
        logs = np.log(np.maximum(size, 1e-300)) - slope * x
        share = np.exp(logs - logs.max())
        share /= share.sum()
        mean = float(share @ x)
        step = float(np.clip(mean / max(float(share @ (x - mean) ** 2), 1e-12), -0.5, 0.5))
        slope += step
        if abs(step) < 1e-10:
            break
    relative = used.height * share  # |r| over its scale
    unseen = 1 - 1 / used.height - x**2 / (x @ x)  # of the slope's own residuals (HC3; MacKinnon & White 1985)
    error = float(np.sqrt((x**2 * ((relative - 1) / unseen) ** 2).sum()) / (x**2 * relative).sum())
    chance = 2 * float(special.stdtr(freedom, -abs(slope) / error)) if error > 0 else 1.0
    return Growth(fitted.noise_exponent + slope, error, chance)


def scattered(fitted: Fit) -> Fit:
    """The fit, with how its scatter goes with compute: what a new run far away does is uncertain by that, too."""
    found = growth(fitted)
    return fitted if found is None else replace(fitted, scatter=(found.exponent, found.error))


def scales(fitted: Fit) -> Array:
    """How large each run's error is taken to be beside the others': (runs,)."""
    used = fitted.used
    x = np.log(used["flops"].to_numpy())
    weights = used["weight"].to_numpy() if "weight" in used.columns else np.ones(used.height)
    return np.asarray(np.exp(fitted.noise_exponent * (x - x.mean())) * weights**-fitted.objective.power)
