"""Fit a law to runs, with a certificate that the optimum was found and intervals that say how well it is known.

`fit(frame)` returns one `Fit` per model family: the law at full precision, bootstrap draws, the certificate, and which
rows were used and which left out, each with its reason. A fit is saved as a folder from which all else is drawn.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike

from analysis import optimizer, quality
from analysis.findings import RefusalError, Warning
from analysis.laws import AdditiveLaw, Array, log_loss
from analysis.optimizer import Points

DELTA = 1e-3
"""Huber's threshold on log loss (Hoffmann et al. 2022, appendix D.3)."""
STARTS = 400
DRAWS = 1000
LEVEL = 0.95
AGREEMENT = 1e-6
"""Relative difference of objectives within which two starts count as having found the same optimum."""
METHOD = 1
"""Which way of fitting a saved fit comes from: raise it when the same rows would now give another answer."""
CASE_BOOTSTRAP_FROM = 40
"""Clusters from which resampling whole clusters is safe; with fewer, a resample may not determine five parameters."""


@dataclass(frozen=True)
class Certificate:
    """What is known about the optimum that was found."""

    converged: bool
    agreeing_starts: float
    """Share of starts that ended at the same optimum."""
    scaled_gradient: float
    bounds_hit: tuple[str, ...]
    condition_number: float
    """Of the weighted least-squares problem at the optimum, columns scaled: how far the data tell parameters apart."""
    converged_draws: float
    """Share of bootstrap draws that converged."""


@dataclass(frozen=True)
class Fit:
    """A fitted law, with all that is needed to judge it and to draw it again."""

    family: str
    law: AdditiveLaw
    objective: str
    objective_value: float
    certificate: Certificate
    draws: Array
    """(draws, 5): log A, log B, log E, alpha, beta of each bootstrap resample."""
    resampling: str
    rows: pl.DataFrame
    """Used and excluded rows; `excluded` is null for the used ones."""
    warnings: tuple[Warning, ...]

    @property
    def used(self) -> pl.DataFrame:
        return self.rows.filter(pl.col("excluded").is_null())

    def predict(self, parameters: ArrayLike, tokens: ArrayLike) -> tuple[Array, Array, Array]:
        """Loss at (N, D), and the bounds of its interval over the draws."""
        center = self.law.predict(parameters, tokens)
        drawn = np.stack([AdditiveLaw.from_vector(draw).predict(parameters, tokens) for draw in self.draws])
        low, high = _quantiles(drawn)
        return center, low, high

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Interval of each of the law's parameters over the draws, at level 0.95."""
        laws = [AdditiveLaw.from_vector(draw) for draw in self.draws]
        return {name: _pair(np.array([getattr(law, name) for law in laws])) for name in AdditiveLaw.NAMES}

    def compute_optimal_interval(self) -> tuple[float, float]:
        """Interval of the exponent a in N* ~ C^a."""
        return _pair(self.draws[:, 4] / (self.draws[:, 3] + self.draws[:, 4]))

    def to_json(self) -> dict[str, Any]:
        """Plain values, in the shape of `scaling fit --json`."""
        excluded = self.rows.with_row_index("row").filter(pl.col("excluded").is_not_null())
        return {
            "family": self.family,
            "method": METHOD,
            "law": "E + A/N^alpha + B/D^beta",
            "conventions": {"N": "total parameters", "D": "training tokens", "C": "exact FLOPs, else 6ND"},
            "objective": self.objective,
            "objective_value": self.objective_value,
            "parameters": {name: getattr(self.law, name) for name in AdditiveLaw.NAMES},
            "intervals": {name: list(bounds) for name, bounds in self.intervals().items()},
            "interval_level": LEVEL,
            "resampling": self.resampling,
            "compute_optimal": {
                "parameters_exponent": self.law.parameters_exponent,
                "interval": list(self.compute_optimal_interval()),
            },
            "certificate": {
                "converged": self.certificate.converged,
                "agreeing_starts": self.certificate.agreeing_starts,
                "scaled_gradient": self.certificate.scaled_gradient,
                "bounds_hit": list(self.certificate.bounds_hit),
                "condition_number": self.certificate.condition_number,
                "converged_draws": self.certificate.converged_draws,
            },
            "rows": {
                "used": self.used.height,
                "excluded": [
                    {"row": row["run_id"] or row["row"], "reason": row["excluded"]}
                    for row in excluded.iter_rows(named=True)
                ],
            },
            "warnings": [{"code": warning.code, "message": warning.message} for warning in self.warnings],
        }

    def save(self, folder: Path) -> None:
        """Write fit.json, draws.npy and rows.parquet."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "fit.json").write_text(json.dumps(self.to_json(), indent=2) + "\n")
        np.save(folder / "draws.npy", self.draws, allow_pickle=False)
        self.rows.write_parquet(folder / "rows.parquet")

    @classmethod
    def load(cls, folder: Path) -> "Fit":
        """Read what `save` wrote."""
        stored = json.loads((folder / "fit.json").read_text())
        certificate = stored["certificate"] | {"bounds_hit": tuple(stored["certificate"]["bounds_hit"])}
        return cls(
            family=stored["family"],
            law=AdditiveLaw(**stored["parameters"]),
            objective=stored["objective"],
            objective_value=stored["objective_value"],
            certificate=Certificate(**certificate),
            draws=np.load(folder / "draws.npy", allow_pickle=False),
            resampling=stored["resampling"],
            rows=pl.read_parquet(folder / "rows.parquet"),
            warnings=tuple(Warning(**warning) for warning in stored["warnings"]),
        )


def kept(folder: Path, frame: pl.DataFrame, *, allow_mixed: bool = False) -> list[Fit]:
    """Fits saved below `folder` by this method from exactly the rows of `frame`; none where either has changed.

    Raises RefusalError where `fit` would for mixed rows: a fit made with `allow_mixed` answers only those who ask so.
    """
    documents = sorted(folder.glob("*/fit.json"))
    if not documents or any(json.loads(path.read_text()).get("method") != METHOD for path in documents):
        return []
    fits = [Fit.load(path.parent) for path in documents]
    if not pl.concat([one.rows for one in fits]).sort("run_id").equals(frame.sort("run_id")):
        return []
    for one in fits:
        _refuse(one.family, one.used, allow_mixed)
    return fits


def fit(
    frame: pl.DataFrame,
    *,
    delta: float = DELTA,
    num_starts: int = STARTS,
    num_draws: int = DRAWS,
    seed: int = 0,
    allow_mixed: bool = False,
) -> list[Fit]:
    """Fit E + A/N^alpha + B/D^beta to each family of a frame from `analysis.runs`, by Huber loss on log loss.

    Raises RefusalError where the rows cannot give an answer: too few, one size only, constant loss, or different
    evaluations, tokenizers or schedules in one family, unless `allow_mixed`.
    """
    families = frame["family"].unique(maintain_order=True).to_list()
    if not families:
        raise RefusalError("no-rows", "there are no runs to fit")
    fits, refusals = [], []
    for family in families:
        rows = frame.filter(pl.col("family") == family)
        try:
            _refuse(family, rows.filter(pl.col("excluded").is_null()), allow_mixed)
        except RefusalError as refusal:
            refusals.append(refusal)
        else:
            fits.append(_fit_family(family, rows, delta, num_starts, num_draws, seed))
    if refusals and (not fits or len(families) == 1):
        raise refusals[0]
    if refusals:
        names = "; ".join(str(refusal) for refusal in refusals)
        warning = Warning("family-not-fitted", names)
        fits = [replace(fitted, warnings=(*fitted.warnings, warning)) for fitted in fits]
    return fits


def _refuse(family: str, rows: pl.DataFrame, allow_mixed: bool) -> None:
    count = rows.height
    needed = len(AdditiveLaw.NAMES)
    if count <= needed:
        raise RefusalError(
            "too-few-points",
            f"{family}: {count} usable runs cannot determine {needed} parameters; at least {needed + 1}",
        )
    for name, what in (("parameters", "model size"), ("tokens", "token budget")):
        if rows[name].n_unique() < 2:
            raise RefusalError(
                "one-value", f"{family}: all runs have the same {what}; the law needs at least two, better four"
            )
    if rows["loss"].n_unique() == 1:
        raise RefusalError("constant-loss", f"{family}: every run has the same loss {rows['loss'][0]}")
    if not allow_mixed:
        quality.refuse_mixed(family, rows)


def _fit_family(family: str, rows: pl.DataFrame, delta: float, num_starts: int, num_draws: int, seed: int) -> Fit:
    used = rows.filter(pl.col("excluded").is_null())
    points = Points(
        log_n=np.log(used["parameters"].to_numpy()),
        log_d=np.log(used["tokens"].to_numpy()),
        log_loss=np.log(used["loss"].to_numpy()),
        weights=np.ones(used.height),
    )
    ends = optimizer.descend(optimizer.starts(points, num_starts, seed), points, delta)
    values = optimizer.objective(ends, points, delta)
    best = optimizer.polish(ends[int(np.argmin(values))], points, delta)
    value = float(optimizer.objective(best[None], points, delta)[0])
    draws, converged_draws, resampling = _bootstrap(best, points, used["cluster"].to_list(), delta, num_draws, seed)
    hit = optimizer.at_bounds(best)
    names = ("A", "B", "E", "alpha", "beta")
    small = optimizer.scaled_gradient(best, points, delta)
    certificate = Certificate(
        converged=bool(small < 1e-5),
        agreeing_starts=float(np.mean(values <= value * (1 + AGREEMENT) + 1e-18)),
        scaled_gradient=small,
        bounds_hit=tuple(name for name, is_hit in zip(names, hit, strict=True) if is_hit),
        condition_number=_condition_number(best, points, delta),
        converged_draws=converged_draws,
    )
    law = AdditiveLaw.from_vector(best)
    warnings = _warnings(family, certificate, used, draws)
    return Fit(
        family, law, f"Huber on log loss, delta {delta:g}", value, certificate, draws, resampling, rows, warnings
    )


def _bootstrap(
    best: Array, points: Points, clusters: Sequence[str | None], delta: float, count: int, seed: int
) -> tuple[Array, float, str]:
    """Draws of theta, the share of resamples whose fit converged, and the kind of resampling.

    Runs of one cluster (a shared trunk) are resampled together. With many clusters, whole clusters are drawn with
    replacement (case bootstrap, Efron 1979); with few, residuals keep their place and are given a random sign per
    cluster, inflated for the degrees of freedom the fit used (wild bootstrap, Wu 1986).
    """
    random = np.random.default_rng(seed + 1)
    _, member = np.unique([c if c is not None else str(i) for i, c in enumerate(clusters)], return_inverse=True)
    groups, size = int(member.max()) + 1, len(points.log_loss)
    if groups >= CASE_BOOTSTRAP_FROM:
        weights = random.multinomial(groups, np.full(groups, 1 / groups), size=count)[:, member].astype(float)
        resampled = Points(points.log_n, points.log_d, np.broadcast_to(points.log_loss, (count, size)), weights)
        resampling = f"case bootstrap over {groups} clusters"
    else:
        predicted = log_loss(best[None], points.log_n, points.log_d)[0][0]
        residual = (points.log_loss - predicted) * np.sqrt(size / max(size - len(best), 1))
        signs = random.choice([-1.0, 1.0], (count, groups))[:, member]
        resampled = Points(points.log_n, points.log_d, predicted + signs * residual, np.ones((count, size)))
        resampling = f"wild bootstrap over {groups} clusters"
    draws = optimizer.descend(np.tile(best, (count, 1)), resampled, delta)
    fixed = np.array(
        [
            optimizer.scaled_gradient(draw, Points(points.log_n, points.log_d, y, w), delta) < 1e-2
            for draw, y, w in zip(draws, resampled.log_loss, resampled.weights, strict=True)
        ]
    )
    return draws, float(fixed.mean()), resampling


def _condition_number(theta: Array, points: Points, delta: float) -> float:
    predicted, shares = log_loss(theta[None], points.log_n, points.log_d)
    majorant = np.sqrt(delta / np.maximum(np.abs(predicted[0] - points.log_loss), delta))
    slope = optimizer.jacobian(shares, points)[0] * majorant
    scaled = slope / np.maximum(np.linalg.norm(slope, axis=1, keepdims=True), 1e-300)
    singular = np.linalg.svd(scaled, compute_uv=False)
    return float((singular[0] / max(singular[-1], 1e-150)) ** 2)


def _warnings(family: str, certificate: Certificate, used: pl.DataFrame, draws: Array) -> tuple[Warning, ...]:
    found = []
    count = used.height
    if not certificate.converged:
        found.append(
            Warning(
                "not-converged", f"{family}: the scaled gradient is {certificate.scaled_gradient:.1e} at the best point"
            )
        )
    if certificate.bounds_hit:
        listed = ", ".join(certificate.bounds_hit)
        found.append(Warning("bounds-hit", f"{family}: {listed} lies on its bound: the data do not determine it"))
    if certificate.agreeing_starts < 0.1:
        found.append(
            Warning("few-starts-agree", f"{family}: {certificate.agreeing_starts:.0%} of the starts found this optimum")
        )
    if count < 3 * len(AdditiveLaw.NAMES):
        found.append(
            Warning(
                "few-points",
                f"{family}: {count} runs for 5 parameters; the intervals hold in their order of magnitude only",
            )
        )
    for name, column in (("alpha", 3), ("beta", 4)):
        low, high = _pair(draws[:, column])
        if high > 2 * low:
            found.append(
                Warning("weakly-identified", f"{family}: {name} is only known to lie between {low:.3g} and {high:.3g}")
            )
    irreducible = np.exp(draws[:, 2])
    if np.quantile(irreducible, 0.025) < 0.1 * float(used["loss"].min()):
        found.append(Warning("irreducible-loss-open", f"{family}: the data do not tell the irreducible loss from zero"))
    if certificate.converged_draws < 0.95:
        found.append(
            Warning(
                "draws-not-converged", f"{family}: {certificate.converged_draws:.0%} of the bootstrap fits converged"
            )
        )
    return tuple(found)


def _quantiles(drawn: Array) -> tuple[Array, Array]:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
    return low, high


def _pair(values: Array) -> tuple[float, float]:
    low, high = _quantiles(values)
    return float(low), float(high)
