"""Fit a law to each family of runs, with what the rows do not determine said, and find the fits that were saved.

`fit(frame)` returns one `Fit` per model family: the law at full precision, bootstrap draws, the certificate, and which
rows were used and which left out, each with its reason.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from analysis.data import quality
from analysis.data.quality import usable
from analysis.findings import FitWarning, RefusalError
from analysis.fitting import noise, regression
from analysis.fitting.bootstrap import percentile
from analysis.fitting.fit import METHOD, Fit
from analysis.fitting.problem import is_structured
from analysis.laws.forms import ADDITIVE, Form
from analysis.laws.objectives import HUBER, Objective

STARTS, STARTS_OF_OTHERS = 1000, 128
"""Descents of the additive law, and of others that `analysis.fitting.newton` fits: their valleys take more steps."""
DRAWS = 1000
_ORDER = ("run_id", "family")
"""In which rows are compared: sources that stand side by side may hold the same run, each for a family of its own."""


def saved(
    folder: Path,
    frame: pl.DataFrame,
    *,
    form: Form | None = ADDITIVE,
    objective: Objective = HUBER,
    allow_mixed: bool = False,
) -> list[Fit]:
    """Fits saved below `folder` by this method from exactly the rows of `frame`; none where either has changed.

    Nor are there any where another form or objective was fitted; None is any form. None where one of them is damaged,
    either: they are made anew.

    Raises RefusalError where `fit` would for mixed rows: a fit made with `allow_mixed` answers only those who ask so.
    """
    documents = sorted(folder.glob("*/fit.json"))
    try:
        if not documents or any(json.loads(path.read_text()).get("method") != METHOD for path in documents):
            return []
        fits = [_scattered(Fit.load(path.parent)) for path in documents]
    except RefusalError:
        raise
    except (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, pl.exceptions.PolarsError):
        return []  # one that is damaged is made anew
    if any(one.objective != objective or (form is not None and one.form.name != form.name) for one in fits):
        return []
    stored = pl.concat([one.rows for one in fits]).sort(*_ORDER)  # perhaps with fewer columns, by an earlier version
    if not set(stored.columns) <= set(frame.columns) or not stored.equals(frame.sort(*_ORDER).select(stored.columns)):
        return []
    for one in fits:
        _refuse(one.family, one.rows, one.form, allow_mixed)
    return fits


def _scattered(fitted: Fit) -> Fit:
    """A saved fit; one saved before it was said how runs scatter far away is told so by its rows."""
    return fitted if fitted.judgement > 1 or fitted.scatter != (0.0, 0.0) else noise.scattered(fitted)


def fit(
    frame: pl.DataFrame,
    *,
    form: Form = ADDITIVE,
    objective: Objective = HUBER,
    num_starts: int | None = None,
    num_draws: int = DRAWS,
    seed: int = 0,
    allow_mixed: bool = False,
    noise_exponents: Mapping[str, float] | None = None,
) -> list[Fit]:
    """Fit a form, by default the additive law, to each family of a frame from `analysis.data.runs`.

    The command line weighs several forms where none is named, and doubts the one it takes: `choice.fit` does so.
    `noise_exponents` are those of the families whose scatter depends on C, as `regression.fit_form` has them.
    `num_starts` left out are STARTS or STARTS_OF_OTHERS, and `regression.STARTS` for a form that
    `analysis.fitting.newton` does not fit.
    Raises RefusalError where the rows cannot give an answer: too few, one size only, constant loss, or different
    evaluations, tokenizers or schedules in one family, unless `allow_mixed`.
    """
    families = frame["family"].unique(maintain_order=True).to_list()
    if not families:
        raise RefusalError("no-rows", "there are no runs to fit")
    if num_starts is None:
        of_this = STARTS if form is ADDITIVE else STARTS_OF_OTHERS
        num_starts = of_this if is_structured(form) else regression.STARTS
    fits, refusals = [], []
    for family in families:
        rows = frame.filter(pl.col("family") == family)
        try:
            _refuse(family, rows, form, allow_mixed)
        except RefusalError as refusal:
            refusals.append(refusal)
        else:
            found = regression.fit_form(
                rows,
                form,
                objective,
                num_starts=num_starts,
                num_draws=num_draws,
                seed=seed,
                noise_exponent=(noise_exponents or {}).get(family, 0.0),
            )
            told = [*found.warnings, *quality.several_losses(found.used, family, form.inputs)]
            told += [*quality.other_units(found.used), *quality.along_runs(found.used), *_weaknesses(found)]
            fits.append(replace(found, family=family, warnings=tuple(warning.about(family) for warning in told)))
    if refusals and (not fits or len(families) == 1):
        raise refusals[0]
    of_all = [FitWarning("family-not-fitted", "; ".join(map(str, refusals)))] if refusals else []
    of_all += quality.several_machines(frame)
    if len(fits) > 1 and (differ := quality.not_comparable(frame)):
        of_all.append(FitWarning("families-not-comparable", f"the families' losses do not compare: {differ}"))
    return [replace(fitted, warnings=(*fitted.warnings, *of_all)) for fitted in fits]


def _refuse(family: str, all_rows: pl.DataFrame, form: Form, allow_mixed: bool) -> None:
    rows, needed = usable(all_rows), len(form.coordinates)
    count, reasons = rows.height, quality.count_reasons(all_rows)
    why = f" ({reasons})" if reasons else ""
    if count <= needed:
        raise RefusalError(
            "too-few-points",
            f"{family}: {count} usable runs cannot determine {needed} parameters; at least {needed + 1}{why}",
        )
    for name, what in (("parameters", "model size"), ("tokens", "token budget"), ("flops", "compute")):
        if name in form.inputs and rows[name].n_unique() < 2:
            told = f"{family}: all runs have the same {what}; the law needs at least two, better four{why}"
            raise RefusalError("one-value", told)
    if rows["loss"].n_unique() == 1:
        raise RefusalError("constant-loss", f"{family}: every run has the same loss {rows['loss'][0]}{why}")
    if not allow_mixed:
        quality.refuse_mixed(family, rows)


def _weaknesses(fitted: Fit) -> Iterator[FitWarning]:
    """What the draws say that these rows do not determine."""
    drawn = fitted.form.parameters(fitted.draws)
    for name in ("alpha", "beta", "eta", "gamma"):
        if name in drawn:
            low, high = percentile(drawn[name])
            if high > 2 * low:
                yield FitWarning("weakly-identified", f"{name} is only known to lie between {low:.3g} and {high:.3g}")
    if "E" in drawn and percentile(drawn["E"])[0] < 0.1 * float(np.min(fitted.used["loss"].to_numpy())):
        yield FitWarning("irreducible-loss-open", "the data do not tell the irreducible loss from zero")
