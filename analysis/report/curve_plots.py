"""Figure of laws of curves: what runs measured, and what the law says of them."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.curves.curve import Curve
from analysis.curves.fit import CurveFit
from analysis.curves.read import Group
from analysis.report import plots

COLUMNS = 3
TEN = matplotlib.colormaps["tab10"]
DRAWN_FROM = 0.1
"""Share of the rows, the earliest, that do not set the axis of losses: they fall too steeply."""


def curves_figure(found: Sequence[tuple[Group, CurveFit]]) -> Figure:
    """A panel for each group: dots are measured losses, lines the law, dashed for runs that were not fitted."""
    columns = min(COLUMNS, len(found))
    rows = math.ceil(len(found) / columns)
    figure: Figure = plt.figure(figsize=(max(6.4, 4.4 * columns), 4.2 * rows), layout="constrained")
    axes: Any = figure.subplots(rows, columns, squeeze=False)
    for axis, (group, fitted) in zip(axes.flat, found, strict=False):
        _panel(axis, group.after_warmup, fitted)
        axis.set_title(f"{group.name}: {fitted.law.name}" if len(found) > 1 else f"law of curves: {fitted.law.name}")
    for axis in axes.flat[len(found) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("validation loss (nats per token)")
    return figure


def _panel(axis: Axes, curves: Sequence[Curve], fitted: CurveFit) -> None:
    handles = []
    for index, curve in enumerate(curves):
        color = TEN(index) if len(curves) <= TEN.N else plots.shade(index, len(curves))
        known = curve.run in fitted.fitted
        loss, low, high = fitted.predict(curve)
        axis.plot(curve.steps, curve.losses, ".", color=color, markersize=2.5, alpha=0.5)
        axis.plot(curve.steps, loss, color=color, linewidth=1.2, linestyle="-" if known else "--")
        axis.fill_between(curve.steps, low, high, color=color, alpha=0.08, linewidth=0)
        told = f"{curve.run}{'' if known else ' (predicted)'}"
        handles.append(Line2D([], [], color=color, linestyle="-" if known else "--", label=told))
    late = np.concatenate([curve.losses[int(DRAWN_FROM * len(curve.steps)) :] for curve in curves])
    margin = 0.06 * max(float(late.max() - late.min()), 1e-3)
    axis.set(xscale="log", xlabel="optimizer steps", ylim=(late.min() - margin, late.max() + margin))
    plots.quantity_axis(axis)
    axis.legend(handles=handles, fontsize=7, loc="upper right")
