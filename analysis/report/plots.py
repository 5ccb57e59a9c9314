"""Figures of a fit: loss against tokens and against compute, with the law, its interval and the measured runs."""

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogFormatter, LogLocator, NullFormatter, NullLocator
from numpy.typing import ArrayLike, NDArray

from analysis.data.references import PublishedLaw, Table
from analysis.fitting.fit import Fit
from analysis.laws.additive import Array
from xlstm.quantities import compact

FORMATS = ("png", "pdf", "svg")
FAMILY_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
"""Okabe & Ito's palette, distinguishable with any colour vision."""
DASHES = ("-", "--", ":", "-.")
MARKERS = ("s", "^", "D", "v")
"""What tells families apart once the colours repeat."""
INK = "#222222"
SIZE_MAP = matplotlib.colormaps["viridis"]


@contextmanager
def style() -> Iterator[None]:
    """Settings of every figure: it lies on no ground of its own, which `save` gives it."""
    settings = {
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "svg.fonttype": "none",
        "savefig.dpi": 160,
        "axes.facecolor": "none",
        "text.parse_math": False,  # a name with dollars is a name
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
        "figure.facecolor": "none",
    }
    with plt.rc_context(settings):
        yield


def color_of(index: int) -> str:
    """Colour of the family at `index`, 0 first; once they begin again, dash and marker differ."""
    return FAMILY_COLORS[index % len(FAMILY_COLORS)]


def dash_of(index: int) -> str:
    """Line style of the family at `index`: solid while each colour is used for the first time."""
    return DASHES[index // len(FAMILY_COLORS) % len(DASHES)]


def marker_of(index: int, first: str = "o") -> str:
    """Marker of the family at `index`: `first` while each colour is used for the first time."""
    turn = index // len(FAMILY_COLORS)
    return MARKERS[(turn - 1) % len(MARKERS)] if turn else first


def shade(index: int, count: int) -> tuple[float, float, float, float]:
    """Colour of one of `count` ordered things; neither end is too pale or too dark for either ground."""
    color: tuple[float, float, float, float] = SIZE_MAP(0.85 - 0.58 * index / max(count - 1, 1))
    return color


def spread(values: Sequence[float], most: int) -> list[float]:
    """At most `most` of the sorted values, evenly spread, both ends among them."""
    if len(values) <= most:
        return list(values)
    return [values[round(index)] for index in np.linspace(0, len(values) - 1, most)]


def quantity_axis(axis: Axes, which: str = "x") -> None:
    """Ticks of a logarithmic axis as 125M and 15B; of an axis over few decades, between them, too."""
    chosen = axis.xaxis if which == "x" else axis.yaxis
    low, high = sorted(axis.get_xlim() if which == "x" else axis.get_ylim())
    decades = np.log10(high / low)
    chosen.set_major_locator(
        LogLocator(subs=(1.0, 2.0, 5.0) if decades < 1.8 else (1.0, 3.0) if decades < 2.5 else (1.0,), numticks=12)
    )
    chosen.set_minor_locator(NullLocator())
    chosen.set_major_formatter(lambda value, _: compact(round(value)))


def rounded(count: float) -> str:
    """A budget as people name it: whole optimizer steps make 299,008 tokens of 300K."""
    return compact(round(float(f"{count:.2g}")))


def same_limits(axes: Sequence[Axes], losses: Array) -> None:
    """One range of losses for panels that are compared."""
    low, high = losses.min(), losses.max()
    for axis in axes:
        axis.set_ylim(low - 0.12 * (high - low), high + 0.12 * (high - low))


_PANELS_ACROSS = 4
"""Beyond which the panels of a figure go on below."""
_SIZES = 6
"""Lines of sizes in a panel, at most."""


def law_figure(fits: Sequence[Fit], *, references: Sequence[Table | PublishedLaw] = ()) -> Figure:
    """One panel per family (loss against tokens, a line per size) and one of loss against compute for all of them."""
    across = min(len(fits) + 1, _PANELS_ACROSS)
    down = -(-(len(fits) + 1) // across)
    figure: Figure = plt.figure(figsize=(3.6 * across, 3.4 * down), layout="constrained")
    panels: list[Axes] = list(figure.subplots(down, across, squeeze=False).flatten())
    axes = panels[: len(fits) + 1]
    for unneeded in panels[len(fits) + 1 :]:
        unneeded.remove()
    for axis, fitted in zip(axes, fits, strict=False):
        _loss_against_tokens(axis, fitted)
    losses = np.concatenate([fitted.used["loss"].to_numpy() for fitted in fits])
    same_limits(axes, losses)
    _loss_against_compute(axes[-1], fits)
    for index, reference in enumerate(references):
        _draw_reference(axes[-1], reference, fits, "sD^v"[index % 4])
    lines = max(len(fits) + len(references), _SIZES // 2)
    for axis in axes:  # room for the legends
        bottom, top = axis.get_ylim()
        axis.set_ylim(bottom, top + 0.09 * lines * (top - bottom))
    axes[-1].legend(fontsize=8, loc="upper right")
    for axis in axes[::across]:
        axis.set_ylabel("validation loss (nats per token)")
    return figure


def _power_of_ten(value: float, position: int | None = None) -> str:
    """A tick in plain characters, such as 10¹² or 2×10¹²: no text of a figure is taken for a formula."""
    exponent = math.floor(math.log10(value) + 1e-9)
    factor = f"{value / 10.0**exponent:.3g}"
    return ("" if factor == "1" else f"{factor}×") + f"10{str(exponent).translate(_RAISED)}"


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def save(figure: Figure, stem: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write a figure in several formats, on white; returns the paths. The same figure makes the same bytes.

    ValueError names the formats there are.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise ValueError(f"no format {unknown[0]!r}; there are: {', '.join(FORMATS)}")
    name_ticks(figure)
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_suffix(f".{name}") for name in formats]
    with plt.rc_context({"svg.hashsalt": stem.name}):
        for path in paths:
            undated = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}.get(path.suffix)
            figure.savefig(path, facecolor="white", metadata=undated)
            figure.set_layout_engine("none")  # it is laid out once, and is drawn again for other formats and the page
    return paths


def svg(figure: Figure, name: str) -> str:
    """A figure on no ground, for a page that has one of its own."""
    name_ticks(figure)
    buffer = io.StringIO()
    with plt.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "<svg" + buffer.getvalue().partition("<svg")[2]


def name_ticks(figure: Figure) -> None:
    """Write powers of ten in plain characters."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if isinstance(axis.get_major_formatter(), LogFormatter):
                axis.set_major_formatter(FuncFormatter(_power_of_ten))
                low, high = sorted(axis.get_view_interval())
                few = high < 10 * low  # a single power of ten at most: what lies between is named too
                axis.set_minor_formatter(FuncFormatter(_power_of_ten) if few else NullFormatter())


def _loss_against_tokens(axis: Axes, fitted: Fit) -> None:
    used = fitted.used
    every = sorted(used["parameters"].unique().to_list())
    sizes = spread(every, _SIZES)
    tokens = np.geomspace(used["tokens"].min() / 1.3, used["tokens"].max() * 1.3, 60)
    for size in sizes:
        color = shade(every.index(size), len(every))
        center, low, high = fitted.predict(size, tokens)
        axis.fill_between(tokens, low, high, color=color, alpha=0.18, linewidth=0)
        axis.plot(tokens, center, color=color, linewidth=1.4)
        axis.plot([], [], "o-", color=color, markersize=4.5, label=f"N = {compact(round(size))}")
    measured(axis, used, "tokens", "parameters")
    axis.set(xscale="log", xlabel="training tokens D", title=fitted.family)
    budgets = sorted(used["tokens"].unique().to_list())
    quantity_axis(axis)
    if len(budgets) <= 5:
        axis.set_xticks(budgets, [rounded(budget) for budget in budgets])
    axis.legend(fontsize=8, handletextpad=0.2, columnspacing=1.0, ncols=2, loc="upper right")


def measured(axis: Axes, used: pl.DataFrame, along: str, shaded_by: str) -> None:
    """Every run as a point, in the colour of its size or budget."""
    every = sorted(used[shaded_by].unique().to_list())
    colors = [shade(every.index(value), len(every)) for value in used[shaded_by]]
    axis.scatter(used[along], used["loss"], c=colors, s=18 if used.height < 60 else 7, zorder=3, linewidths=0)


def is_near(fitted: Fit, n: ArrayLike, d: ArrayLike) -> NDArray[np.bool_]:
    """Which models and budgets lie within a factor of three of those that were trained."""
    trained = fitted.used.select("parameters", "tokens").to_numpy()
    low, high = trained.min(axis=0) / 3, trained.max(axis=0) * 3
    asked = np.stack(np.broadcast_arrays(n, d), axis=-1)
    return np.asarray(((asked >= low) & (asked <= high)).all(axis=-1))


def _loss_against_compute(axis: Axes, fits: Sequence[Fit]) -> None:
    for index, fitted in enumerate(fits):
        color, used = color_of(index), fitted.used
        flops = np.geomspace(used["flops"].min() / 1.5, used["flops"].max() * 1.5, 60)
        label = f"{fitted.family}: not determined"
        center = low = high = flops[:0]
        if fitted.form.inputs == ("flops",):
            center, low, high = fitted.predict_flops(flops)
            label = fitted.family
        elif fitted.can_split:
            n, d = fitted.law.compute_optimal(flops)
            # A frontier through models and budgets unlike any that was trained would be an invention.
            near = is_near(fitted, n, d)
            flops = flops[near]
            center, low, high = fitted.predict(n[near], d[near])
            if near.any():
                low_a, high_a = fitted.compute_optimal_interval()
                label = f"{fitted.family}: N* ~ C^{fitted.law.parameters_exponent:.2f} [{low_a:.2f}, {high_a:.2f}]"
        flops = flops[: len(center)]
        axis.fill_between(flops, low, high, color=color, alpha=0.18, linewidth=0)
        axis.plot(flops, center, dash_of(index), color=color, linewidth=1.6, label=label)
        axis.plot(used["flops"], used["loss"], marker_of(index), color=color, markersize=4.5, alpha=0.7)
    title = "compute-optimal frontier" if fits[0].can_split else "loss against compute"
    axis.set(xscale="log", xlabel="training compute C (FLOPs)", title=title)


def _draw_reference(axis: Axes, reference: Table | PublishedLaw, fits: Sequence[Fit], marker: str) -> None:
    """Published models as open marks in the colour of their family; a published law's frontier as a dashed line."""
    if isinstance(reference, PublishedLaw):
        flops = np.geomspace(*axis.get_xlim(), 60)
        loss = reference.law.predict(*reference.law.compute_optimal(flops))
        axis.plot(flops, loss, "--", color="0.5", linewidth=1.2, label=reference.name)
    else:
        table = reference.frame()
        colors = {fitted.family: color_of(index) for index, fitted in enumerate(fits)}
        for family, rows in table.group_by("family", maintain_order=True):
            color = colors.get(str(family[0]), "0.5")
            axis.plot(rows["flops"], rows["loss"], marker, color=color, markersize=4.5, fillstyle="none")
        axis.plot([], [], marker, color="0.5", markersize=4.5, fillstyle="none", label=reference.name)
        loss = table["loss"].to_numpy()
    low, high = axis.get_ylim()
    axis.set_ylim(min(low, float(loss.min()) - 0.05), max(high, float(loss.max()) + 0.05))
