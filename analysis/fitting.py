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
from analysis.findings import FitWarning, RefusalError
from analysis.forms import ADDITIVE, FORMS, Form, FormLaw, Law, law_of
from analysis.laws import SMALLEST, AdditiveLaw, Array
from analysis.objectives import HUBER, Objective
from analysis.regression import LEVEL, Certificate, percentile

STARTS = 1000
DRAWS = 1000
METHOD = 3
"""Which way of fitting a saved fit comes from: raise it when the same rows would now give another answer."""


@dataclass(frozen=True)
class Fit:
    """A fitted law, with all that is needed to judge it and to draw it again."""

    family: str
    law: Law
    objective: str
    objective_value: float
    certificate: Certificate
    draws: Array
    """(draws, k): the form's coordinates for each bootstrap resample; of the additive one log A, log B, log E, alpha,
    beta."""
    resampling: str
    rows: pl.DataFrame
    """Used and excluded rows; `excluded` is null for the used ones."""
    warnings: tuple[FitWarning, ...]
    form: Form = ADDITIVE

    @property
    def drawn_laws(self) -> list[Law]:
        """The law of each bootstrap draw."""
        return [law_of(self.form, draw) for draw in self.draws]

    @property
    def theta(self) -> Array:
        """The form's coordinates (k,)."""
        return self.law.theta if isinstance(self.law, FormLaw) else self.law.to_vector()

    @property
    def used(self) -> pl.DataFrame:
        return self.rows.filter(pl.col("excluded").is_null())

    def predict(self, parameters: ArrayLike, tokens: ArrayLike) -> tuple[Array, Array, Array]:
        """Loss at (N, D), and the bounds of its interval over the draws."""
        center = self.law.predict(parameters, tokens)
        if self.form is not ADDITIVE:
            low, high = _quantiles(self.form.loss_at(self.draws, parameters, tokens))
            return center, low, high
        shape = np.broadcast_shapes(np.shape(parameters), np.shape(tokens))
        log_a, log_b, log_e, alpha, beta = (column.reshape(-1, *[1] * len(shape)) for column in self.draws.T)
        by_size, by_data = log_a - alpha * np.log(parameters), log_b - beta * np.log(tokens)
        drawn = np.exp(log_e) + np.exp(by_size) + np.exp(by_data)
        low, high = _quantiles(drawn)
        return center, low, high

    @property
    def parameters(self) -> dict[str, float]:
        """The law's parameters, the irreducible loss first; a coefficient on its lower bound is 0."""
        if isinstance(self.law, AdditiveLaw):
            return {name: float(_zero_at_bound(getattr(self.law, name))) for name in AdditiveLaw.NAMES}
        return {name: float(value) for name, value in self._zeroed(self.law.theta).items()}

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Interval of each of the law's parameters over the draws, at level 0.95."""
        return {name: percentile(drawn) for name, drawn in self._zeroed(self.draws).items()}

    def _zeroed(self, theta: Array) -> dict[str, Array]:
        """Parameters by name, E first; coefficients on their lower bound are 0."""
        values = self.form.parameters(theta)
        zeroed = {
            name: _zero_at_bound(values[name]) if f"log {name}" in self.form.coordinates else values[name]
            for name in values
        }
        return {name: zeroed[name] for name in sorted(zeroed, key=lambda name: name != "E")}

    def compute_optimal_interval(self) -> tuple[float, float]:
        """Interval of the exponent a in N* ~ C^a."""
        if self.form is ADDITIVE:
            return percentile(self.draws[:, 4] / (self.draws[:, 3] + self.draws[:, 4]))
        return percentile(np.array([law.parameters_exponent for law in self.drawn_laws]))

    def _compute_optimal(self) -> dict[str, Any] | None:
        """The exponent a with its interval; None where the form does not say how to split compute."""
        try:
            exponent = self.law.parameters_exponent
        except RefusalError:
            return None
        return {"parameters_exponent": exponent, "interval": list(self.compute_optimal_interval())}

    def to_json(self) -> dict[str, Any]:
        """Plain values, in the shape of `scaling fit --json`."""
        excluded = self.rows.with_row_index("row").filter(pl.col("excluded").is_not_null())
        return {
            "family": self.family,
            "method": METHOD,
            "law": self.form.formula,
            "conventions": {"N": "total parameters", "D": "training tokens", "C": "exact FLOPs, else 6ND"},
            "objective": self.objective,
            "objective_value": self.objective_value,
            "parameters": self.parameters,
            "intervals": {name: list(bounds) for name, bounds in self.intervals().items()},
            "interval_level": LEVEL,
            "resampling": self.resampling,
            "compute_optimal": self._compute_optimal(),
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
        form = next(form for form in FORMS.values() if form.formula == stored["law"])
        parameters = stored["parameters"]
        return cls(
            family=stored["family"],
            law=AdditiveLaw(**parameters) if form is ADDITIVE else FormLaw(form, form.theta(parameters)),
            objective=stored["objective"],
            objective_value=stored["objective_value"],
            certificate=Certificate(**certificate),
            draws=np.load(folder / "draws.npy", allow_pickle=False),
            resampling=stored["resampling"],
            rows=pl.read_parquet(folder / "rows.parquet"),
            warnings=tuple(FitWarning(**warning) for warning in stored["warnings"]),
            form=form,
        )


def kept(
    folder: Path,
    frame: pl.DataFrame,
    *,
    form: Form = ADDITIVE,
    objective: Objective = HUBER,
    allow_mixed: bool = False,
) -> list[Fit]:
    """Fits saved below `folder` by this method from exactly the rows of `frame`; none where either has changed.

    Nor are there any where another form or objective was fitted.

    Raises RefusalError where `fit` would for mixed rows: a fit made with `allow_mixed` answers only those who ask so.
    """
    documents = sorted(folder.glob("*/fit.json"))
    if not documents or any(json.loads(path.read_text()).get("method") != METHOD for path in documents):
        return []
    fits = [Fit.load(path.parent) for path in documents]
    if any(one.form is not form or one.objective != objective.name for one in fits):
        return []
    if not pl.concat([one.rows for one in fits]).sort("run_id").equals(frame.sort("run_id")):
        return []
    for one in fits:
        _refuse(one.family, one.used, form, allow_mixed)
    return fits


def fit(
    frame: pl.DataFrame,
    *,
    form: Form = ADDITIVE,
    objective: Objective = HUBER,
    num_starts: int | None = None,
    num_draws: int = DRAWS,
    seed: int = 0,
    allow_mixed: bool = False,
) -> list[Fit]:
    """Fit a form to each family of a frame from `analysis.runs`; by default the additive law, by Huber loss on log loss.

    `num_starts` left out are STARTS, and `regression.STARTS` for a form that `analysis.optimizer` does not fit.
    Raises RefusalError where the rows cannot give an answer: too few, one size only, constant loss, or different
    evaluations, tokenizers or schedules in one family, unless `allow_mixed`.
    """
    families = frame["family"].unique(maintain_order=True).to_list()
    if not families:
        raise RefusalError("no-rows", "there are no runs to fit")
    if num_starts is None:
        num_starts = regression.STARTS if form.structure is None else STARTS
    fits, refusals = [], []
    for family in families:
        rows = frame.filter(pl.col("family") == family)
        try:
            _refuse(family, rows.filter(pl.col("excluded").is_null()), form, allow_mixed)
        except RefusalError as refusal:
            refusals.append(refusal)
        else:
            fits.append(_fit_family(family, rows, form, objective, num_starts, num_draws, seed))
    if refusals and (not fits or len(families) == 1):
        raise refusals[0]
    if refusals:
        names = "; ".join(str(refusal) for refusal in refusals)
        warning = FitWarning("family-not-fitted", names)
        fits = [replace(fitted, warnings=(*fitted.warnings, warning)) for fitted in fits]
    return fits


def _refuse(family: str, rows: pl.DataFrame, form: Form, allow_mixed: bool) -> None:
    count = rows.height
    needed = len(form.coordinates)
    if count <= needed:
        raise RefusalError(
            "too-few-points",
            f"{family}: {count} usable runs cannot determine {needed} parameters; at least {needed + 1}",
        )
    for name, what in (("parameters", "model size"), ("tokens", "token budget"), ("flops", "compute")):
        if name in form.inputs and rows[name].n_unique() < 2:
            raise RefusalError(
                "one-value", f"{family}: all runs have the same {what}; the law needs at least two, better four"
            )
    if rows["loss"].n_unique() == 1:
        raise RefusalError("constant-loss", f"{family}: every run has the same loss {rows['loss'][0]}")
    if not allow_mixed:
        quality.refuse_mixed(family, rows)


def _fit_family(
    family: str, rows: pl.DataFrame, form: Form, objective: Objective, num_starts: int, num_draws: int, seed: int
) -> Fit:
    used = rows.filter(pl.col("excluded").is_null())
    found = regression.fit_form(used, form, objective, num_starts=num_starts, num_draws=num_draws, seed=seed)
    warnings = [FitWarning(warning.code, f"{family}: {warning.message}") for warning in found.warnings]
    return Fit(
        family=family,
        law=law_of(form, found.theta),
        objective=found.objective.name,
        objective_value=found.objective_value,
        certificate=found.certificate,
        draws=found.draws,
        resampling=found.resampling,
        rows=rows,
        warnings=(*warnings, *_weaknesses(family, used, form, found.draws)),
        form=form,
    )


def _weaknesses(family: str, used: pl.DataFrame, form: Form, draws: Array) -> list[FitWarning]:
    """What the draws say that these rows do not determine."""
    found = []
    for name in ("alpha", "beta", "eta", "gamma"):
        if name not in form.coordinates:
            continue
        low, high = percentile(draws[:, form.coordinates.index(name)])
        if high > 2 * low:
            found.append(
                FitWarning(
                    "weakly-identified", f"{family}: {name} is only known to lie between {low:.3g} and {high:.3g}"
                )
            )
    floor = form.parameters(draws).get("E")
    if floor is not None and percentile(floor)[0] < 0.1 * float(np.min(used["loss"].to_numpy())):
        found.append(
            FitWarning("irreducible-loss-open", f"{family}: the data do not tell the irreducible loss from zero")
        )
    return found


def _zero_at_bound(coefficient: ArrayLike) -> Array:
    """Coefficients are fitted above SMALLEST, which stands for zero."""
    return np.where(np.asarray(coefficient) <= SMALLEST * (1 + 1e-6), 0.0, coefficient)


def _quantiles(drawn: Array) -> tuple[Array, Array]:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
    return low, high
