"""The next runs worth their cost: which runs within a budget most reduce the uncertainty of a stated prediction.

What is known is the ensemble of `analysis.decisions.next_run`, of the fit's own runs, by its form and those others that
explain them as well. Runs are taken one at a time, the most drop of the prediction's variance per cost^0.4 first, each
given those before it as if they had shown the loss that is expected of them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from analysis.decisions import next_run
from analysis.findings import RefusalError
from analysis.fitting.fit import Fit
from analysis.laws.additive import Array
from xlstm.quantities import compact

MOST_RUNS = 32
Cost = Callable[[Array, Array], Array]
"""What runs of N parameters on D tokens cost, in the unit of the budget."""


@dataclass(frozen=True)
class Proposal:
    """A run to make, what it costs, and the prediction's interval once it is made."""

    parameters: float
    tokens: float
    cost: float
    half_width: float
    """Half the width of the prediction's 0.95 interval, relative to the loss, after this run and those before it."""


@dataclass(frozen=True)
class Design:
    """Runs in the order in which they are worth making."""

    family: str
    target: tuple[float, float]
    """N and D of the prediction."""
    budget: float
    half_width: float
    """Half the width of the prediction's 0.95 interval before any of the runs, relative to the loss."""
    proposals: tuple[Proposal, ...]
    ended: str
    """Why there are no more of them, where the budget would allow for more; else empty."""
    extrapolation: dict[str, float]
    """N, D and C of the target over the largest among the fitted runs."""
    beyond: str
    """How far the target lies outside the fitted runs, in words."""


def flops_of_runs(fitted: Fit) -> Cost:
    """FLOPs as the fit's own runs counted them (exact where a plan made them), interpolated in N."""
    return lambda parameters, tokens: np.asarray(fitted.token_cost.per_token(parameters) * tokens)


def hours_of_plan(fitted: Fit, planned: Sequence[tuple[float, float, float]]) -> Cost:
    """Device hours as a plan's runs (N, FLOPs, device hours) have them: hours per FLOP, interpolated in log N.

    Of runs of one size, the dearest per FLOP counts: the others take over a shared stable phase.
    """
    rate: dict[float, float] = {}
    for parameters, flops, hours in planned:
        rate[parameters] = max(rate.get(parameters, 0.0), hours / flops)
    sizes = np.array(sorted(rate))
    rates = np.log(np.array([rate[size] for size in sizes.tolist()]))
    flops_of = flops_of_runs(fitted)
    return lambda n, d: np.asarray(flops_of(n, d) * np.exp(np.interp(np.log(n), np.log(sizes), rates)))


def design(
    fitted: Fit,
    target: tuple[float, float],
    budget: float,
    *,
    sizes: Sequence[float] | None = None,
    cost: Cost | None = None,
) -> Design:
    """Runs whose total `cost` stays within `budget` and that make the loss at `target` (N, D) known best.

    `sizes` are the N there could be; left out, those of the fitted runs. Token budgets lie between the least and four
    times the most that was trained: a shorter run would be warm-up for the most part. A run may be proposed repeatedly,
    with other seeds. RefusalError where no run is within the budget, or the draws do not vary.
    """
    if not (np.isfinite(budget) and budget > 0 and min(target) > 0):
        raise RefusalError(
            "no-budget", f"budget {budget:g} and target N = {target[0]:g}, D = {target[1]:g}: all are positive"
        )
    used = fitted.used
    tokens = used["tokens"].to_numpy()
    every = sorted(set(used["parameters"].to_list() if sizes is None else sizes))
    points = np.array([(n, d) for n in every for d in np.geomspace(tokens.min(), tokens.max() * 4, 24)], float)
    costs = (cost or flops_of_runs(fitted))(points[:, 0], points[:, 1])
    if not (costs <= budget).any():
        raise RefusalError(
            "budget-too-small",
            f"{fitted.family}: the cheapest run costs {costs.min():.3g}, the budget is {budget:.3g}",
        )
    chosen = (fitted.form, *(rival.form for rival in fitted.rivals))
    if "unique_tokens" not in used.columns:  # where nobody said how many of the tokens differ, all do
        used = used.with_columns(unique_tokens=pl.col("tokens"))
    knowledge = next_run.learn(used, chosen)
    candidates, aim = _frame(fitted, points), _frame(fitted, np.array([target]))
    # What is known today is what `predict` says; the ensemble says by which share a run narrows it.
    center, low, high = (float(value) for value in fitted.predict(*target))
    before = (high - low) / 2 / center
    if not before > 0:
        raise RefusalError("no-uncertainty", f"{fitted.family}: the draws do not vary: there is nothing to reduce")
    left = budget
    taken: list[int] = []
    proposals: list[Proposal] = []
    ended = f"the list ends at {MOST_RUNS} runs"
    while len(proposals) < MOST_RUNS:
        best = next_run.choose(knowledge, candidates, aim, costs, left, candidates[taken])
        if best is None:
            ended = "no further run narrows the prediction"
            break
        taken.append(best)
        left -= costs[best]
        n, d = (float(value) for value in points[best])
        width = before * float(np.sqrt(knowledge.left(aim, candidates[taken])))
        proposals.append(Proposal(n, d, float(costs[best]), width))
    flops = float(fitted.token_cost.per_token(target[0])) * target[1]
    asked = {"parameters": target[0], "tokens": target[1], "flops": flops}
    far = fitted.extrapolation(asked), fitted.beyond(asked)
    spent = (budget - left) / budget
    ended = "" if (costs > left).all() else f"{ended}, which cost {spent:.2g} of the budget"
    return Design(fitted.family, target, budget, before, tuple(proposals), ended, *far)


def sweep_fragment(found: Design, fitted: Fit, swept: Mapping[str, Mapping[str, object]] | None = None) -> str:
    """The runs as `include:` points of a sweep file; a size that no fitted run had is written as its N.

    `swept` are, by run id, the values of further axes that the sweep has: each point takes those of the fitted run that
    is nearest in N and D, and of several the one of the lowest loss.
    """
    names = dict(fitted.used.select("parameters", "size").drop_nulls().iter_rows())
    seen = [seed for seed in fitted.rows["seed"].to_list() if seed is not None]
    lines = [
        f"# The next runs of {found.family} for the loss at N = {found.target[0]:.4g}, D = {found.target[1]:.4g}.",
        "include:  # in a sweep that has `include` already, the points belong under that one",
    ]
    if axes := sorted({axis for values in (swept or {}).values() for axis in values}):
        lines.insert(1, f"# {' and '.join(axes)}: as the best of the fitted runs that is nearest in N and D.")
    seeds: dict[tuple[float, float], int] = {}
    for proposal in found.proposals:
        key = (proposal.parameters, proposal.tokens)
        seeds[key] = seeds.get(key, max(seen, default=-1)) + 1  # none that was trained
        size = names.get(proposal.parameters) or compact(round(proposal.parameters))
        point = f'model: "{found.family}", size: {size}, tokens: {round(proposal.tokens)}, seed: {seeds[key]}'
        point += "".join(f", {axis}: {json.dumps(value)}" for axis, value in _nearest(swept or {}, fitted, key).items())
        lines.append(f"  - {{{point}}}")
    return "\n".join(lines) + "\n"


def _nearest(
    swept: Mapping[str, Mapping[str, object]], fitted: Fit, point: tuple[float, float]
) -> Mapping[str, object]:
    """Further axes of the fitted run that is nearest to (N, D), of several of that of the lowest loss."""
    rows = [row for row in fitted.used.iter_rows(named=True) if row["run_id"] in swept]
    if not rows:
        return {}

    def far(row: Mapping[str, float]) -> tuple[float, float]:
        away = abs(np.log(row["parameters"] / point[0])) + abs(np.log(row["tokens"] / point[1]))
        return round(float(away), 6), row["loss"]

    return swept[min(rows, key=far)["run_id"]]


def _frame(fitted: Fit, points: Array) -> pl.DataFrame:
    """Points (N, D) with the inputs of every form, all tokens being different."""
    n, d = points.T
    flops = fitted.token_cost.per_token(n) * d
    return pl.DataFrame({"parameters": n, "tokens": d, "flops": flops, "unique_tokens": d})
