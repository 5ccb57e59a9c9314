"""Decisions that follow from a fit: how to split a budget, and how much compute one family saves over another.

Every answer is taken per bootstrap draw, so that its interval carries the uncertainty of the whole law.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from analysis.findings import RefusalError
from analysis.fitting.fit import TAILS, Fit, percentile, six_n
from analysis.laws.additive import Array
from analysis.laws.forms import Law

GRID = 4001
TrainingCost = Callable[[Array], Array]
"""Training FLOPs per token of models of N parameters."""


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

    @property
    def sentence(self) -> str:
        """The split in a line; beyond the runs that were fitted it says how far."""
        (low_n, high_n), (low_d, high_d), (low, high) = (
            self.parameters_interval,
            self.tokens_interval,
            self.loss_interval,
        )
        beyond = f"; {self.extrapolation:.3g} times the compute of the largest run" if self.extrapolation > 1 else ""
        return (
            f"N = {self.parameters:.3g} [{low_n:.3g}, {high_n:.3g}], "
            f"D = {self.tokens:.3g} [{low_d:.3g}, {high_d:.3g}], loss {self.loss:.4f} [{low:.4f}, {high:.4f}]{beyond}"
        )


def allocate(
    fitted: Fit, flops: float, *, inference_tokens: float = 0.0, training_cost: TrainingCost = six_n
) -> Allocation:
    """Model size and training tokens that minimise the loss when training and inference cost `flops` together.

    `training_cost(N)` is FLOPs per training token, from exact counting where 6N is not good enough; a served token
    costs a third of it, the forward pass (Sardana et al. 2024, arXiv 2401.00448). RefusalError where nothing is left
    for training at any size.
    """
    if not (np.isfinite(flops) and flops > 0 and np.isfinite(inference_tokens) and inference_tokens >= 0):
        raise RefusalError(
            "no-budget", f"flops {flops} and inference tokens {inference_tokens}: a budget is positive and finite"
        )
    _ = fitted.law.parameters_exponent  # refuses a form that does not say how to split
    # From models that would see 1e6 tokens per parameter to ones that see a thousandth of one.
    sizes = np.geomspace(np.sqrt(flops / 6e6), np.sqrt(flops / 6e-3), GRID)
    cost = training_cost(sizes)
    tokens = flops / cost - inference_tokens / 3
    sizes, tokens, cost = sizes[tokens > 0], tokens[tokens > 0], cost[tokens > 0]
    if not sizes.size:
        raise RefusalError(
            "budget-too-small", f"serving {inference_tokens:.3g} tokens alone costs more than {flops:.3g}"
        )
    best = [_best(law, sizes, tokens) for law in (fitted.law, *fitted.drawn_laws)]
    answers = np.array(best)
    intervals = np.quantile(answers[1:], TAILS, axis=0)
    n, d, loss = (((float(low), float(high))) for low, high in intervals.T)
    largest = float(fitted.used["flops"].max())  # type: ignore[arg-type]
    size, budget, lowest = (float(value) for value in answers[0])
    return Allocation(flops, inference_tokens, size, n, budget, d, lowest, loss, flops / largest)


def allocate_runs(fitted: Fit, flops: float, *, inference_tokens: float = 0.0) -> Allocation:
    """`allocate`, with a token's cost as the fit's own runs counted it."""
    return allocate(fitted, flops, inference_tokens=inference_tokens, training_cost=fitted.flops_per_token)


def exponent_between(fitted: Fit, low: float, high: float) -> tuple[float, tuple[float, float]]:
    """Mean slope a of log N* by log C between two budgets, with its interval, at the cost that the fit's runs counted.

    Under C = 6ND it is the closed form beta/(alpha + beta) at any two budgets; under exact FLOPs it depends on them.
    """
    if not 0 < low < high:
        raise RefusalError("one-budget", f"no slope between budgets of {low:.3g} and {high:.3g} FLOPs")
    cost = fitted.flops_per_token
    laws = [fitted.law, *fitted.drawn_laws]
    ends = []
    for flops in (low, high):
        sizes = np.geomspace(np.sqrt(flops / 6e6), np.sqrt(flops / 6e-3), GRID)
        tokens = flops / cost(sizes)
        ends.append(np.log([_best(law, sizes, tokens)[0] for law in laws]))
    slopes = (ends[1] - ends[0]) / np.log(high / low)
    return float(slopes[0]), percentile(slopes[1:])


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

    @property
    def sentence(self) -> str:
        """The comparison in a line."""
        low, high = self.interval
        return (
            f"{self.baseline} needs {self.value:.3g} [{low:.3g}, {high:.3g}] times the compute of {self.challenger} "
            f"for the loss it reaches at {self.flops:.3g} FLOPs"
        )


def compute_multiplier(baseline: Fit, challenger: Fit, flops: float) -> ComputeMultiplier:
    """Compare two families at equal loss, both at their compute-optimal split under C = 6ND.

    Draws are paired by position: the families' runs are independent, so that any pairing gives the same distribution.
    """
    if not (np.isfinite(flops) and flops > 0):
        raise RefusalError("no-budget", f"flops {flops}: a budget is positive and finite")
    value = _multiplier(baseline.law, challenger.law, flops)
    drawn = np.array(
        [_multiplier(a, b, flops) for a, b in zip(baseline.drawn_laws, challenger.drawn_laws, strict=False)]
    )
    unreachable = float(np.mean(drawn == 0))
    return ComputeMultiplier(baseline.family, challenger.family, flops, value, percentile(drawn), unreachable)


def _best(law: Law, sizes: Array, tokens: Array) -> tuple[float, float, float]:
    """The lowest point on the grid, refined by a parabola through its neighbours in log N."""
    loss = law.predict(sizes, tokens)
    index = int(np.argmin(loss))
    if 0 < index < len(sizes) - 1:
        left, middle, right = loss[index - 1 : index + 2]
        shift = 0.5 * (left - right) / (left - 2 * middle + right) if left + right > 2 * middle else 0.0
    else:
        shift = 0.0
    at = index + shift
    positions = np.arange(len(sizes))
    n = float(np.exp(np.interp(at, positions, np.log(sizes))))
    d = float(np.exp(np.interp(at, positions, np.log(tokens))))
    return n, d, float(law.predict(n, d))


def _multiplier(baseline: Law, challenger: Law, flops: float) -> float:
    """C over the compute at which the challenger's frontier has the baseline's loss. The frontier above E is K C^-k."""
    reducible = float(baseline.predict(*baseline.compute_optimal(flops))) - challenger.E
    if reducible <= 0:
        return 0.0
    at_one = float(challenger.predict(*challenger.compute_optimal(1.0))) - challenger.E
    return float(np.exp(np.log(flops) - (np.log(at_one) - np.log(reducible)) / challenger.frontier_exponent))
