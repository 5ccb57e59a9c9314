"""The compute-optimal frontier of any law of N and D under any cost of a token, for many laws at once.

Under exact FLOPs no closed form splits a budget, and some forms have none under 6ND either: the loss is minimised over
log N, for each law by itself, on a grid and then by golden section.
"""

from dataclasses import dataclass

import numpy as np

from analysis.findings import RefusalError
from analysis.laws.additive import Array
from analysis.laws.forms import Form, no_split
from analysis.laws.token_cost import TokenCost

MOST, LEAST = 1e6, 1e-3
"""Tokens per parameter between which the best split is looked for."""
GRID, SECTIONS = 61, 28
GOLDEN = (np.sqrt(5) - 1) / 2
STEPS = 60
"""Newton steps of a budget; they are quadratic and end after about ten."""


@dataclass(frozen=True)
class Frontier:
    """The best splits of budgets by laws of one form, each with what a token costs it."""

    form: Form
    theta: Array
    """(laws, k)"""
    cost: TokenCost
    coefficients: Array
    """(laws, 3): those of the cost, for each law."""

    def __post_init__(self) -> None:
        if not self.form.splits:
            raise no_split(self.form)

    def best(self, log_c: Array, inference_tokens: float = 0.0) -> tuple[Array, Array, Array]:
        """log N*, log D* and log loss (laws,) of budgets (laws,) that pay for `inference_tokens` as well.

        Where serving costs more than the budget at every size, N* is not a number.
        """

        def tokens(log_n: Array) -> Array:
            with np.errstate(all="ignore"):
                left = np.exp(log_c[:, None] - self.cost.log_per_token(log_n, self.coefficients)) - inference_tokens / 3
                return np.where(left > 0, np.log(left), np.nan)

        def loss(log_n: Array) -> Array:
            log_d = tokens(log_n)
            with np.errstate(all="ignore"):
                return np.nan_to_num(self.log_loss(log_n, log_d), nan=np.inf)

        low, high = 0.5 * (log_c - np.log(6 * MOST)), 0.5 * (log_c - np.log(6 * LEAST))
        grid = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, GRID)
        values = loss(grid)
        rows, lowest = np.arange(len(grid)), values.argmin(axis=1)
        a, b = grid[rows, np.maximum(lowest - 1, 0)], grid[rows, np.minimum(lowest + 1, GRID - 1)]
        left, right = b - GOLDEN * (b - a), a + GOLDEN * (b - a)
        at_left, at_right = loss(left[:, None])[:, 0], loss(right[:, None])[:, 0]
        for _ in range(SECTIONS):
            lower = at_left <= at_right
            a, b = np.where(lower, a, left), np.where(lower, right, b)
            point = np.where(lower, b - GOLDEN * (b - a), a + GOLDEN * (b - a))
            value = loss(point[:, None])[:, 0]
            left, right = np.where(lower, point, right), np.where(lower, left, point)
            at_left, at_right = np.where(lower, value, at_right), np.where(lower, at_left, value)
        best = np.where(np.isfinite(values[rows, lowest]), (a + b) / 2, np.nan)
        log_d = tokens(best[:, None])
        return best, log_d[:, 0], self.log_loss(best[:, None], log_d)[:, 0]

    def budget(self, log_loss: Array, near: Array) -> Array:
        """log C (laws,) at which each frontier has a loss, from guesses `near`; infinite where it never has.

        Along a frontier d log L / d log C is the slope by log D alone (envelope theorem), and log L is convex in
        log C: Newton's method from the dear side falls once to the cheap one and rises from there.
        """
        log_c, open_rows = near.astype(float).copy(), np.arange(len(near))
        found = np.full(len(near), np.inf)
        for _ in range(STEPS):
            here = Frontier(self.form, self.theta[open_rows], self.cost, self.coefficients[open_rows])
            log_n, log_d, value = here.best(log_c[open_rows])
            step = 1e-4
            around = [here.log_loss(log_n[:, None], log_d[:, None] + sign * step)[:, 0] for sign in (-1, 1)]
            slope = (around[1] - around[0]) / (2 * step)
            with np.errstate(all="ignore"):
                change = np.where(slope < 0, (log_loss[open_rows] - value) / slope, np.inf)
            change = np.clip(change, -20.0, 20.0)
            log_c[open_rows] += change
            done = np.abs(change) < 1e-10
            found[open_rows[done]] = log_c[open_rows[done]]
            open_rows = open_rows[~done & (log_c[open_rows] < near[open_rows] + 200.0)]
            if not open_rows.size:
                break
        return found

    def log_loss(self, log_n: Array, log_d: Array) -> Array:
        """Log loss (laws, points) at log N and log D (laws, points), tokens all different."""
        known = {"parameters": log_n, "tokens": log_d, "unique_tokens": log_d}
        if "flops" in self.form.inputs:
            known["flops"] = log_d + self.cost.log_per_token(log_n, self.coefficients)
        missing = set(self.form.inputs) - set(known)
        if missing:
            raise RefusalError("other-inputs", f"{self.form.name} is a law of {', '.join(self.form.inputs)}")
        return self.form.log_loss(self.theta, np.stack([known[name] for name in self.form.inputs]))
