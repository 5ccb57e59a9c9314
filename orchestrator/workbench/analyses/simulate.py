"""Designs tried on runs that are already there: what would have been bought, and what it would have told."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from analysis.data import runs, tables
from analysis.data.columns import Reading
from analysis.decisions import next_run
from analysis.fitting.choice import CANDIDATES
from analysis.laws import forms
from orchestrator.errors import InputError
from orchestrator.workbench.analyses.laws import AUTO, refusals_in_a_line


@refusals_in_a_line()
def simulate(
    pool: str, targets: Path, columns: Mapping[str, str], shares: Sequence[float], *, form: str = AUTO, seed: int = 0
) -> dict[str, Any]:
    """What would have been bought of a table of runs for the losses of another, round by round.

    Shares are of the pool's cost, (0, 1]. InputError where they are not, or where a table cannot be read.
    """
    if wrong := [share for share in shares if not 0 < share <= 1]:
        raise InputError(f"--shares {wrong[0]:g}: shares of the pool's cost lie between 0 and 1, such as 0.01,0.05,0.1")
    chosen = tuple(CANDIDATES) if form == AUTO else (forms.find(form),)
    inputs = tuple(dict.fromkeys(name for one in chosen for name in one.inputs))
    known, wanted = (_usable(Path(path), columns, inputs) for path in (pool, targets))
    return asdict(next_run.simulate(known, wanted, chosen, shares, seed=seed)) | {"pool": known.height}


def _usable(path: Path, columns: Mapping[str, str], inputs: tuple[str, ...]) -> pl.DataFrame:
    if tables.format_of(path.name) is None:
        raise InputError(f"{path}: a pool and its targets are tables: {tables.known_formats()}")
    frame = runs.from_table(path, Reading(columns, further=inputs))
    if lacking := [name for name in inputs if name not in frame.columns]:
        raise InputError(f"{path}: no column for {lacking[0]}; name it with --columns {lacking[0]}=…")
    numbers = [pl.col(name).is_finite() & (pl.col(name) > 0) for name in (*inputs, "flops", "loss")]
    return frame.filter(pl.col("excluded").is_null(), *numbers)
