"""Decisions that follow from a fit: how to split a budget, and how much compute one family saves over another.

Every answer is taken per bootstrap draw, so that its interval carries the uncertainty of the whole law.
"""

from dataclasses import dataclass, replace

import numpy as np

from analysis.decisions.frontier import LEAST, MOST, Frontier
from analysis.findings import RefusalError
from analysis.fitting.bootstrap import percentile
from analysis.fitting.fit import Fit

AT_THE_END = 1e-3
"""Distance in log N from the last size that is looked at within which an optimum is none."""


@dataclass(frozen=True)
class Allocation:
    """The split of a budget that gives the lowest loss, each number with its interval at 0.95 over the draws."""

    flops: float
    """The cost of training and of serving `inference_tokens` together."""
    inference_tokens: float
    parameters: float
    parameters_interval: tuple[float, float]
    tokens: float
    tokens_interval: tuple[float, float]
    loss: float
    loss_interval: tuple[float, float]
    extrapolation: float
    """Budget over the largest training compute among the fitted runs."""
    parameters_extrapolation: float
    """N over that of the largest model among the fitted runs."""
    tokens_extrapolation: float
    """D over the most tokens among the fitted runs."""
    beyond: str
    """How far C, N and D lie outside the fitted runs, in words."""

    @property
    def sentence(self) -> str:
        """The split in a line; beyond the runs that were fitted it says how far."""
        low_n, high_n = self.parameters_interval
        low_d, high_d = self.tokens_interval
        low, high = self.loss_interval
        beyond = f"; {self.beyond}" if self.beyond else ""
        return (
            f"N = {self.parameters:.3g} [{low_n:.3g}, {high_n:.3g}], "
            f"D = {self.tokens:.3g} [{low_d:.3g}, {high_d:.3g}], loss {self.loss:.4f} [{low:.4f}, {high:.4f}]{beyond}"
        )


def allocate(fitted: Fit, flops: float, *, inference_tokens: float = 0.0) -> Allocation:
    """Model size and training tokens that minimise the loss when training and inference cost `flops` together.

    A training token costs what the fit's own runs counted (`Fit.token_cost`); the intervals carry how far the sizes
    scatter about that, too. A served token costs a third of it, the forward pass (Sardana et al. 2024, arXiv
    2401.00448). RefusalError where nothing is left for training at any size, or the law has no optimum inside the sizes
    that are looked at.
    """
    if not (np.isfinite(flops) and flops > 0 and np.isfinite(inference_tokens) and inference_tokens >= 0):
        raise RefusalError(
            "no-budget", f"flops {flops} and inference tokens {inference_tokens}: a budget is positive and finite"
        )
    frontier = _frontier(fitted)
    answers = np.exp(frontier.best(np.full(len(frontier.theta), np.log(flops)), inference_tokens))
    if np.isnan(answers).any():
        raise RefusalError(
            "budget-too-small", f"serving {inference_tokens:.3g} tokens alone costs more than {flops:.3g}"
        )
    n, d, loss = (percentile(drawn) for drawn in answers[:, 1:])
    size, budget, lowest = (float(value) for value in answers[:, 0])
    # The sizes that are looked at end where C = 6ND has so many tokens per parameter.
    ends = [np.sqrt(flops / (6 * ratio)) for ratio in (MOST, LEAST)]
    if min(abs(np.log(size / end)) for end in ends) < AT_THE_END:
        raise RefusalError(
            "no-optimum",
            f"no split of {flops:.3g} FLOPs is told: its law has no optimum between {LEAST:g} and {MOST:,.0f} tokens "
            f"per parameter, but falls to the end, N = {size:.3g}",
        )
    asked = {"flops": flops, "parameters": size, "tokens": budget}
    far = [fitted.extrapolation(asked)[name] for name in ("flops", "parameters", "tokens")]
    beyond = fitted.beyond(asked)
    return Allocation(flops, inference_tokens, size, n, budget, d, lowest, loss, far[0], far[1], far[2], beyond)


def exponents_between(fitted: Fit, low: float, high: float) -> dict[str, tuple[float, tuple[float, float]]]:
    """Mean slopes by log C of log N* (`parameters`) and log D* (`tokens`) between two budgets, with their intervals.

    A token costs what the fit's runs counted. Under C = 6ND the first is the closed form beta/(alpha + beta) at any two
    budgets, and both add up to 1; under exact FLOPs they depend on the budgets.
    """
    if not 0 < low < high:
        raise RefusalError("one-budget", f"no slope between budgets of {low:.3g} and {high:.3g} FLOPs")
    frontier = _frontier(fitted)
    ends = [frontier.best(np.full(len(frontier.theta), np.log(flops))) for flops in (low, high)]
    slopes = [(ends[1][place] - ends[0][place]) / np.log(high / low) for place in (0, 1)]
    return {
        name: (float(slope[0]), percentile(slope[1:]))
        for name, slope in zip(("parameters", "tokens"), slopes, strict=True)
    }


def _frontier(fitted: Fit) -> Frontier:
    """Of the law and, after it, of each draw, a token costing what the fit's own runs counted."""
    cost = fitted.token_cost
    coefficients = np.concatenate([cost.coefficients[None], cost.draws(len(fitted.draws))])
    theta = np.concatenate([fitted.theta[None], fitted.draws])
    return Frontier(fitted.form, theta, cost, coefficients)


@dataclass(frozen=True)
class ComputeMultiplier:
    """How many times the compute of `challenger` the `baseline` needs for the same loss."""

    baseline: str
    challenger: str
    flops: float
    """Compute of the baseline, spent optimally."""
    value: float
    interval: tuple[float, float]
    unreachable: float
    """Share of draws in which the challenger never reaches the baseline's loss; they count as a multiplier of 0."""
    beyond: str = ""
    """How far both budgets lie outside the runs of their families, in words."""

    @property
    def sentence(self) -> str:
        """The comparison in a line."""
        low, high = self.interval
        return (
            f"{self.baseline} needs {self.value:.3g} [{low:.3g}, {high:.3g}] times the compute of {self.challenger} "
            f"for the loss it reaches at {self.flops:.3g} FLOPs" + (f"; {self.beyond}" if self.beyond else "")
        )


def compute_multiplier(baseline: Fit, challenger: Fit, flops: float) -> ComputeMultiplier:
    """Compare two families at equal loss, each at its compute-optimal split at the cost that its own runs counted.

    Draws are paired by position: the families' runs are independent, so that any pairing gives the same distribution.
    """
    if not (np.isfinite(flops) and flops > 0):
        raise RefusalError("no-budget", f"flops {flops}: a budget is positive and finite")
    count = min(len(baseline.draws), len(challenger.draws)) + 1
    first, second = (_frontier(replace(one, draws=one.draws[: count - 1])) for one in (baseline, challenger))
    log_c = np.full(count, np.log(flops))
    *_, log_loss = first.best(log_c)
    multiples = np.exp(log_c - second.budget(log_loss, log_c))
    unreachable = float(np.mean(multiples[1:] == 0))
    interval, value = percentile(multiples[1:]), float(multiples[0])
    budgets = [(baseline, flops)] + ([(challenger, flops / value)] if value > 0 else [])
    told = [f"{one.family}: {said}" for one, budget in budgets if (said := one.beyond({"flops": budget}))]
    return ComputeMultiplier(baseline.family, challenger.family, flops, value, interval, unreachable, "; ".join(told))
