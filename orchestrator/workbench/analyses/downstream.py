"""From a law's loss to what a downstream task scores, with the uncertainty of both steps."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import polars as pl

from analysis.data.runs import EVALUATION
from analysis.decisions.downstream import choose_link
from analysis.findings import RefusalError
from analysis.fitting.families import DRAWS
from analysis.source import Source
from orchestrator.errors import InputError
from orchestrator.workbench.analyses.laws import Wishes, open_source
from xlstm.quantities import nearest

_ACCURACIES = ("acc_norm", "acc", "exact_match", "accuracy")
"""Measures of which one less the value is the error; of a task that has several, the first is meant."""
_ERRORS = ("loss", "perplexity", "bits_per_byte")
_ERROR = "downstream_error"


def fit_downstream(typed: Sequence[str], columns: Mapping[str, str], wishes: Wishes, name: str) -> list[dict[str, Any]]:
    """For each family the link from loss to the error of a task, and the error that its law foretells of each run.

    `name` is a task such as `hellaswag`, or a measure such as `tasks/hellaswag/acc`. InputError where no evaluation of
    the runs has it, or it cannot be fitted.
    """
    try:
        source = open_source(typed, columns, wishes)
        column = _column(source.frame.columns, name)
        return [_of_family(source, index, column) for index in range(len(source.fits))]
    except RefusalError as refusal:
        raise InputError(f"--downstream {name}: {refusal}") from None


def _of_family(source: Source, index: int, column: str) -> dict[str, Any]:
    fitted = source.fits[index]
    value = pl.col(column)
    error = value if column.rpartition("/")[2] in _ERRORS else 1.0 - value
    known = source.frame.select("run_id", error.alias(_ERROR)).drop_nulls()
    rows = fitted.used.join(known, on="run_id").sort("flops")
    if rows.is_empty():
        raise InputError(f"{fitted.family}: no run that was fitted has {column}")
    chosen = choose_link(rows, _ERROR, num_draws=DRAWS)
    foretold, low, high = chosen.link.predict_from(fitted, rows)
    runs = [
        {name: row[name] for name in ("run_id", "parameters", "tokens", "loss")}
        | {"error": row[_ERROR], "foretold": float(center), "interval": [float(least), float(most)]}
        for row, center, least, most in zip(rows.iter_rows(named=True), foretold, low, high, strict=True)
    ]
    return {
        "family": fitted.family,
        "measure": column,
        "error": column if column.rpartition("/")[2] in _ERRORS else f"1 - {column}",
        "link": chosen.name,
        "formula": chosen.link.fit.form.formula,
        "parameters": chosen.link.fit.parameters,
        "intervals": {key: list(interval) for key, interval in chosen.link.fit.intervals().items()},
        "rollouts": chosen.rollouts,
        "runs": runs,
        "warnings": [asdict(warning) for warning in chosen.link.warnings],
    }


def _column(columns: Sequence[str], name: str) -> str:
    """The column of a task or a measure. InputError, with the nearest ones, where there is none or several."""
    measured = [one for one in columns if one.startswith(EVALUATION) and "/by_" not in one]
    if name in measured or f"{EVALUATION}{name}" in measured:
        return name if name in measured else f"{EVALUATION}{name}"
    for accuracy in _ACCURACIES:
        found = [one for one in measured if one.endswith(f"/{name}/{accuracy}")]
        if len(found) > 1:
            raise InputError(f"--downstream {name}: several evaluations have it; say one of {', '.join(found)}")
        if found:
            return found[0]
    if not measured:
        raise InputError(f"--downstream {name}: no run has an evaluation; `scaling evaluate` makes them")
    raise InputError(
        f"--downstream {name}: no such measure; {nearest(name, [one[len(EVALUATION) :] for one in measured])}"
    )
