"""Pictures of a table of measures: a heat map of families by tasks, or curves where the columns are numbers."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from analysis.report.plots import color_of, dash_of, marker_of, spread, style
from analysis.report.table import MeasureTable, lower_is_better

_BANDS = "band"
"""Columns of this axis are words, and stand in an order."""
_WIDE = 10.0
"""A measure that spreads further, from its least mean to its greatest, is drawn on a logarithmic axis."""
_FEW = 6
"""With at most so many columns, the curves have a tick at each."""


def draw(table: MeasureTable, path: Path) -> None:
    """Write the picture in the format of the file's ending: curves over columns that are numbers, else a heat map."""
    numbers = [_number(column) for column in table.columns]
    with style():
        if len(numbers) > 1 and None not in numbers:
            figure = _curves(table, [number for number in numbers if number is not None])
        elif table.column_axis == _BANDS:
            figure = _curves(table, list(range(len(numbers))))
        else:
            figure = _heat_map(table)
        figure.savefig(path, facecolor="white", bbox_inches="tight")
        plt.close(figure)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _bounds(table: MeasureTable) -> tuple[float, float] | None:
    """Between which values a share lies; None for other measures."""
    return (0.0, 1.0) if "accuracy" in table.measure else None


def _heat_map(table: MeasureTable) -> Figure:
    cells = [[table.cells.get((row, column)) for column in table.columns] for row in table.rows]
    means = np.array([[cell.mean if cell else math.nan for cell in row] for row in cells])
    low, high = _bounds(table) or (None, None)
    figure: Figure
    figure, axes = plt.subplots(figsize=(2.5 + 0.75 * len(table.columns), 1.2 + 0.4 * len(table.rows)))
    colors = "viridis_r" if lower_is_better(table.measure) else "viridis"
    image = axes.imshow(means, cmap=colors, vmin=low, vmax=high, aspect="auto")
    axes.grid(visible=False)
    axes.set_xticks(range(len(table.columns)), table.columns, rotation=45, ha="right")
    axes.set_yticks(range(len(table.rows)), table.rows)
    for (y, x), mean in np.ndenumerate(means):
        if not math.isnan(mean):
            dark = image.norm(mean) < 0.6 if colors == "viridis" else image.norm(mean) > 0.4
            axes.text(x, y, f"{mean:.2f}", ha="center", va="center", color="white" if dark else "black")
    figure.colorbar(image, label=table.measure.replace("_", " "))
    return figure


def _curves(table: MeasureTable, places: Sequence[float]) -> Figure:
    """The mean of each row over the columns, in a band of its 95 % interval over seeds where there is one."""
    figure: Figure
    figure, axes = plt.subplots(figsize=(5.6, 3.4))
    for index, row in enumerate(table.rows):
        cells = [(place, table.cells.get((row, column))) for place, column in zip(places, table.columns, strict=True)]
        known = [(place, cell) for place, cell in cells if cell is not None]
        x, mean = [place for place, _ in known], np.array([cell.mean for _, cell in known])
        color = color_of(index)
        marker = marker_of(index) if len(places) <= 4 * _FEW else None
        axes.plot(x, mean, dash_of(index), color=color, marker=marker, markersize=4, label=row)
        half = np.array([cell.interval or 0.0 for _, cell in known])
        if half.any():
            axes.fill_between(x, mean - half, mean + half, color=color, alpha=0.15, linewidth=0)
    if table.column_axis == _BANDS:
        axes.set_xticks(places, table.columns, rotation=30, ha="right")
    else:
        _scale(axes, places)
    if (bounds := _bounds(table)) is not None:
        axes.set_ylim(bounds[0] - 0.02, bounds[1] + 0.02)
    elif max(means := [cell.mean for cell in table.cells.values()]) > _WIDE * min(means) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(means) < _WIDE**2 * min(means) else (1,)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif min(means) < 0.5 * max(means):
        axes.set_ylim(bottom=0)
    named = {_BANDS: "occurrences in training", "context": "context in tokens"}
    axes.set_xlabel(named.get(table.column_axis, table.column_axis.replace("_", " ")))
    axes.set_ylabel(table.measure.replace("_", " "))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _scale(axes: Axes, places: Sequence[float]) -> None:
    """Columns that double and double again lie evenly; each of them, and each of few, has its tick."""
    doubling = min(places) > 0 and all(later >= 2 * one for one, later in itertools.pairwise(places))
    if len(places) <= _FEW or doubling:
        if min(places) > 0:
            axes.set_xscale("log", base=2)
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xticks(spread(places, _FEW))
