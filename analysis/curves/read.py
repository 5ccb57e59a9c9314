"""Curves from tables and from the runs of a sweep."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from analysis.curves.curve import Curve
from analysis.data import tables
from analysis.data.columns import as_text
from analysis.data.numbers import read_number
from analysis.findings import RefusalError
from analysis.laws.additive import Array
from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.records import Metric

COLUMNS = ("run", "step", "learning_rate", "loss")


@dataclass(frozen=True)
class Group:
    """Runs of one model and batch, whose curves one law can describe: they differ in schedule, rate and budget."""

    name: str
    curves: tuple[Curve, ...]
    tokens_per_step: int | None = None
    """None where the source does not say."""

    @property
    def after_warmup(self) -> list[Curve]:
        """The curves that have losses after their warm-up, with these alone."""
        return [late for curve in self.curves if len((late := curve.after_warmup).steps)]


def from_table(
    path: Path, columns: Mapping[str, str], *, warmup_steps: float | None = None, decimal_comma: bool = False
) -> list[Group]:
    """The curves of a table with a row for each update at which a loss was measured; all are one group.

    A row without a loss still says what the rate was. Left out, `warmup_steps` are those up to the table's first step.
    RefusalError says which column, cell or row is wrong.
    """
    if unknown := sorted(set(columns) - set(COLUMNS)):
        raise RefusalError("unknown-column", f"{unknown[0]!r} is no column of curves; they are {', '.join(COLUMNS)}")
    theirs = {ours: columns.get(ours, ours) for ours in COLUMNS}
    table = tables.read(path, set(theirs.values()))
    for ours, name in theirs.items():
        if name not in table.cells:
            told = f"{path}: no column {name!r} for {ours}; name it with --columns {ours}=…; there are: {table.listed}"
            raise RefusalError("missing-column", told)
    rows: dict[str, list[tuple[float, float, float]]] = {}
    for place in range(table.height):
        line = f"{path}:{table.lines[place]}" if len(table.lines) else f"{path}: row {place + 1}"
        values = []
        for ours in COLUMNS[1:]:
            cell = table.cells[theirs[ours]][place]
            try:
                number = read_number(cell, count=ours == "step", decimal_comma=decimal_comma)
            except ValueError as error:
                raise RefusalError("no-number", f"{line}: {theirs[ours]}: {error}") from None
            if number is None and ours != "loss":
                raise RefusalError("no-number", f"{line}: {theirs[ours]} is empty")
            if number is not None and (not np.isfinite(number) or number < 0 or (ours == "loss" and number == 0)):
                raise RefusalError("no-number", f"{line}: {theirs[ours]} is {number}")
            values.append(np.nan if number is None else number)
        if (run := as_text(table.cells[theirs["run"]][place])) is None:
            raise RefusalError("no-run", f"{line}: {theirs['run']} is empty")
        rows.setdefault(run, []).append((values[0], values[1], values[2]))
    if not rows:
        raise RefusalError("empty-table", f"{path}: no rows")
    warm = min(step for found in rows.values() for step, *_ in found) if warmup_steps is None else warmup_steps
    curves = [_from_rows(path, one, np.array(found), warm) for one, found in rows.items()]
    return [Group("all", tuple(curves))]


def _from_rows(path: Path, name: str, rows: Array, warmup_steps: float) -> Curve:
    step, rate, loss = rows[np.argsort(rows[:, 0], kind="stable")].T
    if (twice := np.flatnonzero(np.diff(step) == 0)).size:
        raise RefusalError("step-twice", f"{path}: run {name} has step {step[twice[0]]:g} twice")
    measured = np.isfinite(loss)
    if not measured.any():
        raise RefusalError("no-losses", f"{path}: run {name} has no loss")
    if not (rate > 0).any():
        raise RefusalError("no-rate", f"{path}: run {name} has a learning rate of 0 throughout")
    return Curve(name, step[measured], loss[measured], step, rate, warmup_steps)


def from_runs(workspace: Workspace, frame: pl.DataFrame) -> list[Group]:
    """The validations of a sweep's usable runs, a group for each family, size and batch; rates as they were logged.

    RefusalError where no run was validated.
    """
    groups: dict[tuple[str, int], list[Curve]] = {}
    for row in frame.filter(pl.col("excluded").is_null()).iter_rows(named=True):
        run = workspace.run(row["run_id"])
        physics = run.spec().physics
        if (curve := _of_run(run, physics.schedule.warmup_steps)) is not None:
            groups.setdefault((f"{row['family']} {row['size']}", physics.batch_tokens), []).append(curve)
    if not groups:
        raise RefusalError(
            "no-curves", "no usable run has validations; `resources: {validate_every: …}` makes more of them"
        )
    titles = [title for title, _ in groups]
    return [
        Group(title if titles.count(title) == 1 else f"{title}, batches of {batch:,} tokens", tuple(curves), batch)
        for (title, batch), curves in sorted(groups.items())
    ]


def _of_run(run: RunDirectory, warmup_steps: int) -> Curve | None:
    """None where nothing was measured. A fork's rows begin at the fork, where the rate is still the trunk's."""
    rows = run.metrics()
    losses = {int(row["step"]): row[Metric.VALIDATION_LOSS] for row in rows if Metric.VALIDATION_LOSS in row}
    rates = {int(row["step"]): row[Metric.LEARNING_RATE] for row in rows if Metric.LEARNING_RATE in row}
    steps, known = (np.array(sorted(step for step in found if step > 0), float) for found in (losses, rates))
    late = known[known >= warmup_steps]
    if not len(steps) or not len(late):
        return None
    measured, rate = np.array([losses[int(step)] for step in steps]), np.array([rates[int(step)] for step in late])
    return Curve(run.run_id, steps, measured, late, rate, float(warmup_steps))
