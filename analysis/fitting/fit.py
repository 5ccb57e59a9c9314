"""A fitted law as a value: any form, with its certificate, bootstrap draws, and the rows used and left out.

A fit is saved as a folder (`fit.json`, `draws.npy`, `rows.parquet`) from which all else is drawn.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike

from analysis.data.quality import usable
from analysis.findings import FitWarning, RefusalError
from analysis.fitting.bootstrap import LEVEL, TAILS, UNBOUNDED, percentile
from analysis.fitting.certificate import Certificate, Rollout
from analysis.laws.additive import SMALLEST, AdditiveLaw, Array, log_terms
from analysis.laws.forms import ADDITIVE, FORMS, LETTERS, Form, FormLaw, Law, find, law_of
from analysis.laws.objectives import Objective
from analysis.laws.token_cost import TokenCost
from xlstm.run.json_files import DamagedFileError, write_text

ROWS_AT_ONCE = 4096
"""Rows whose losses by all draws are held in memory together."""
OTHERS = "others"
"""Folder, beside a saved fit, of the other forms that were fitted to the same rows."""
SAME_INFORMATION, SAME_ROLLOUT = 2.0, 1.25
"""Another form fits as well where its AICc is at most this much more, its rollout's error this many times as large."""
BEYOND = 1.005
"""Times the largest or smallest from which on a number is outside the runs: less is how people round it."""
METHOD = 3
"""Which way of fitting a saved fit comes from: raise it when the same rows would now give another law or draws."""
JUDGEMENT = 2
"""Which way of judging it comes from: raise it when the same law would now have other doubts. Its law still answers."""


@dataclass(frozen=True)
class Fit:
    """A fitted law, with all that is needed to judge it and to draw it again."""

    family: str
    form: Form
    law: Law
    objective: Objective
    objective_value: float
    certificate: Certificate
    draws: Array
    """(draws, k): the form's coordinates for each bootstrap resample."""
    resampling: str
    rows: pl.DataFrame
    """Used and excluded rows; `excluded`, where there is such a column, is null for the used ones."""
    warnings: tuple[FitWarning, ...]
    rollout: Rollout | None = None
    """None where it was not asked for, or too few cheap runs determine the form."""
    others: tuple["Fit", ...] = ()
    """The other forms fitted to the same rows, where a form was chosen."""
    noise_exponent: float = 0.0
    """The power of C by which the scatter about the law is taken to go where the fit weighs its runs."""
    scatter: tuple[float, float] = (0.0, 0.0)
    """The power of C by which the scatter is found to go, and that power's standard error, for what a new run does."""
    judgement: int = JUDGEMENT

    def __repr__(self) -> str:
        values = ", ".join(f"{name} = {value:.4g}" for name, value in self.parameters.items())
        return f"<fit of {self.family}: {values}; {self.used.height} runs>"

    def _repr_html_(self) -> str:
        """A row per parameter with its interval, for notebooks."""
        intervals = self.intervals()
        rows = [(name, value, *intervals[name]) for name, value in self.parameters.items()]
        frame = pl.DataFrame(rows, schema=["parameter", "value", "low", "high"], orient="row")
        return f"<p>{self.family}: {self.used.height} runs</p>{frame._repr_html_()}"

    @property
    def theta(self) -> Array:
        """The form's coordinates (k,)."""
        return self.form.theta(self.law.values)

    @property
    def drawn_laws(self) -> list[Law]:
        """The law of each bootstrap draw."""
        return [law_of(self.form, draw) for draw in self.draws]

    @property
    def used(self) -> pl.DataFrame:
        """The rows that were fitted."""
        return usable(self.rows)

    @property
    def parameters(self) -> dict[str, float]:
        """The law's parameters by name, the irreducible loss first; a coefficient on its lower bound is 0."""
        return {name: float(value) for name, value in self._zeroed(self.law.values).items()}

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Interval of each parameter over the draws, at level 0.95."""
        return {name: percentile(drawn) for name, drawn in self._zeroed(self.form.parameters(self.draws)).items()}

    def interval(self, quantity: Callable[[dict[str, Array]], Array]) -> tuple[float, float]:
        """Interval over the draws, at level 0.95, of what `quantity` makes of the parameters by name, (draws,) each."""
        return percentile(quantity(self.form.parameters(self.draws)))

    def compute_optimal_interval(self) -> tuple[float, float]:
        """Interval of the exponent a in N* ~ C^a. RefusalError for a form that does not say how to split compute."""
        return percentile(np.array([law.parameters_exponent for law in self.drawn_laws]))

    @cached_property
    def rivals(self) -> tuple["Fit", ...]:
        """The other forms that explain the runs as well as this one, by AICc and by rollout."""
        return tuple(other for other in self.others if self._is_met_by(other))

    def _is_met_by(self, other: "Fit") -> bool:
        if other.information > self.information + SAME_INFORMATION:
            return False
        return self.rollout is None or other.rollout is None or other.rollout.error <= SAME_ROLLOUT * self.rollout.error

    @property
    def can_split(self) -> bool:
        """Whether the form says how compute is best split between N and D."""
        return self.form.split is not None

    def predict(
        self, parameters: ArrayLike, tokens: ArrayLike, unique_tokens: ArrayLike | None = None
    ) -> tuple[Array, Array, Array]:
        """Loss at (N, D), and the bounds of its interval over the draws.

        A form of compute is given what the fit's own runs would have cost. One of unique tokens takes all tokens to be
        different where `unique_tokens` is left out. The bounds are those of the draws, moved apart by what other forms
        that fit as well predict (`rivals`), and widened as the rollout's dear runs would have needed.
        """
        center, drawn = self._at(parameters, tokens, unique_tokens)
        return center, *self._bounds(center, drawn, self._rivals_at(parameters, tokens, unique_tokens))

    def predict_run(
        self, parameters: ArrayLike, tokens: ArrayLike, unique_tokens: ArrayLike | None = None
    ) -> tuple[Array, Array]:
        """Bounds of the interval for the loss of one new run: as `predict`'s, with the scatter of runs about the law.

        Every draw of the law meets a residual drawn from the fit's, enlarged for the degrees of freedom it used
        (Davison & Hinkley 1997, section 6.3.3), and as large as the scatter is found to be at that run's compute.
        """
        center, drawn = self._at(parameters, tokens, unique_tokens)
        flops = self.token_cost.per_token(parameters) * np.asarray(tokens, float)
        return self._bounds(center, self._scattered(drawn, flops), self._rivals_at(parameters, tokens, unique_tokens))

    def new_runs(self, frame: pl.DataFrame) -> tuple[Array, Array, Array]:
        """Loss at the rows of a frame that has the form's inputs, and the bounds for one new run at each."""
        center, bounds = self.predict_rows(frame), []
        for first in range(0, frame.height, ROWS_AT_ONCE):
            piece = frame[first : first + ROWS_AT_ONCE]
            drawn = self._scattered(self.drawn_rows(piece), piece["flops"].to_numpy())
            bounds.append(np.stack(self._bounds(center[first : first + ROWS_AT_ONCE], drawn, [])))
        low, high = np.concatenate(bounds, axis=1)
        return center, low, high

    def _at(self, parameters: ArrayLike, tokens: ArrayLike, unique_tokens: ArrayLike | None) -> tuple[Array, Array]:
        """Loss at (N, D), and by each draw: (draws, *shape)."""
        if isinstance(self.law, AdditiveLaw):
            shape = np.broadcast_shapes(np.shape(parameters), np.shape(tokens))
            columns = [column.reshape(-1, *[1] * len(shape)) for column in self.draws.T]
            by_size, by_data, floor = log_terms(columns, np.log(parameters), np.log(tokens))
            return self.law.predict(parameters, tokens), np.exp(floor) + np.exp(by_size) + np.exp(by_data)
        at = self.log_inputs(parameters, tokens, unique_tokens)
        return self.form.loss(self.theta[None], at)[0], self.form.loss(self.draws, at)

    def _rivals_at(self, parameters: ArrayLike, tokens: ArrayLike, unique_tokens: ArrayLike | None) -> list[Array]:
        return [rival._at(parameters, tokens, unique_tokens)[0] for rival in self.rivals]

    @cached_property
    def noise(self) -> Array:
        """Factors of one run's scatter about the law at the runs' mean log C, one for each draw: (draws,)."""
        residual = self.residuals * np.exp(-self.noise_exponent * self._far(self.used["flops"].to_numpy()))
        enlarged = residual * np.sqrt(len(residual) / max(len(residual) - len(self.form.coordinates), 1))
        return np.exp(np.random.default_rng(3).choice(enlarged, len(self.draws)))

    @cached_property
    def noise_exponents(self) -> Array:
        """What power of C the scatter may go by, one for each draw: (draws,)."""
        exponent, error = self.scatter
        freedom = max(self.used.height - len(self.form.coordinates) - 2, 1)
        return np.asarray(exponent + error * np.random.default_rng(4).standard_t(freedom, len(self.draws)))

    def _far(self, flops: ArrayLike) -> Array:
        """log C less its mean over the runs."""
        return np.asarray(np.log(np.asarray(flops, float)) - np.log(self.used["flops"].to_numpy()).mean())

    def _scattered(self, drawn: Array, flops: Array) -> Array:
        """What each draw says (draws, *shape), with the scatter of one run of so much compute.

        Scatter that falls with C falls no further beyond the dearest run, where nobody saw it. Where runs are not
        weighed by it, a slope that may be chance makes no run scatter less than runs do on the whole.
        """
        each = (-1, *[1] * (drawn.ndim - 1))
        exponents, far = self.noise_exponents.reshape(each), self._far(flops)
        seen = np.minimum(far, self._far(np.max(self.used["flops"].to_numpy())))
        scale = np.exp(exponents * np.where(exponents < 0, seen, far))
        power = scale if self.noise_exponent else np.maximum(scale, 1.0)
        with np.errstate(over="ignore"):  # far outside the runs the scatter may have no end
            return np.asarray(drawn * self.noise.reshape(each) ** power)

    def _bounds(self, center: Array, drawn: Array, rivals: Sequence[Array]) -> tuple[Array, Array]:
        """Quantiles of the draws, apart by what rivals say, and widened in log loss by the rollout."""
        low, high = np.quantile(drawn, TAILS, axis=0)
        if rivals:
            apart = np.stack(rivals) - center
            low, high = np.maximum(low + np.minimum(apart.min(axis=0), 0), 0), high + np.maximum(apart.max(axis=0), 0)
        if self.rollout is not None and self.rollout.widening > 1:
            low, high = (center * (bound / center) ** self.rollout.widening for bound in (low, high))
        return low, high

    def is_bounded(self, low: float, high: float) -> bool:
        """Whether an interval of a loss says anything, held against the losses that were fitted."""
        return bool(np.isfinite([low, high]).all() and high <= UNBOUNDED * self.used["loss"].to_numpy().max())

    def log_inputs(self, parameters: ArrayLike, tokens: ArrayLike, unique_tokens: ArrayLike | None = None) -> Array:
        """`Form.log_inputs`, compute being what the fit's own runs would have cost."""
        cost = self.token_cost.per_token(parameters) if "flops" in self.form.inputs else None
        flops = None if cost is None else cost * np.asarray(tokens, float)
        return self.form.log_inputs(parameters, tokens, flops, unique_tokens)

    def predict_flops(self, flops: Array) -> tuple[Array, Array, Array]:
        """Loss at each compute, and the bounds of its interval over the draws, by a form of compute alone."""
        at = np.log(flops)[None]
        center = self.form.loss(self.theta[None], at)[0]
        return center, *self._bounds(center, self.form.loss(self.draws, at), [])

    def predict_rows(self, frame: pl.DataFrame) -> Array:
        """Loss at the rows of a frame that has the form's inputs."""
        return np.asarray(self.form.loss(self.theta[None], self.form.log_inputs_of(frame))[0])

    def drawn_rows(self, frame: pl.DataFrame) -> Array:
        """Loss at the rows of a frame that has the form's inputs, by each draw: (draws, rows)."""
        return self.form.loss(self.draws, self.form.log_inputs_of(frame))

    @property
    def residuals(self) -> Array:
        """Logarithm of measured over predicted loss at the rows that were fitted."""
        used = self.used
        if isinstance(self.law, AdditiveLaw):
            predicted = self.law.predict(used["parameters"].to_numpy(), used["tokens"].to_numpy())
        else:
            predicted = self.predict_rows(used)
        return np.asarray(np.log(used["loss"].to_numpy() / predicted))

    @property
    def slopes(self) -> Array:
        """Derivatives of log loss by theta at the rows that were fitted: (rows, k)."""
        return np.asarray(self.form.jacobian(self.theta[None], self.form.log_inputs_of(self.used))[0].T)

    @cached_property
    def token_cost(self) -> TokenCost:
        """What a token costs at N parameters, as the fit's own runs counted it, smoothly in N.

        Runs hold exact FLOPs where they were planned here, so that attention, heads and cells are counted, not only 6N.
        """
        return TokenCost.of(*(self.used[name].to_numpy() for name in ("parameters", "tokens", "flops")))

    def extrapolation(self, asked: Mapping[str, float]) -> dict[str, float]:
        """Each of N (`parameters`), D (`tokens`) and C (`flops`) over the largest among the fitted runs."""
        return {name: value / float(np.max(self.used[name].to_numpy())) for name, value in asked.items()}

    def beyond(self, asked: Mapping[str, float]) -> str:
        """How far each of N, D and C lies outside the fitted runs, in words; empty where all lie among them."""
        told = []
        for name, value in asked.items():
            low, high = (float(end(self.used[name].to_numpy())) for end in (np.min, np.max))
            if value > BEYOND * high:
                told.append(f"{LETTERS[name]} {value / high:.3g} times the largest")
            elif value < low / BEYOND:
                told.append(f"{LETTERS[name]} {value / low:.3g} times the smallest")
        return f"{', '.join(told)} of its runs" if told else ""

    @property
    def information(self) -> float:
        """Akaike's criterion with small-sample correction (Hurvich & Tsai 1989), lower is better.

        The likelihood is the objective's own, exp(-rho(r)/s), with the scale s fitted: for Huber far beyond delta a
        Laplace density, for least squares a normal one. Comparable between forms under one objective only.
        """
        k, n = len(self.form.coordinates) + 1, self.used.height
        if n <= k + 1:
            return float("inf")
        # Profiling s out of n log Z(s) + sum rho / s; Z(s) ~ s for linear tails and s^(1/2) for squares.
        fitted = 2 * n * self.objective.power * np.log(max(self.objective_value, 1e-300) / n)
        return float(fitted + 2 * k + 2 * k * (k + 1) / (n - k - 1))

    def to_json(self) -> dict[str, Any]:
        """Plain values, in the shape of `scaling fit --json`."""
        excluded = self.rows.with_row_index("row").filter(pl.col("excluded").is_not_null())
        split = None
        if self.can_split:
            interval = list(self.compute_optimal_interval())
            split = {"parameters_exponent": self.law.parameters_exponent, "interval": interval}
        return {
            "family": self.family,
            "method": METHOD,
            "law": self.form.formula,
            "conventions": {"N": "total parameters", "D": "training tokens", "C": "exact FLOPs, else 6ND"},
            "objective": self.objective.name,
            "objective_value": self.objective_value,
            "parameters": self.parameters,
            "intervals": {name: list(bounds) for name, bounds in self.intervals().items()},
            "interval_level": LEVEL,
            "resampling": self.resampling,
            "compute_optimal": split,
            "certificate": asdict(self.certificate) | {"bounds_hit": list(self.certificate.bounds_hit)},
            "rows": {
                "used": self.used.height,
                "excluded": [
                    {"row": row["run_id"] or row["row"], "reason": row["excluded"]}
                    for row in excluded.iter_rows(named=True)
                ],
            },
            "warnings": [asdict(warning) for warning in self.warnings],
        }

    def weighed(self) -> dict[str, Any]:
        """The chosen form, and how it and the others stand: plain values, in the shape of `scaling fit --json`."""
        order = [*FORMS, self.form.name]
        fits = sorted([self, *self.others], key=lambda one: order.index(one.form.name))
        return {"chosen": self.form.name, "forms": [one._standing(chosen=one is self) for one in fits]}

    def _standing(self, *, chosen: bool) -> dict[str, Any]:
        document = self.to_json()
        kept = ("law", "objective_value", "parameters", "intervals", "compute_optimal", "certificate", "warnings")
        rolled = None if self.rollout is None else asdict(self.rollout)
        aicc = self.information if np.isfinite(self.information) else None
        standing = {"form": self.form.name, "chosen": chosen, "aicc": aicc, "rollout": rolled}
        return standing | {name: document[name] for name in kept}

    def save(self, folder: Path) -> None:
        """Write fit.json, draws.npy and rows.parquet; the other forms below `others`, by name."""
        self._save(folder)
        self.rows.write_parquet(folder / "rows.parquet")
        shutil.rmtree(folder / OTHERS, ignore_errors=True)
        for other in self.others:
            other._save(folder / OTHERS / other.form.name)

    def _save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        document = self.to_json() | {"form": self.form.name, "judgement": self.judgement}
        if self.rollout is not None:
            document["rollout"] = asdict(self.rollout)
        if self.noise_exponent:
            document["noise_exponent"] = self.noise_exponent
        if self.scatter != (0.0, 0.0):
            document["scatter"] = list(self.scatter)
        for name in ("draws.npy", "rows.parquet"):
            if (folder / name).is_dir() and not (folder / name).is_symlink():
                raise DamagedFileError(folder / name, "is a folder, where a file belongs", "remove it")
            (folder / name).unlink(missing_ok=True)
        write_text(folder / "fit.json", json.dumps(document, indent=2) + "\n")
        np.save(folder / "draws.npy", self.draws, allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> "Fit":
        """Read what `save` wrote. RefusalError for a form that is no longer known."""
        rows = pl.read_parquet(folder / "rows.parquet")
        others = sorted((folder / OTHERS).glob("*/fit.json"))
        return replace(cls._load(folder, rows), others=tuple(cls._load(path.parent, rows) for path in others))

    @classmethod
    def _load(cls, folder: Path, rows: pl.DataFrame) -> "Fit":
        stored = json.loads((folder / "fit.json").read_text())
        certificate = stored["certificate"] | {"bounds_hit": tuple(stored["certificate"]["bounds_hit"])}
        named = (form for form in FORMS.values() if form.formula == stored["law"])
        form = find(stored["form"]) if "form" in stored else next(named, None)  # earlier ones state the formula alone
        if form is None:
            raise RefusalError("no-such-form", f"{folder}: fitted to {stored['law']}, which is no form known here")
        parameters = stored["parameters"]
        return cls(
            family=stored["family"],
            form=form,
            law=AdditiveLaw(**parameters) if form is ADDITIVE else FormLaw(form, parameters),
            objective=Objective.of(stored["objective"]),
            objective_value=stored["objective_value"],
            certificate=Certificate(**certificate),
            draws=np.load(folder / "draws.npy", allow_pickle=False),
            resampling=stored["resampling"],
            rows=rows,
            warnings=tuple(FitWarning(**warning) for warning in stored["warnings"]),
            rollout=Rollout(**stored["rollout"]) if "rollout" in stored else None,
            noise_exponent=stored.get("noise_exponent", 0.0),
            scatter=tuple(stored.get("scatter", (0.0, 0.0))),
            judgement=stored.get("judgement", 1),
        )

    def _zeroed(self, values: Any) -> dict[str, Array]:
        """Values by parameter name, E first; coefficients on their lower bound, which stands for zero, are 0."""
        bounded = [name.removeprefix("log ") for name in self.form.coordinates if name.startswith("log ")]
        zeroed = {
            name: np.where(np.asarray(value) <= SMALLEST * (1 + 1e-6), 0.0, value) if name in bounded else value
            for name, value in values.items()
        }
        return {name: zeroed[name] for name in sorted(zeroed, key=lambda name: name != "E")}
