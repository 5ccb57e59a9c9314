"""What to buy next of a pool of runs, so that the loss at stated targets is known; and whether a run fits the law.

The law, and the interval of a target, are those of `analysis.fitting.choice`, as `scaling fit` and `predict` have them,
by fewer starts and draws. Which run is bought says `analysis.decisions.next_run`: runs that are being trained count as
if they had shown the loss that is expected of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from scipy import special

from analysis.decisions import next_run
from analysis.findings import RefusalError
from analysis.fitting import choice
from analysis.fitting.fit import Fit
from analysis.laws import forms
from analysis.laws.additive import Array
from analysis.laws.forms import Form
from analysis.laws.token_cost import TokenCost

AUTO = "auto"
STARTS, DRAWS = 64, 400
"""Descents and draws of the law that is fitted after each run."""
CHANCE = 0.05
"""That any run of the pool is taken to contradict the law though none does."""
BELIEVED = 2
"""So many runs for each of its parameters a law needs to be believed, and contradicted: resamples of fewer vary less
than laws do."""
INPUTS = frozenset({"parameters", "tokens", "flops"})
"""What is known of a run of a pool."""


@dataclass(frozen=True)
class Pick:
    """A candidate that is worth its cost."""

    row: int
    why: str
    """`first` where the law is not known yet, else `worth`."""
    worth: float | None = None
    """The share of the targets' variance that it is expected to take off."""


def forms_named(name: str) -> tuple[Form, ...]:
    """The forms of a design. RefusalError naming the nearest word, or what a pool does not say of its runs."""
    found = choice.CANDIDATES if name == AUTO else (forms.find(name),)
    for form in found:
        if lacking := [column for column in form.inputs if column not in INPUTS]:
            raise RefusalError("unknown-input", f"form {form.name} asks for {lacking[0]}, which a sweep does not say")
    return tuple(found)


def law(rows: pl.DataFrame, name: str, seed: int) -> Fit | None:
    """The law of one family's rows (`analysis.data.runs`); None where they do not determine one."""
    form = None if name == AUTO else forms.find(name)
    try:
        (found,) = choice.fit(rows, form=form, num_starts=STARTS, num_draws=DRAWS, seed=seed)
    except RefusalError:
        return None
    return found


def predicted(fitted: Fit, target: tuple[float, float]) -> dict[str, Any]:
    """Loss at a target (N, D), the bounds for one new run there, and half their distance over the loss.

    Bounds and width are None where the law leaves the target open.
    """
    n, d = target
    about = {"parameters": n, "tokens": d, "loss": float(fitted.predict(n, d)[0])}
    low, high = (float(bound) for bound in fitted.predict_run(n, d))
    if not fitted.is_bounded(low, high):
        return {**about, "interval": None, "half_width": None}
    return {**about, "interval": [low, high], "half_width": (high - low) / 2 / about["loss"]}


def width(fitted: Fit | None, targets: Sequence[tuple[float, float]]) -> float:
    """The widest of the targets' half widths; infinite where one is open, or the law is not to be believed yet."""
    if fitted is None or not _is_believed(fitted):
        return math.inf
    widths = [predicted(fitted, target)["half_width"] for target in targets]
    return math.inf if None in widths else max(widths)


def _is_believed(fitted: Fit) -> bool:
    runs: int = fitted.used.height
    return runs >= BELIEVED * len(fitted.form.coordinates)


def expected(fitted: Fit, parameters: float, tokens: float, pool: int) -> tuple[float, float] | None:
    """Bounds within which a run agrees with the law, so that of a whole pool 5 % have any outside where it holds.

    The interval of a new run at 0.95, widened in log loss by Student's quantile for so many runs (Bonferroni) and for
    as few degrees of freedom as the law has left, over the normal one, and by what resampled residuals lack of the
    scatter (Davison & Hinkley 1997, section 6.2.3). None where the law is not to be believed yet.
    """
    if not _is_believed(fitted):
        return None
    freedom = fitted.used.height - len(fitted.form.coordinates)
    center = float(fitted.predict(parameters, tokens)[0])
    wider = float(special.stdtrit(freedom, 1 - CHANCE / 2 / max(pool, 1)) / special.ndtri(0.975))
    wider *= math.sqrt(fitted.used.height / freedom)
    low, high = (float(bound) for bound in fitted.predict_run(parameters, tokens))
    if not math.isfinite(low + high):
        return None
    return center * math.exp(wider * math.log(low / center)), center * math.exp(wider * math.log(high / center))


def pick(
    seen: pl.DataFrame,
    training: pl.DataFrame,
    candidates: pl.DataFrame,
    targets: Sequence[tuple[float, float]],
    costs: Array,
    left: float,
    chosen: Sequence[Form],
    first: int,
    seed: int,
    spent: float | None = None,
    *,
    least: float = next_run.WORTH,
) -> Pick | str:
    """The candidate to buy of one family; why none is, by its word: `wait`, `budget`, `worth` or `pool`.

    Frames have `parameters`, `tokens` and `flops`, and those seen `loss`; `costs` are of the candidates, in the unit of
    what is `left`. Until `first` runs are seen or trained, the cheapest of each size in turn; then the one of most
    worth per cost. Where it is said what those known have `spent`, a run that costs c is bought only if it takes
    c / (spent + c) off the targets' variance: so much would repeats of all of them for as much, as the variance of a
    mean goes with one over its measurements. One that promises less than `least` is not bought either way.
    """
    if not candidates.height:
        return "pool"
    if not (costs <= left).any():
        return "budget"
    if seen.height + training.height < first:
        return Pick(_first(pl.concat([seen, training], how="diagonal"), candidates, costs, left), "first")
    if seen.height < first and training.height:
        return "wait"
    at = _with_flops(targets, pl.concat([seen, training, candidates], how="diagonal"))
    knowledge = next_run.learn(seen, chosen, seed=seed)
    needed = least if spent is None else np.maximum(least, costs / (spent + costs))
    row = next_run.choose(knowledge, candidates, at, costs, left, training, power=1.0, least=needed)
    if row is None:
        return "worth"
    return Pick(row, "worth", float(knowledge.worth(candidates[[row]], at, training)[0]))


def _first(known: pl.DataFrame, candidates: pl.DataFrame, costs: Array, left: float) -> int:
    times = [known.filter(pl.col("parameters") == size).height for size in candidates["parameters"]]
    ranks = [(cost > left, count, cost) for cost, count in zip(costs.tolist(), times, strict=True)]
    return min(range(len(ranks)), key=ranks.__getitem__)


def _with_flops(targets: Sequence[tuple[float, float]], runs: pl.DataFrame) -> pl.DataFrame:
    """Targets with what they would cost, as the pool's runs are counted."""
    cost = TokenCost.of(*(runs[name].to_numpy().astype(float) for name in ("parameters", "tokens", "flops")))
    n, d = np.array(targets, float).T
    return pl.DataFrame({"parameters": n, "tokens": d, "flops": cost.per_token(n) * d})
