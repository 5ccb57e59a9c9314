"""Which form the rows speak for: several are fitted at once, and each is doubted.

A form is judged by Akaike's criterion on all runs, and by its rollout: fitted to the cheap four fifths of the runs, how
well does it predict the dear fifth, and how many of those lie outside its interval for a new run? The error of a fit
says little about the error of a prediction; that of a rollout says something. One form is chosen for all families, so
that what is compared between them is one thing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
from scipy import special

from analysis.findings import RefusalError
from analysis.fitting import doubts, families, noise, regression
from analysis.fitting.certificate import Rollout
from analysis.fitting.fit import Fit
from analysis.laws.additive import Array
from analysis.laws.forms import ADDITIVE, FORMS, Form
from analysis.laws.objectives import HUBER, Objective

CANDIDATES = (ADDITIVE, FORMS["coupled"], FORMS["kaplan"])
"""What is fitted where no form is asked for. The first stays where nothing speaks clearly for another."""
STARTS = 32
"""Descents of each form that is weighed beside the first, whose own certify it where most starts agree for all."""
ROLLOUT_STARTS, ROLLOUT_DRAWS = 4, 120
HELD_OUT = 0.2
CLEAR_INFORMATION, CLEAR_ROLLOUT = 6.0, 0.9
"""A form is clearly better where its AICc is lower by this much and its rollout's error at most this share."""
SURPRISING = 0.01
"""Chance of as many dear runs outside, were one in ten to be expected there, below which the rollout is believed."""
EXPECTED_OUTSIDE = 0.1


def fit(
    frame: pl.DataFrame,
    *,
    form: Form | None = None,
    objective: Objective = HUBER,
    allow_mixed: bool = False,
    **settings: Any,
) -> list[Fit]:
    """One fit per family, of `form` or of the form that the rows speak for, with its rollout, others and doubts.

    Where the scatter about that form depends on C, all forms are fitted again with the weights that follow, unless the
    rows have weights already. `settings` (`num_starts`, `num_draws`, `seed`) are those of `families.fit`, which raises
    the same RefusalError.
    """
    forms = (form,) if form is not None else CANDIDATES
    settings |= {"objective": objective, "allow_mixed": allow_mixed}
    found = _each(frame, forms, settings)
    chosen = found[choose(found)]
    if "weight" not in frame.columns:
        grown = {one.family: noise.growth(one) for one in chosen}
        exponents = {family: one.exponent for family, one in grown.items() if one is not None and one.is_believed}
        if exponents:
            found = _each(frame, forms, settings | {"noise_exponents": exponents})
            chosen = found[choose(found)]
    return [
        doubts.doubted(replace(one, others=tuple(fits[index] for fits in found if fits is not chosen)))
        for index, one in enumerate(chosen)
    ]


def _each(frame: pl.DataFrame, forms: Sequence[Form], settings: Mapping[str, Any]) -> list[list[Fit]]:
    """A fit per family, with its rollout, of the first form and of each other that can be fitted to the same."""
    first, *rest = forms
    found = [families.fit(frame, form=first, **settings)]
    for other in rest:
        try:
            fits = families.fit(frame, form=other, **{"num_starts": STARTS, **settings})
        except RefusalError:
            continue  # fewer parameters may still be determined
        if [one.family for one in fits] == [one.family for one in found[0]]:
            found.append(fits)
    return [[replace(noise.scattered(one), rollout=rollout(one)) for one in fits] for fits in found]


def choose(candidates: Sequence[Sequence[Fit]]) -> int:
    """Which of several forms, each with a fit per family: the first, unless another is clearly better for all runs."""
    information = [sum(one.information for one in fits) for fits in candidates]
    errors = [_pooled(fits) for fits in candidates]
    better = [
        index
        for index in range(1, len(candidates))
        if information[index] < information[0] - CLEAR_INFORMATION and errors[index] <= CLEAR_ROLLOUT * errors[0]
    ]
    return min(better, key=lambda index: information[index], default=0)


def rollout(fitted: Fit) -> Rollout | None:
    """How the form, fitted to the cheap four fifths of the runs, predicts the dear fifth.

    None where so few cheap runs cannot determine it.
    """
    rows = fitted.used.sort("flops")
    held = max(1, round(HELD_OUT * rows.height))
    small, large = rows.head(rows.height - held), rows.tail(held)
    size = len(fitted.form.coordinates)
    if small.height <= size + 1:
        return None
    try:
        before = regression.fit_form(
            small,
            fitted.form,
            fitted.objective,
            num_starts=ROLLOUT_STARTS,
            num_draws=ROLLOUT_DRAWS,
            noise_exponent=fitted.noise_exponent,
        )
    except RefusalError:
        return None
    center, low, high = noise.scattered(before).new_runs(large)
    return _compared(np.log(large["loss"].to_numpy()), *(np.log(bound) for bound in (center, low, high)))


def _compared(measured: Array, center: Array, low: Array, high: Array) -> Rollout | None:
    """Log losses that were measured beside those predicted, with their bounds; None where they are no numbers."""
    miss = measured - center
    scores = np.where(miss > 0, miss / np.maximum(high - center, 1e-12), -miss / np.maximum(center - low, 1e-12))
    if not np.isfinite(scores).all():
        return None
    count = len(scores)
    outside = int((scores > 1).sum())
    surprising = special.bdtrc(outside - 1, count, EXPECTED_OUTSIDE) < SURPRISING
    # Split conformal prediction (Lei et al. 2018): the level's rank among one more score; the largest where that is it.
    rank = min(int(np.ceil(0.95 * (count + 1))), count)
    widening = max(float(np.sort(scores)[rank - 1]), 1.0) if surprising else 1.0
    return Rollout(count, float(np.sqrt(np.mean(np.expm1(miss) ** 2))), outside, widening)


def _pooled(fits: Sequence[Fit]) -> float:
    """Root mean square over all families' dear runs; not a number where one has no rollout."""
    rolled = [one.rollout for one in fits]
    if any(one is None for one in rolled):
        return float("nan")
    squares = [(one.runs, one.error**2) for one in rolled if one is not None]
    return float(np.sqrt(sum(runs * square for runs, square in squares) / sum(runs for runs, _ in squares)))
