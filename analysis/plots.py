"""Figures of a fit: loss against tokens and against compute, with the law, its interval and the measured runs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray

from analysis.fitting import Fit
from analysis.laws import Array
from xlstm.spec import compact

FORMATS = ("png", "pdf", "svg")
FAMILY_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
"""Okabe & Ito's palette, distinguishable with any colour vision."""
SIZE_MAP = matplotlib.colormaps["viridis"]


@contextmanager
def style(*, dark: bool = False) -> Iterator[None]:
    """Settings of every figure; `dark` for light ink on a transparent ground."""
    ink = "#e6e6e6" if dark else "#222222"
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
        "savefig.bbox": "tight",
        "savefig.dpi": 160,
        "axes.facecolor": "none",
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink),
        "figure.facecolor": "none" if dark else "white",
    }
    with plt.rc_context(settings):
        yield


def law_figure(fits: Sequence[Fit], *, unit: str = "nats per token") -> Figure:
    """One panel per family (loss against tokens, a line per size) and one of loss against compute for all of them."""
    figure: Figure = plt.figure(figsize=(3.6 * (len(fits) + 1), 3.4), layout="constrained")
    axes = figure.subplots(1, len(fits) + 1)
    for axis, fitted in zip(axes, fits, strict=False):
        _loss_against_tokens(axis, fitted)
    _loss_against_compute(axes[-1], fits)
    axes[0].set_ylabel(f"validation loss ({unit})")
    losses = np.concatenate([fitted.used["loss"].to_numpy() for fitted in fits])
    low, high = losses.min(), losses.max()
    for axis in axes:
        axis.set_ylim(low - 0.12 * (high - low), high + 0.12 * (high - low))
    return figure


def save(figure: Figure, stem: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write a figure in several formats; returns the paths. ValueError names the formats there are."""
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise ValueError(f"no format {unknown[0]!r}; there are: {', '.join(FORMATS)}")
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_suffix(f".{name}") for name in formats]
    for path in paths:
        figure.savefig(path)
    plt.close(figure)
    return paths


def _loss_against_tokens(axis: Axes, fitted: Fit) -> None:
    used = fitted.used
    sizes = sorted(used["parameters"].unique().to_list())
    tokens = np.geomspace(used["tokens"].min() / 1.3, used["tokens"].max() * 1.3, 60)
    for index, size in enumerate(sizes):
        color = SIZE_MAP(0.85 - 0.75 * index / max(len(sizes) - 1, 1))
        rows = used.filter(used["parameters"] == size)
        center, low, high = fitted.predict(size, tokens)
        axis.fill_between(tokens, low, high, color=color, alpha=0.18, linewidth=0)
        axis.plot(tokens, center, color=color, linewidth=1.4)
        axis.plot(rows["tokens"], rows["loss"], "o", color=color, markersize=4.5, label=f"N = {compact(round(size))}")
    axis.set_xscale("log")
    budgets = sorted(used["tokens"].unique().to_list())
    axis.set_xticks(budgets[:: max(1, len(budgets) // 5)])
    axis.xaxis.set_major_formatter(lambda value, _: compact(round(value)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("training tokens D")
    axis.set_title(fitted.family)
    axis.legend(fontsize=8, handletextpad=0.2)


def _is_near(values: Array, measured: pl.Series) -> NDArray[np.bool_]:
    """Which values lie within a factor of three of the measured range."""
    low, high = float(np.min(measured.to_numpy())), float(np.max(measured.to_numpy()))
    near: NDArray[np.bool_] = (values >= low / 3) & (values <= high * 3)
    return near


def _loss_against_compute(axis: Axes, fits: Sequence[Fit]) -> None:
    for fitted, color in zip(fits, FAMILY_COLORS, strict=False):
        used = fitted.used
        flops = np.geomspace(used["flops"].min() / 1.5, used["flops"].max() * 1.5, 60)
        n, d = fitted.law.compute_optimal(flops)
        # A frontier through models and budgets unlike any that was trained would be an invention.
        near = _is_near(n, used["parameters"]) & _is_near(d, used["tokens"])
        flops, n, d = flops[near], n[near], d[near]
        center, low, high = fitted.predict(n, d)
        low_a, high_a = fitted.compute_optimal_interval()
        axis.fill_between(flops, low, high, color=color, alpha=0.18, linewidth=0)
        label = f"{fitted.family}: N* ~ C^{fitted.law.parameters_exponent:.2f} [{low_a:.2f}, {high_a:.2f}]"
        axis.plot(
            flops, center, color=color, linewidth=1.6, label=label if near.any() else f"{fitted.family}: not determined"
        )
        axis.plot(used["flops"], used["loss"], "o", color=color, markersize=4.5, alpha=0.7)
    axis.set_xscale("log")
    axis.set_xlabel("training compute C (FLOPs)")
    axis.set_title("compute-optimal frontier")
    axis.legend(fontsize=8)
