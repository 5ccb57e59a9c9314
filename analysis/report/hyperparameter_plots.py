"""Figure of laws of hyperparameters: each cell's losses with its parabola's minimum, and the minima with the law."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from analysis.decisions.hyperparameters import HyperparameterLaw
from analysis.report import plots
from xlstm.quantities import compact


def cells_figure(laws: Sequence[HyperparameterLaw]) -> Figure:
    """Two panels for each family: loss against the axis, a line a cell; the best values against D, a line a size."""
    figure: Figure
    figure, axes = plt.subplots(len(laws), 2, figsize=(9.6, 3.6 * len(laws)), squeeze=False, layout="constrained")
    for (left, right), law in zip(axes, laws, strict=True):
        name = law.axis.replace("_", " ")
        sizes = sorted({cell.parameters for cell in law.cells})
        for cell in sorted(law.cells, key=lambda one: (one.parameters, one.tokens)):
            color = plots.shade(sizes.index(cell.parameters), len(sizes))
            excess = 100 * (np.array(cell.losses) / min(cell.losses) - 1)
            left.plot(cell.values, excess, "o-", color=color, markersize=3, linewidth=0.8, alpha=0.7)
            if not cell.at_edge:
                left.axvline(cell.best, color=color, linewidth=0.6, linestyle=":")
        left.set(xscale="log", xlabel=name, ylabel="loss above the cell's best (%)", title=f"{law.family}: every cell")
        budgets = np.array([cell.tokens for cell in law.cells])
        spread = np.geomspace(budgets.min() / 1.2, budgets.max() * 1.2, 30)
        for index, size in enumerate(sizes):
            color = plots.shade(index, len(sizes))
            center, low, high = np.array([law.predict(size, d) for d in spread]).T
            right.plot(spread, center, color=color, linewidth=1.2, label=f"N = {compact(round(size))}")
            right.fill_between(spread, low, high, color=color, alpha=0.12, linewidth=0)
            for cell in law.cells:
                if cell.parameters == size and cell.interval is not None:
                    below, above = cell.best - cell.interval[0], cell.interval[1] - cell.best
                    right.errorbar(
                        cell.tokens, cell.best, [[max(below, 0)], [max(above, 0)]], fmt="o", color=color, markersize=4
                    )
                elif cell.parameters == size:
                    right.plot(cell.tokens, cell.best, "x", color=color, markersize=5)
        right.set(xscale="log", yscale="log", xlabel="tokens D", ylabel=f"best {name}", title=law.formula)
        plots.quantity_axis(right)
        right.legend(fontsize=8)
    return figure
