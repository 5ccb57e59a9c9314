"""Measures side by side: families by tasks, or by any axis of a sweep, as Markdown, LaTeX and CSV.

Of an axis that was searched, the value with the best mean over its seeds stands in the cell; beside the mean stands
half of its 95 % interval over seeds, by Student's t.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from scipy.special import stdtrit

LOWER_IS_BETTER = frozenset({"loss", "perplexity", "bits_per_byte", "mean_squared_error"})
"""Measures of which the lowest is the best, whatever they are measured on; of all others the highest is."""


def lower_is_better(measure: str) -> bool:
    """By the last word of a name such as `evaluation/long/loss`, or `average_perplexity`; so are seconds and memory."""
    last = measure.rpartition("/")[2]
    return last in LOWER_IS_BETTER or last.endswith(("_perplexity", "_mib")) or last.startswith("seconds_")


_COLUMNS = ("task", "pairs", "context_length", "size", "tokens", "steps", "tokens_per_parameter", "flops")
"""Axes that are columns where nothing else is asked for: the first that has several values."""

_FIRST_MEASURES = ("scaled_accuracy", "mean_squared_error", "accuracy")
"""What a table shows where nothing else is asked for: the first that there is, else the loss."""

MEASURED_APART = ("length", "position")
"""Axes of one run's tests: their values stand in the names of its measures."""

_ABSENT = "–"
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""With these a spreadsheet's formulas begin (OWASP, CSV injection)."""


@dataclass(frozen=True)
class Measured:
    """A run of the plan: its coordinates, and what was measured; nothing while it has no result."""

    point: Mapping[str, Any]
    measures: Mapping[str, float]


@dataclass(frozen=True)
class Cell:
    """The mean over the seeds of the best value of what was searched."""

    mean: float
    interval: float | None
    """Half of the 95 % interval over seeds; None with one seed."""
    seeds: int
    deviation: float | None = None
    """Standard deviation between seeds; None with one seed."""
    best: Any = None
    """The value of the searched axis; None where none was."""

    def text(self, between: str, decimals: int) -> str:
        """Mean and half interval."""
        half = "" if self.interval is None else f"{between}{self.interval:.{decimals}f}"
        return f"{self.mean:.{decimals}f}{half}"


@dataclass(frozen=True)
class MeasureTable:
    """Cells by the names of their row and column."""

    measure: str
    column_axis: str
    rows: list[str]
    columns: list[str]
    cells: dict[tuple[str, str], Cell]
    measured: int
    planned: int

    @property
    def decimals(self) -> int:
        """Three, and more where all means are small."""
        most = max((abs(cell.mean) for cell in self.cells.values()), default=0.0)
        return 3 + max(0, -math.floor(math.log10(most)) - 1) if most > 0 else 3

    def best(self, column: str) -> float | None:
        """The best mean of a column, rounded as it is shown."""
        means = [round(cell.mean, self.decimals) for (_, name), cell in self.cells.items() if name == column]
        if not means:
            return None
        return min(means) if lower_is_better(self.measure) else max(means)

    def _lines(self, absent: str, between: str, bold: tuple[str, str]) -> list[list[str]]:
        """Header and rows; the best of each column between the marks of bold."""
        lines = [[self.measure, *self.columns]]
        best = {column: self.best(column) for column in self.columns}
        for row in self.rows:
            line = [row]
            for column in self.columns:
                cell = self.cells.get((row, column))
                text = cell.text(between, self.decimals) if cell else absent
                marked = cell is not None and round(cell.mean, self.decimals) == best[column] and len(self.rows) > 1
                line.append(f"{bold[0]}{text}{bold[1]}" if marked else text)
            lines.append(line)
        return lines

    def markdown(self) -> str:
        """A table of Markdown, the best of each column in bold."""
        header, *rows = self._lines(_ABSENT, " ± ", ("**", "**"))
        lines = [header, ["---", *["---:"] * len(self.columns)], *rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"

    def latex(self) -> str:
        """A tabular with the rules of booktabs, the best of each column in bold."""
        header, *rows = self._lines("--", r" $\pm$ ", (r"\textbf{", "}"))
        named = [[_tex(line[0]), *line[1:]] for line in rows]
        lines = [r"\begin{tabular}{l" + "r" * len(self.columns) + "}", r"\toprule"]
        lines += [" & ".join(map(_tex, header)) + r" \\", r"\midrule"]
        lines += [" & ".join(line) + r" \\" for line in named]
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"

    def csv(self) -> str:
        """A line per cell, in full precision."""
        written = io.StringIO()
        writer = csv.writer(written, lineterminator="\n")
        writer.writerow(["row", self.column_axis, self.measure, "half_interval_95", "seeds", "best", "deviation"])
        for (row, column), cell in self.cells.items():
            said = f"'{row}" if row.startswith(FORMULA) else row
            writer.writerow([said, column, cell.mean, cell.interval, cell.seeds, cell.best, cell.deviation])
        return written.getvalue()

    def to_json(self) -> dict[str, Any]:
        """Plain values, a cell each."""
        cells = [
            {"row": row, self.column_axis: column, "mean": c.mean, "half_interval_95": c.interval, "seeds": c.seeds}
            | {"best": c.best, "deviation": c.deviation}
            for (row, column), c in self.cells.items()
        ]
        return {"measure": self.measure, "measured": self.measured, "planned": self.planned, "cells": cells}


def _tex(text: str) -> str:
    return "".join("\\" + c if c in "&%$#_{}" else c for c in text)


def build_table(
    runs: Sequence[Measured], measure: str | None, column_axis: str | None, searched: str | None
) -> MeasureTable:
    """The table of a sweep. ValueError where no run has the measure, or there is no such axis.

    Rows are the families, and whatever else varies that the column does not decide; `searched` is the axis of which the
    best value counts. Left out, the measure is the scaled accuracy or the squared error where there is one, else the
    loss, and the column the first of a few axes that varies. Columns may also be the lengths or positions of the tests.
    """
    if column_axis in MEASURED_APART:
        runs = _apart(runs, column_axis)
    known = list(dict.fromkeys(name for run in runs for name in run.measures))
    if not known:
        raise ValueError(f"no run has a result yet{f' by {column_axis}' if column_axis in MEASURED_APART else ''}")
    measure = measure or next((name for name in _FIRST_MEASURES if name in known), "loss")
    if measure not in known:
        short = ", ".join(name for name in known if "/" not in name)
        raise ValueError(f"no run has `{measure}`; there are {short}, and some by length")
    axes = dict.fromkeys(axis for run in runs for axis in run.point)
    values = {axis: list(dict.fromkeys(run.point.get(axis) for run in runs)) for axis in axes}
    varying = [axis for axis, found in values.items() if len(found) > 1 and axis not in ("seed", searched)]
    if column_axis is None:
        column_axis = next((axis for axis in _COLUMNS if axis in varying), "size")
    if column_axis not in values:
        raise ValueError(f"the sweep has no axis `{column_axis}`; there are {', '.join(values)}")
    told = [axis for axis in varying if axis not in ("model", column_axis) and not _decided(runs, column_axis, axis)]
    groups: dict[tuple[str, str], dict[Any, list[float]]] = {}
    rows: dict[str, None] = {}
    for run in sorted(runs, key=lambda run: [_place(run.point.get(axis)) for axis in told]):
        row = ", ".join(str(run.point.get(axis)) for axis in ("model", *told))
        rows[row] = None
        if measure in run.measures:
            found = groups.setdefault((row, str(run.point.get(column_axis))), {})
            found.setdefault(run.point.get(searched) if searched else None, []).append(run.measures[measure])
    return MeasureTable(
        measure=measure,
        column_axis=column_axis,
        rows=list(rows),
        columns=list(map(str, sorted(values[column_axis], key=_place))),
        cells={place: _cell(found, measure) for place, found in groups.items()},
        measured=sum(measure in run.measures for run in runs),
        planned=len(runs),
    )


def _apart(runs: Sequence[Measured], axis: str) -> list[Measured]:
    """Each run once for every length or position at which it was measured."""
    parts: list[Measured] = []
    for run in runs:
        found: dict[int, dict[str, float]] = {}
        for name, value in run.measures.items():
            by, _, rest = name.partition("/")
            place, _, measure = rest.partition("/")
            if by == f"by_{axis}" and place.isdigit():
                found.setdefault(int(place), {})[measure] = value
        parts += [Measured({**run.point, axis: place}, measures) for place, measures in found.items()]
    return parts


def _cell(found: Mapping[Any, Sequence[float]], measure: str) -> Cell:
    choose = min if lower_is_better(measure) else max
    best = choose(found, key=lambda value: fmean(found[value]))
    seeds = found[best]
    deviation = stdev(seeds) if len(seeds) > 1 else None
    interval = None
    if deviation is not None:
        interval = float(stdtrit(len(seeds) - 1, 0.975)) * deviation / math.sqrt(len(seeds))
    return Cell(fmean(seeds), interval, len(seeds), deviation, best)


def _place(value: Any) -> float:
    """Numbers in their order; words in that of the plan."""
    return float(value) if isinstance(value, int | float) else 0.0


def _decided(runs: Sequence[Measured], by: str, axis: str) -> bool:
    """Whether the value of one axis goes with one value of another."""
    found: dict[Any, set[Any]] = {}
    for run in runs:
        found.setdefault(run.point.get(by), set()).add(run.point.get(axis))
    return all(len(values) == 1 for values in found.values())
