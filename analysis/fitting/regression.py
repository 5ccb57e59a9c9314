"""Fit any form under any objective: many starts at once, the best taken to machine precision, with what certifies it.

`fit_form` fits one form to rows; `families.fit` does so for each family. `compare` puts forms side by side by
information criterion and by rollout (fit the cheap runs, predict the dear ones): the error of a fit says little about
the error of its prediction.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from analysis.data.quality import usable
from analysis.findings import FitWarning, RefusalError
from analysis.fitting import bootstrap, levenberg_marquardt
from analysis.fitting.certificate import Certificate
from analysis.fitting.fit import Fit
from analysis.fitting.problem import Problem
from analysis.laws.additive import Array
from analysis.laws.forms import Form, law_of
from analysis.laws.objectives import HUBER, LEAST_SQUARES, LEAST_SQUARES_OF_LOG, Objective

__all__ = ["HUBER", "LEAST_SQUARES", "LEAST_SQUARES_OF_LOG", "Objective"]

STARTS = 64
CONVERGED = 1e-5
"""Largest scaled gradient of a fit that is called converged; a draw may have a hundred times as much."""
UNDETERMINED = 1e14
"""Condition number beyond which a combination of the parameters may be anything at all."""


def fit_form(
    frame: pl.DataFrame,
    form: Form,
    objective: Objective = HUBER,
    *,
    num_starts: int = STARTS,
    num_draws: int = 0,
    seed: int = 0,
    begin: Array | None = None,
    noise_exponent: float = 0.0,
) -> Fit:
    """Fit one form to the rows of `frame` that are not excluded, with `num_draws` bootstrap draws.

    Descents begin at `num_starts` points drawn for the form, or at the rows of `begin` (starts, k) where given, which
    a form without `structure` takes.

    A column `weight` (positive, such as one over the variance between seeds) weighs the rows, a column `cluster` says
    whose errors are in common; without them each row weighs 1 and stands alone. Where the scatter goes as C to
    `noise_exponent`, rows weigh by what the objective's likelihood makes of that. Raises RefusalError for missing
    columns, too few rows, an input with one value only, or a constant loss.
    """
    rows = usable(frame)
    _refuse(rows, form)
    problem = Problem.of(rows, form, objective, noise_exponent)
    ends, agreeing = problem.optimum(num_starts, seed, begin)
    best = ends.free[ends.best]
    theta = problem.theta(best[None])[0]
    if num_draws:
        cluster = bootstrap.clusters_of(rows)
        drawn, description = problem.bootstrap(best, cluster, num_draws, seed + 1)
        draws, converged = problem.theta(drawn.free), float(np.mean(drawn.scaled_gradient < 100 * CONVERGED))
        clusters = int(cluster.max()) + 1
    else:
        draws, converged, description, clusters = np.empty((0, len(theta))), 1.0, "none", rows.height
    value = float(ends.value[ends.best])
    certificate = Certificate(
        converged=bool(ends.scaled_gradient[ends.best] < CONVERGED),
        agreeing_starts=agreeing,
        scaled_gradient=float(ends.scaled_gradient[ends.best]),
        bounds_hit=tuple(np.array(problem.names)[ends.at_bounds[ends.best]].tolist()),
        condition_number=problem.condition_number(best),
        converged_draws=converged,
    )
    return Fit(
        family="all",
        form=form,
        law=law_of(form, theta),
        objective=objective,
        objective_value=value,
        certificate=certificate,
        draws=draws,
        resampling=description,
        rows=frame,
        warnings=tuple(_warnings(form, certificate, rows.height, clusters)),
        noise_exponent=noise_exponent,
    )


@dataclass(frozen=True)
class Candidate:
    """One form among several on the same rows."""

    fit: Fit
    information: float
    rollout_error: float
    """Root mean square of relative errors on the runs of most compute, the form fitted to the others."""


def compare(
    frame: pl.DataFrame, forms: Sequence[Form], objective: Objective = HUBER, *, held_out: float = 0.2
) -> list[Candidate]:
    """The forms on the same rows, best rollout first; `held_out` is the share of runs, dearest first, for test."""
    rows = usable(frame)
    cheap_first = rows.sort("flops")
    fitted_to = rows.height - max(1, round(held_out * rows.height))
    small, large = cheap_first.head(fitted_to), cheap_first.tail(rows.height - fitted_to)
    found = []
    for form in forms:
        fitted = fit_form(rows, form, objective)
        predicted = fit_form(small, form, objective).predict_rows(large)
        error = float(np.sqrt(np.mean((predicted / large["loss"].to_numpy() - 1) ** 2)))
        found.append(Candidate(fitted, fitted.information, error))
    return sorted(found, key=lambda candidate: candidate.rollout_error)


def sweep_delta(frame: pl.DataFrame, form: Form, deltas: Sequence[float], *, held_out: float = 0.2) -> pl.DataFrame:
    """The same rows under Huber's objective at each delta: parameters, agreeing starts, and the error of the rollout.

    A delta far above the residuals is least squares, one far below is least absolute deviations.
    """
    rows = []
    for delta in deltas:
        (candidate,) = compare(frame, [form], Objective(delta=delta), held_out=held_out)
        share = candidate.fit.certificate.agreeing_starts
        rows.append({"delta": delta, **candidate.fit.parameters, "agreeing_starts": share})
        rows[-1]["rollout_error"] = candidate.rollout_error
    return pl.DataFrame(rows)


def evaluate(
    frame: pl.DataFrame, form: Form, given: Array | Mapping[str, float], objective: Objective = HUBER
) -> float:
    """The objective at given parameters: whether a published or earlier fit is at the optimum of its own objective.

    They are given by name, such as `{"E": 1.69, "A": 406.4, …}`, or as the form's coordinates (k,).
    """
    rows = usable(frame)
    problem = Problem.of(rows, form, objective)
    theta = form.theta(given) if isinstance(given, Mapping) else np.asarray(given, float)
    return float(levenberg_marquardt.totals(theta[None], problem)[0])


def _warnings(form: Form, certificate: Certificate, count: int, clusters: int) -> Iterator[FitWarning]:
    """What is wrong with a fit of any form; those of its draws where there are any."""
    size, hit = len(form.coordinates), certificate.bounds_hit
    if not certificate.converged:
        yield FitWarning("not-converged", f"the scaled gradient is {certificate.scaled_gradient:.1e} at the best point")
    if hit:
        alone = "lies on its bound: the data do not determine it"
        told = alone if len(hit) == 1 else "lie on their bounds: the data leave them open"
        yield FitWarning("bounds-hit", f"{', '.join(hit)} {told}")
    if certificate.condition_number > UNDETERMINED:
        yield FitWarning(
            "not-determined",
            f"where these runs lie they do not determine all parameters of {form.name}: two sizes, or two budgets, "
            "say nothing of a third, nor do tokens in one ratio to size tell them apart",
        )
    if certificate.agreeing_starts < 0.1:
        yield FitWarning("few-starts-agree", f"{certificate.agreeing_starts:.0%} of the starts found this optimum")
    if count <= 3 * size:
        yield FitWarning("few-points", f"{count} runs for {size} parameters: their intervals are not to be trusted")
    if clusters < count and clusters <= size:
        told = f"the {count} runs share {clusters} trunks: too few for intervals of {size} parameters to be trusted"
        yield FitWarning("few-clusters", told)
    if certificate.converged_draws < 0.95:
        yield FitWarning("draws-not-converged", f"{certificate.converged_draws:.0%} of the bootstrap fits converged")


def _refuse(rows: pl.DataFrame, form: Form) -> None:
    missing = [name for name in (*form.inputs, "loss") if name not in rows.columns]
    if missing:
        raise RefusalError(
            "missing-column", f"{form.name} needs {', '.join(missing)}; there are: {', '.join(rows.columns)}"
        )
    needed = len(form.coordinates)
    if rows.height < needed:
        raise RefusalError(
            "too-few-points", f"{rows.height} runs cannot determine the {needed} parameters of {form.name}"
        )
    for name in (*form.inputs, "loss", *(("weight",) if "weight" in rows.columns else ())):
        values = rows[name].cast(pl.Float64).to_numpy()
        if not (np.isfinite(values) & (values > 0)).all():
            raise RefusalError("not-positive", f"{name} holds values that are not positive finite numbers")
        if name in form.inputs and rows[name].n_unique() < 2:
            raise RefusalError("one-value", f"all runs have the same {name}; {form.name} needs at least two")
    if rows["loss"].n_unique() == 1:
        raise RefusalError("constant-loss", f"every run has the same loss {rows['loss'][0]}")
