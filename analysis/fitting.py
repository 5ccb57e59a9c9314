"""Fit a law to runs, with a certificate that the optimum was found and intervals that say how well it is known.

`fit(frame)` returns one `Fit` per model family: the law at full precision, bootstrap draws, the certificate, and which
rows were used and which left out, each with its reason. A fit is saved as a folder from which all else is drawn.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike

from analysis import quality, regression
from analysis.findings import RefusalError, Warning
from analysis.forms import FORMS
from analysis.laws import SMALLEST, AdditiveLaw, Array
from analysis.objectives import Objective
from analysis.regression import LEVEL, Certificate, percentile

DELTA = 1e-3
"""Huber's threshold on log loss (Hoffmann et al. 2022, appendix D.3)."""
STARTS = 1000
DRAWS = 1000
METHOD = 3
"""Which way of fitting a saved fit comes from: raise it when the same rows would now give another answer."""


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
        shape = np.broadcast_shapes(np.shape(parameters), np.shape(tokens))
        log_a, log_b, log_e, alpha, beta = (column.reshape(-1, *[1] * len(shape)) for column in self.draws.T)
        by_size, by_data = log_a - alpha * np.log(parameters), log_b - beta * np.log(tokens)
        drawn = np.exp(log_e) + np.exp(by_size) + np.exp(by_data)
        low, high = _quantiles(drawn)
        return center, low, high

    @property
    def parameters(self) -> dict[str, float]:
        """The law's parameters; a coefficient on its lower bound is 0."""
        return {name: float(_zero_at_bound(getattr(self.law, name))) for name in AdditiveLaw.NAMES}

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Interval of each of the law's parameters over the draws, at level 0.95."""
        a, b, e = _zero_at_bound(np.exp(self.draws[:, :3])).T
        drawn = {"E": e, "A": a, "B": b, "alpha": self.draws[:, 3], "beta": self.draws[:, 4]}
        return {name: percentile(drawn[name]) for name in AdditiveLaw.NAMES}

    def compute_optimal_interval(self) -> tuple[float, float]:
        """Interval of the exponent a in N* ~ C^a."""
        return percentile(self.draws[:, 4] / (self.draws[:, 3] + self.draws[:, 4]))

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
            "parameters": self.parameters,
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
    found = regression.fit_form(
        used, FORMS["additive"], Objective(delta=delta), num_starts=num_starts, num_draws=num_draws, seed=seed
    )
    warnings = [Warning(warning.code, f"{family}: {warning.message}") for warning in found.warnings]
    return Fit(
        family=family,
        law=AdditiveLaw.from_vector(found.theta),
        objective=found.objective.name,
        objective_value=found.objective_value,
        certificate=found.certificate,
        draws=found.draws,
        resampling=found.resampling,
        rows=rows,
        warnings=(*warnings, *_weaknesses(family, used, found.draws)),
    )


def _weaknesses(family: str, used: pl.DataFrame, draws: Array) -> list[Warning]:
    """What the draws say that these rows do not determine."""
    found = []
    for name, column in (("alpha", 3), ("beta", 4)):
        low, high = percentile(draws[:, column])
        if high > 2 * low:
            found.append(
                Warning("weakly-identified", f"{family}: {name} is only known to lie between {low:.3g} and {high:.3g}")
            )
    if percentile(np.exp(draws[:, 2]))[0] < 0.1 * float(used["loss"].min()):
        found.append(Warning("irreducible-loss-open", f"{family}: the data do not tell the irreducible loss from zero"))
    return found


def _zero_at_bound(coefficient: ArrayLike) -> Array:
    """Coefficients are fitted above SMALLEST, which stands for zero."""
    return np.where(np.asarray(coefficient) <= SMALLEST * (1 + 1e-6), 0.0, coefficient)


def _quantiles(drawn: Array) -> tuple[Array, Array]:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
    return low, high
