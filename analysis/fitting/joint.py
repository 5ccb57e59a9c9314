"""Several families in one fit, with some parameters in common and the others each family's own.

Whether two architectures share their exponents decides whether a compute multiplier is one number or grows with scale;
`regression.compare` cannot ask that of separate fits, and the information criterion of these can.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import polars as pl

from analysis.data.quality import usable
from analysis.findings import RefusalError
from analysis.fitting.fit import Fit
from analysis.fitting.regression import fit_form
from analysis.laws.additive import Array
from analysis.laws.forms import Complex, Form
from analysis.laws.objectives import HUBER, Objective

T = TypeVar("T")

NUMBER = "family_number"
"""Column that tells families apart: 1, 2, …, in the order of `Together.families`."""


@dataclass(frozen=True)
class Together:
    """One fit over families. Coordinates of one family alone are written `alpha[llama]`, shared ones `alpha`."""

    fit: Fit
    families: tuple[str, ...]
    shared: tuple[str, ...]

    def parameters(self, family: str) -> dict[str, float]:
        """One family's law, shared parameters included."""
        return self._of(family, self.fit.parameters)

    def intervals(self, family: str) -> dict[str, tuple[float, float]]:
        """Interval of each of its parameters over the draws, at level 0.95."""
        return self._of(family, self.fit.intervals())

    def predict(self, frame: pl.DataFrame) -> Array:
        """Loss at the rows of a frame with `family` and the form's inputs."""
        return self.fit.predict_rows(_numbered(frame, self.families))

    def _of(self, family: str, values: dict[str, T]) -> dict[str, T]:
        if family not in self.families:
            raise ValueError(f"no family {family!r} in the fit; there are {', '.join(self.families)}")
        mine = {name: value for name, value in values.items() if name.endswith(f"[{family}]") or "[" not in name}
        return {name.removesuffix(f"[{family}]"): value for name, value in mine.items()}


def fit_together(
    frame: pl.DataFrame,
    form: Form,
    shared: Sequence[str],
    objective: Objective = HUBER,
    *,
    num_draws: int = 0,
) -> Together:
    """Fit `form` to all families of `frame` (column `family`) at once, the parameters named in `shared` in common.

    Descents begin at the families' own fits: shared parameters at each family's value in turn and at their mean.
    Raises RefusalError as `fit_form` does, for each family by itself too, and for a single family; ValueError for a
    name in `shared` that the form does not have.
    """
    rows = usable(frame)
    if "family" not in rows.columns or rows["family"].n_unique() < 2:
        raise RefusalError("one-value", "fitting families together needs a column `family` with at least two of them")
    families = tuple(rows["family"].unique(maintain_order=True).to_list())
    plain = tuple(name.removeprefix("log ") for name in form.coordinates)
    unknown = [name for name in shared if name not in plain]
    if unknown:
        raise ValueError(f"{form.name} has no {', '.join(unknown)}; its parameters are {', '.join(plain)}")
    joint = joint_form(form, families, shared)
    alone = np.stack([fit_form(rows.filter(family=name), form, objective).theta for name in families])
    begin = [_begin(form, alone, common, shared) for common in (*alone, alone.mean(axis=0))]
    found = fit_form(_numbered(rows, families), joint, objective, begin=np.stack(begin), num_draws=num_draws)
    return Together(found, families, tuple(shared))


def joint_form(form: Form, families: Sequence[str], shared: Sequence[str]) -> Form:
    """The form over all families, with `family_number` as its last input."""
    names: list[str] = []
    source: list[int] = []  # which of the form's coordinates each entry of theta is
    columns: list[list[int]] = []  # of each coordinate, its entry for each family
    for index, name in enumerate(form.coordinates):
        if name.removeprefix("log ") in shared:
            columns.append([len(names)] * len(families))
            names.append(name)
            source.append(index)
        else:
            columns.append([len(names) + offset for offset in range(len(families))])
            names.extend(f"{name}[{family}]" for family in families)
            source.extend([index] * len(families))
    entries = np.array(columns)

    def evaluate(theta: Complex, x: Complex) -> Complex:
        number = np.rint(np.exp(x[-1].real)).astype(int) - 1
        return form.evaluate(theta[:, entries[:, number], 0], x[:-1])

    return replace(
        form,
        name=f"{form.name} of {len(families)} families",
        inputs=(*form.inputs, NUMBER),
        coordinates=tuple(names),
        lower=tuple(form.lower[index] for index in source),
        upper=tuple(form.upper[index] for index in source),
        evaluate=evaluate,
        structure=None,
    )


def _begin(form: Form, alone: Array, common: Array, shared: Sequence[str]) -> Array:
    """Theta of the joint form: shared entries from `common`, the others from each family's own fit."""
    parts = [
        common[index : index + 1] if name.removeprefix("log ") in shared else alone[:, index]
        for index, name in enumerate(form.coordinates)
    ]
    return np.concatenate(parts)


def _numbered(frame: pl.DataFrame, families: Sequence[str]) -> pl.DataFrame:
    unknown = sorted(set(frame["family"]) - set(families))
    if unknown:
        raise ValueError(f"no family {', '.join(unknown)} in the fit; there are {', '.join(families)}")
    numbers = {family: index + 1 for index, family in enumerate(families)}
    return frame.with_columns(pl.col("family").replace_strict(numbers, return_dtype=pl.Int64).alias(NUMBER))
