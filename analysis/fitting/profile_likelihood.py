"""Profile likelihood: for which values of one parameter can the others still explain the data?

Where a parameter is weakly identified its bootstrap draws pile up on bounds and its interval says little; the profile
shows the valley itself, and says so where the data set no limit on a side (Raue et al. 2009).
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy import optimize, special

from analysis.data.quality import usable
from analysis.findings import RefusalError
from analysis.fitting import newton
from analysis.fitting.bootstrap import TAILS
from analysis.fitting.newton import LOWER, UPPER
from analysis.fitting.problem import Problem, Structured
from analysis.fitting.regression import STARTS
from analysis.laws.additive import Array
from analysis.laws.forms import Form
from analysis.laws.objectives import HUBER, Objective

PROFILED = ("E", "alpha", "beta", "gamma")
"""Coordinates that mean the same whichever units N and D are counted in."""
STEPS = 40
"""Values on each side of the optimum, denser near it."""


@dataclass(frozen=True)
class LikelihoodProfile:
    """The best objective at each value of one parameter, as a likelihood ratio, and the values that pass."""

    parameter: str
    values: Array
    """(values,): ascending; the optimum is among them."""
    ratio: Array
    """(values,): twice the difference of log likelihoods from the optimum, 0 there."""
    threshold: float
    """The largest ratio within the interval."""
    interval: tuple[float, float]
    """Where the ratio crosses the threshold; the parameter's bound where it does not."""
    open_below: bool
    """Whether the data set no lower limit."""
    open_above: bool


def profile(frame: pl.DataFrame, form: Form, parameter: str, objective: Objective = HUBER) -> LikelihoodProfile:
    """Profile `parameter` (E, alpha, beta or gamma) of `form` over the rows that are not excluded.

    The likelihood is the objective's own with its scale profiled out, exp(-rho(r)/s): the ratio is 2 n p log(S(v) / S)
    with p as in `Objective.power`. The threshold is that of a t interval where the law is linear and the errors normal,
    n log(1 + t² / (n - k)), which tends to chi-squared's 3.84. Raises RefusalError for a form without `structure`, a
    parameter it does not have, runs that share trunks (their errors are not independent), and data without noise.
    """
    rows = usable(frame)
    problem = Problem.of(rows, form, objective)
    can = [name for name in problem.names if name in PROFILED] if isinstance(problem, Structured) else []
    if not isinstance(problem, Structured) or parameter not in can:
        told = f"of {form.name} can be profiled: {', '.join(can) or 'nothing'}"
        raise RefusalError("not-profiled", f"{parameter!r} cannot be profiled; {told}")
    if "cluster" in rows.columns and rows["cluster"].drop_nulls().is_duplicated().any():
        raise RefusalError(
            "shared-trunks", "runs share trunks: their errors are not independent, as a likelihood needs"
        )
    column, size = problem.names.index(parameter), len(problem.names)
    if rows.height <= size:
        raise RefusalError("too-few-points", f"{rows.height} runs leave no freedom beside {size} parameters")
    ends = problem.search(STARTS, seed=0)
    best, least = ends.free[ends.best], float(ends.value[ends.best])
    if least < 1e-20 * rows.height:
        raise RefusalError("no-noise", "the law meets every point: there is no error to compare a likelihood with")

    freedom = rows.height - size
    quantile = float(special.stdtrit(freedom, TAILS[1]))
    threshold = float(rows.height * np.log1p(quantile**2 / freedom))
    coordinate = problem.structure.free[column]
    top = float(np.exp(problem.measured.max()) if objective.logarithmic else problem.measured.max())
    ends_at = float(LOWER[coordinate]), float(UPPER[coordinate] if np.isfinite(UPPER[coordinate]) else top)
    valley = _Valley(problem, column, best, least)
    below, ratio_below, low = valley.side(ends_at[0], threshold)
    above, ratio_above, high = valley.side(ends_at[1], threshold)
    return LikelihoodProfile(
        parameter,
        np.array([*below[::-1], *above[1:]]),
        np.array([*ratio_below[::-1], *ratio_above[1:]]),
        threshold,
        (ends_at[0] if low is None else low, ends_at[1] if high is None else high),
        low is None,
        high is None,
    )


@dataclass(frozen=True)
class _Valley:
    """The optimum over all other coordinates as one of them, `column`, is moved."""

    problem: Structured
    column: int
    best: Array
    least: float

    def at(self, value: float, near: Array) -> tuple[float, Array]:
        """The ratio at one value, and where the others end: from `near`, or from the optimum."""
        begin = np.stack([near, self.best])
        begin[:, self.column] = value
        there = newton.minimise(begin, self.problem.points, held=self.column)
        lost = np.log(float(there.value[there.best]) / self.least)
        return float(2 * len(self.problem.measured) * self.problem.objective.power * lost), there.free[there.best]

    def side(self, bound: float, threshold: float) -> tuple[list[float], list[float], float | None]:
        """Values from the optimum to `bound`, their ratios, and where the threshold is crossed, if it is."""
        values, ratios, near = [float(self.best[self.column])], [0.0], self.best
        crossing = None
        for share in np.linspace(0, 1, STEPS + 1)[1:] ** 3:
            values.append(float(values[0] + share * (bound - values[0])))
            found, near = self.at(values[-1], near)
            ratios.append(found)
            if crossing is None and found > threshold:
                crossing = optimize.brentq(self._excess, values[-2], values[-1], args=(near, threshold), rtol=1e-6)
            if found > 4 * threshold:
                break
        return values, ratios, crossing

    def _excess(self, value: float, near: Array, threshold: float) -> float:
        return self.at(value, near)[0] - threshold
