"""What the rows themselves say against an answer: each doubt is a warning with a code.

They look at the rollout, at the other forms, at where the runs lie, and at what the law leaves unexplained.
"""

from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import combinations_with_replacement

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import special

from analysis.findings import FitWarning
from analysis.fitting import bootstrap, noise
from analysis.fitting.fit import Fit
from analysis.fitting.linear import orthonormal
from analysis.laws.additive import Array

TARGET = 10.0
"""Forms are compared at this many times N and D of the dearest run."""
COLLINEAR = 0.97
"""Correlation of log N and log D beyond which they are told apart by 3 % of their variance or less."""
CARRIES, FAR = 0.5, 6.0
"""An outlier holds this share of the squared residuals, and lies this many robust standard deviations away."""
DEGREE, SPARE, SURPRISING = 3, 10, 0.003
"""Residuals are held against polynomials of this degree, of less where fewer than SPARE runs were left over, and follow
them where chance does so less often than this."""


def doubted(fitted: Fit) -> Fit:
    """A fit that has its rollout and the other forms, with what there is against it among its warnings."""
    kinds = (_dear_runs, _misfit, _other_forms, _collinear, _outlier, _noise)
    found = [warning.about(fitted.family) for kind in kinds for warning in kind(fitted)]
    return replace(fitted, warnings=(*fitted.warnings, *found))


def at_edge(fitted: Fit, runs: Collection[str]) -> Fit:
    """The fit, with a warning where its largest model is one of `runs`, whose best rate is the last of those tried."""
    used = fitted.used
    largest = used.filter(pl.col("parameters") == pl.col("parameters").max())
    edge = [run for run in largest["run_id"].to_list() if run in runs]
    if not edge:
        return fitted
    told = f"{fitted.family}: the largest models ({', '.join(edge)}) are best at the edge of what was searched"
    warning = FitWarning("rate-at-edge", f"{told}: tuned further they may lie lower, and the law would bend with them")
    return replace(fitted, warnings=(*fitted.warnings, warning))


def _dear_runs(fitted: Fit) -> Iterator[FitWarning]:
    found = fitted.rollout
    if found is not None and found.widening > 1:
        yield FitWarning(
            "rollout-outside",
            f"fitted to the cheap four fifths of the runs, {fitted.form.name} leaves {found.outside} of the "
            f"{found.runs} dear ones outside its interval: intervals are {found.widening:.2g} times as wide, "
            "as those would have needed",
        )


def _misfit(fitted: Fit) -> Iterator[FitWarning]:
    found = misfit(fitted)
    if found is not None and found[0] < SURPRISING:
        chance, share = found
        yield FitWarning(
            "lack-of-fit",
            f"{share:.0%} of the scatter about {fitted.form.name} follows {', '.join(fitted.form.inputs)} (chance "
            f"{chance:.1g}): the runs bend otherwise than the form, and what that does beyond them is not known",
        )


def misfit(fitted: Fit) -> tuple[float, float] | None:
    """Whether residuals follow the form's inputs: the chance of it, were the form right, and the share that does.

    The F test for lack of fit against polynomials in the logarithms of the inputs, less what the form's own parameters
    follow (linearised at the fit). Runs of one cluster have errors in common: their means count, one each. None where
    too few runs are left over to tell.
    """
    used, form = fitted.used, fitted.form
    scale = noise.scales(fitted)
    columns = np.column_stack([fitted.residuals / scale, fitted.slopes / scale[:, None]])
    inputs = form.log_inputs_of(used)
    inputs = (inputs - inputs.mean(axis=1, keepdims=True)) / np.maximum(inputs.std(axis=1, keepdims=True), 1e-12)
    cluster = bootstrap.clusters_of(used)
    for degree in range(DEGREE, 1, -1):
        powers = [
            inputs[list(which)].prod(axis=0) / scale
            for size in range(degree + 1)
            for which in combinations_with_replacement(range(len(inputs)), size)
        ]
        every = _means(np.column_stack([columns, *powers]), cluster)
        if not np.isfinite(every).all():
            return None
        own, whole = orthonormal(every[:, 1 : columns.shape[1]]), orthonormal(every[:, 1:])
        more, left = whole.shape[1] - own.shape[1], len(every) - whole.shape[1]
        if more and left >= SPARE:
            by_form, by_all = (float(np.sum((every[:, 0] - of @ (of.T @ every[:, 0])) ** 2)) for of in (own, whole))
            if not by_form > 1e-24 * len(every):
                return None
            ratio = (by_form - by_all) / more / max(by_all / left, 1e-300)
            return float(special.fdtrc(more, left, ratio)), 1 - by_all / by_form
    return None


def _means(columns: Array, cluster: NDArray[np.intp]) -> Array:
    """Means of the rows of each cluster: (clusters, columns)."""
    summed = np.zeros((int(cluster.max()) + 1, columns.shape[1]))
    np.add.at(summed, cluster, columns)
    return summed / np.bincount(cluster)[:, None]


def _other_forms(fitted: Fit) -> Iterator[FitWarning]:
    if not fitted.rivals or not {"parameters", "tokens"} <= set(fitted.form.inputs):
        return
    used = fitted.used
    dearest = used.row(int(used["flops"].arg_max() or 0), named=True)
    n, d = TARGET * dearest["parameters"], TARGET * dearest["tokens"]
    alone = replace(fitted, others=(), rollout=None)
    center, low, high = (float(value) for value in alone.predict(n, d))
    for rival in fitted.rivals:
        other = float(rival.predict(n, d)[0])
        # A law that gives no number there, of exponents that cancel, contradicts nothing.
        if not np.isnan(other) and not low <= other <= high:
            yield FitWarning(
                "forms-disagree",
                f"{rival.form.name} fits as well as {fitted.form.name} and predicts {other:.4f}, not {center:.4f} "
                f"[{low:.4f}, {high:.4f}], at ten times the dearest run's N and D: the difference is in the intervals",
            )


def _collinear(fitted: Fit) -> Iterator[FitWarning]:
    if {"parameters", "tokens"} <= set(fitted.form.inputs):
        n, d = (np.log(fitted.used[name].to_numpy()) for name in ("parameters", "tokens"))
        correlation = abs(float(np.corrcoef(n, d)[0, 1]))
        if correlation > COLLINEAR:
            yield FitWarning(
                "collinear",
                f"log N and log D are collinear (correlation {correlation:.3f}): the runs do not tell size from "
                "tokens; power-C-floor asks less of them",
            )


def _outlier(fitted: Fit) -> Iterator[FitWarning]:
    residual, size = fitted.residuals, len(fitted.form.coordinates)
    square = residual**2
    worst = int(square.argmax())
    if len(residual) > 3 * size and square.sum() > 0 and square[worst] > CARRIES * square.sum():
        spread = 1.4826 * float(np.median(np.abs(residual)))  # the robust standard deviation
        if abs(residual[worst]) > FAR * spread:
            name = fitted.used["run_id"][worst] if "run_id" in fitted.used.columns else worst
            yield FitWarning(
                "outlier",
                f"run {name} lies {np.expm1(residual[worst]):+.1%} from the law and holds "
                f"{square[worst] / square.sum():.0%} of the squared residuals: it carries the intervals",
            )


def _noise(fitted: Fit) -> Iterator[FitWarning]:
    found = noise.growth(fitted)
    exponent = fitted.noise_exponent
    if exponent:
        done = f"every run has a weight of C^{-exponent / fitted.objective.power:.2f}, and a new run scatters so"
    elif found is not None and found.is_believed:
        exponent, done = found.exponent, "the weights that were given do not account for it"
    else:
        return
    kind = "grows" if exponent > 0 else "falls"
    yield FitWarning("noise-depends-on-compute", f"the scatter about the law {kind} as C^{exponent:.2f}: {done}")
