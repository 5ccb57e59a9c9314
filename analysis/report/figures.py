"""The figures of a fit, by name: each is drawn from the fits, the rows and the training curves, nothing else.

`FIGURES[name](evidence)` gives a figure, or raises RefusalError where the runs cannot show it (no budget has a minimum,
there are no curves): an empty figure would say something that is not so.
"""

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import special

from analysis.data.references import PublishedLaw, Table
from analysis.data.runs import CURVES
from analysis.decisions import allocation, isoflop
from analysis.findings import RefusalError
from analysis.fitting.bootstrap import TAILS
from analysis.fitting.fit import Fit
from analysis.laws.additive import Array
from analysis.report import plots
from xlstm.quantities import compact

CLOUD = 400
"""Bootstrap draws shown as points: enough to see a shape, few enough to see through."""


@dataclass(frozen=True)
class Evidence:
    """All that figures are drawn from."""

    fits: Sequence[Fit]
    curves: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=CURVES))
    """run_id, tokens and loss of each validation during training."""
    references: Sequence[Table | PublishedLaw] = ()
    measured: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema={"run_id": pl.String}))
    """What further evaluations measured: run_id, and `evaluation/<name>/<measure>`."""


def law(evidence: Evidence) -> Figure:
    """Loss against tokens, a line per size, and against compute, with published numbers where asked for."""
    return plots.law_figure(evidence.fits, references=evidence.references)


def sizes(evidence: Evidence) -> Figure:
    """Loss against model size, a line and its band for each token budget."""
    figure, axes = _panels(len(evidence.fits))
    for axis, fitted in zip(axes, evidence.fits, strict=True):
        used = fitted.used
        every = sorted(used["tokens"].unique().to_list())
        measured = used["parameters"].to_numpy()
        n = np.geomspace(measured.min() / 1.3, measured.max() * 1.3, 60)
        for budget in plots.spread(every, 6):
            color = plots.shade(every.index(budget), len(every))
            center, low, high = fitted.predict(n, budget)
            axis.fill_between(n, low, high, color=color, alpha=0.18, linewidth=0)
            axis.plot(n, center, color=color, linewidth=1.4, label=f"D = {plots.rounded(budget)}")
        plots.measured(axis, used, "parameters", "tokens")
        axis.set(xscale="log", xlabel="parameters N", title=fitted.family)
        plots.quantity_axis(axis)
        axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))  # beside the points, never on them
    axes[0].set_ylabel("validation loss (nats per token)")
    plots.same_limits(axes, np.concatenate([fitted.used["loss"].to_numpy() for fitted in evidence.fits]))
    return figure


def profiles(evidence: Evidence) -> Figure:
    """IsoFLOP profiles with the minimum of each budget, and the line through the minima (approach 2)."""
    found = _frontiers(evidence.fits)
    figure, axes = _panels(2 * len(found), width=3.8)
    for (fitted, frontier), left, right in zip(found, axes[::2], axes[1::2], strict=True):
        for index, profile in enumerate(frontier.profiles):
            color = plots.shade(index, len(frontier.profiles))
            faint = 0.25 if profile.optimum is None else 0.9
            left.plot(profile.parameters, profile.loss, "o-", color=color, markersize=3, linewidth=0.8, alpha=faint)
            if profile.optimum is not None and profile.loss_at_optimum is not None:
                left.plot(profile.optimum, profile.loss_at_optimum, "*", color=color, markersize=9)
                right.plot(profile.flops, profile.optimum, "*", color=color, markersize=9)
        budgets = [profile.flops for profile in frontier.profiles]
        for budget in plots.spread(budgets, 5):
            color = plots.shade(budgets.index(budget), len(budgets))
            left.plot([], [], "o-", color=color, markersize=3, label=f"C = {budget:.1e}")
        left.legend(fontsize=8)
        left.set(xscale="log", xlabel="parameters N", ylabel="validation loss (nats per token)", title=fitted.family)
        plots.quantity_axis(left)
        c = np.geomspace(min(budgets) / 1.3, max(budgets) * 1.3, 50)
        low, high = frontier.interval
        label = f"N* ~ C^{frontier.exponent:.3f} [{low:.3f}, {high:.3f}]"
        right.plot(c, frontier.coefficient * c**frontier.exponent, linewidth=1.4, color=plots.color_of(0), label=label)
        right.set(
            xscale="log", yscale="log", xlabel="compute C (FLOPs)", ylabel="N*", title=f"minima by {frontier.method}"
        )
        plots.quantity_axis(right, "y")
        right.legend(fontsize=8, loc="upper left")
    return figure


_FAR = 1e100
"""Beyond any axis, where a draw whose optimum is infinite is drawn."""


def frontier(evidence: Evidence) -> Figure:
    """The compute-optimal N* and D* of each law, with bands over the draws, and the runs that were trained."""
    figure, axes = _panels(2, width=4.2)
    for index, fitted in enumerate(evidence.fits):
        color, dash = plots.color_of(index), plots.dash_of(index)
        trained = fitted.used["flops"].to_numpy()
        c = np.geomspace(trained.min(), trained.max() * 10, 60)
        draws = np.stack([np.stack(law.compute_optimal(c)) for law in fitted.drawn_laws])  # (draws, 2, compute)
        center = np.stack(fitted.law.compute_optimal(c))
        low, high = np.quantile(np.minimum(draws, _FAR), TAILS, axis=0)
        for axis, row, column in zip(axes, (0, 1), ("parameters", "tokens"), strict=True):
            axis.fill_between(c, low[row], high[row], color=color, alpha=0.18, linewidth=0)
            axis.plot(c, center[row], dash, color=color, linewidth=1.5, label=fitted.family)
            axis.plot(trained, fitted.used[column], plots.marker_of(index, "."), color=color, markersize=4, alpha=0.4)
    for axis, name, column in zip(axes, ("N*", "D*"), ("parameters", "tokens"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel="compute C = 6ND (FLOPs)", ylabel=name, title=f"optimal {column}")
        measured = np.concatenate([fitted.used[column].to_numpy() for fitted in evidence.fits])
        axis.set_ylim(measured.min() / 10, measured.max() * 30)
        plots.quantity_axis(axis, "y")
    _legend(axes[0], evidence)
    return figure


def envelope(evidence: Evidence) -> Figure:
    """Training curves against compute, and the points of their lower envelope that say which size is best."""
    if evidence.curves.is_empty() or evidence.curves["run_id"].is_unique().all():
        raise RefusalError("no-curves", "an envelope needs several validations during training of each run")
    curved = evidence.curves["run_id"].implode()
    fits = [fitted for fitted in evidence.fits if fitted.used["run_id"].is_in(curved).any()]
    figure, axes = _panels(len(fits))
    for axis, fitted in zip(axes, fits, strict=True):
        points = isoflop.along_runs(evidence.curves, fitted.used).sort("flops")
        models = sorted(points["parameters"].unique().to_list())
        for run in points.partition_by("run_id"):
            color = plots.shade(models.index(run["parameters"][0]), len(models))
            axis.plot(run["flops"], run["loss"], color=color, linewidth=1)
        for size in plots.spread(models, 6):
            axis.plot([], [], color=plots.shade(models.index(size), len(models)), label=f"N = {compact(round(size))}")
        label = fitted.family
        try:
            found = isoflop.envelope(points)
            label += f": N* ~ C^{found.exponent:.2f}"
        except RefusalError as refusal:
            label += ": no envelope"
            why = textwrap.fill(str(refusal), 46)
            axis.text(0.02, 0.02, why, transform=axis.transAxes, fontsize=7, verticalalignment="bottom")
        axis.set(xscale="log", xlabel="compute so far (FLOPs)", title=label)
        late = points.filter(pl.col("tokens") > 0.05 * points["tokens"].max())["loss"].to_numpy()
        if late.size:
            axis.set_ylim(late.min() - 0.05 * np.ptp(late), late.max() + 0.05 * np.ptp(late))
        axis.legend(fontsize=8)
    axes[0].set_ylabel("validation loss (nats per token)")
    return figure


def residuals(evidence: Evidence) -> Figure:
    """What the laws leave unexplained, in percent of the loss: against compute, and against a normal distribution."""
    figure, axes = _panels(2, width=4.2)
    for index, fitted in enumerate(evidence.fits):
        color, marker, used = plots.color_of(index), plots.marker_of(index), fitted.used
        percent = 100 * fitted.residuals
        axes[0].plot(used["flops"], percent, marker, color=color, markersize=4, alpha=0.75, label=fitted.family)
        ordered = np.sort(percent)
        expected = special.ndtri((np.arange(len(ordered)) + 0.5) / len(ordered))
        axes[1].plot(expected, ordered, marker, color=color, markersize=4, alpha=0.75)
        # Through the quartiles, as a few outliers must not tilt the line they are to be seen against.
        quartiles = np.quantile(ordered, [0.25, 0.75])
        slope = np.diff(quartiles)[0] / np.diff(special.ndtri([0.25, 0.75]))[0]
        axes[1].plot(expected, np.mean(quartiles) + slope * expected, plots.dash_of(index), color=color, linewidth=0.8)
    axes[0].axhline(0, color="0.5", linewidth=0.8)
    axes[0].set(xscale="log", xlabel="compute C (FLOPs)", ylabel="measured over law (%)", title="residuals")
    axes[1].set(xlabel="normal quantile", ylabel="residual (%)", title="against a normal distribution")
    _legend(axes[0], evidence)
    return figure


def exponents(evidence: Evidence) -> Figure:
    """Bootstrap draws of α and β together, with the region of highest density that holds 95 % of them."""
    figure, (axis,) = _panels(1, width=4.6)
    for index, fitted in enumerate(evidence.fits):
        color, marker = plots.color_of(index), plots.marker_of(index, "P")
        cloud = _exponent_draws(fitted)
        axis.plot(*cloud[:CLOUD].T, ".", color=color, markersize=2.5, alpha=0.35)
        _region(axis, cloud, color, plots.dash_of(index))
        found = fitted.parameters
        axis.plot(found["alpha"], found["beta"], marker, color=color, markersize=8, label=fitted.family)
    shown = np.concatenate([np.quantile(_exponent_draws(fitted), [0.01, 0.99], axis=0) for fitted in evidence.fits])
    published = [[one.law.alpha, one.law.beta] for one in _laws(evidence.references)]
    shown = np.concatenate([shown, np.reshape(published, (-1, 2))])
    margin = 0.2 * np.ptp(shown, axis=0) + 1e-3
    for reference, marker in zip(_laws(evidence.references), "sD^v", strict=False):
        axis.plot(reference.law.alpha, reference.law.beta, marker, color="0.5", markersize=5, label=reference.name)
    axis.set_xlim(max(0, shown[:, 0].min() - margin[0]), shown[:, 0].max() + margin[0])
    axis.set_ylim(max(0, shown[:, 1].min() - margin[1]), shown[:, 1].max() + margin[1])
    axis.set(xlabel="α (parameters)", ylabel="β (tokens)", title="exponents, jointly")
    _legend(axis, evidence)
    return figure


def multipliers(evidence: Evidence) -> Figure:
    """How many times the compute of each other family the first one needs for the same loss, over the trained range."""
    if len(evidence.fits) < 2:
        raise RefusalError("one-family", "a compute multiplier needs two families")
    baseline, *others = evidence.fits
    figure, (axis,) = _panels(1, width=4.6)
    trained = baseline.used["flops"].to_numpy()
    c = np.geomspace(trained.min(), trained.max(), 7)
    for index, fitted in enumerate(others, start=1):
        color = plots.color_of(index)
        found = [allocation.compute_multiplier(baseline, fitted, float(flops)) for flops in c]
        low, high = np.array([one.interval for one in found]).T
        axis.fill_between(c, low, high, color=color, alpha=0.18, linewidth=0)
        multiples = np.array([one.value for one in found])
        near = np.array([_is_near_runs(baseline, at) for at in c]) & np.array(
            [_is_near_runs(fitted, at / times) for at, times in zip(c, multiples, strict=True)]
        )
        label = fitted.family if near.all() else f"{fitted.family} (dotted: the optimum is far from the runs)"
        axis.plot(c, multiples, ":", color=color, linewidth=1.2)
        shown = np.where(near, multiples, np.nan)
        axis.plot(c, shown, plots.dash_of(index), color=color, linewidth=1.6, label=label)
    axis.axhline(1, color="0.5", linewidth=0.8)
    axis.set(xscale="log", xlabel=f"compute of {baseline.family} (FLOPs)", title="compute multiplier")
    axis.set_ylabel(f"compute {baseline.family} needs,\nover the other's")
    axis.set_ylim(0, min(float(axis.get_ylim()[1]), 20.0))
    _legend(axis, evidence)
    return figure


def _is_near_runs(fitted: Fit, flops: float) -> bool:
    """Whether the best split of a budget lies within a factor of three of the models and budgets that were trained."""
    if not 0 < flops < np.inf:
        return False
    try:
        best = allocation.allocate(replace(fitted, draws=fitted.draws[:2]), flops)
    except RefusalError:  # its law has no optimum
        return False
    return bool(plots.is_near(fitted, best.parameters, best.tokens))


FIGURES: dict[str, Callable[[Evidence], Figure]] = {
    "law": law,
    "sizes": sizes,
    "profiles": profiles,
    "frontier": frontier,
    "envelope": envelope,
    "residuals": residuals,
    "exponents": exponents,
    "multipliers": multipliers,
}


@contextmanager
def drawn(evidence: Evidence) -> Iterator[Mapping[str, Figure | RefusalError]]:
    """Every figure by its name, drawn once and on no ground, or why the runs cannot show it; closed in the end."""
    found: dict[str, Figure | RefusalError] = {}
    try:
        with plots.style():
            for name, draw in FIGURES.items():
                try:
                    found[name] = draw(evidence)
                except RefusalError as refusal:
                    found[name] = refusal
        yield found
    finally:
        for figure in found.values():
            if isinstance(figure, Figure):
                plt.close(figure)


def _panels(count: int, width: float = 3.8) -> tuple[Figure, list[Axes]]:
    columns = min(count, 3) if count != 4 else 2
    rows = -(-count // columns)
    figure: Figure = plt.figure(figsize=(width * columns, 3.4 * rows), layout="constrained")
    axes = [figure.add_subplot(rows, columns, index + 1) for index in range(count)]
    return figure, axes


def _legend(axis: Axes, evidence: Evidence) -> None:
    """Names of families, where there is more than one thing to tell apart."""
    count = len(evidence.fits) + len(evidence.references)
    if count > len(plots.FAMILY_COLORS):  # beside the panels: it would hide what is drawn
        handles, labels = axis.get_legend_handles_labels()
        figure = axis.get_figure(root=True)
        assert figure is not None
        figure.legend(handles, labels, fontsize=8, loc="outside right center")
    elif count > 1:
        axis.legend(fontsize=8)


def _frontiers(fits: Sequence[Fit]) -> list[tuple[Fit, isoflop.Frontier]]:
    found, refusals = [], []
    for fitted in fits:
        try:
            found.append((fitted, isoflop.frontier(fitted.used, "akima")))
        except RefusalError as refusal:
            refusals.append(refusal)
    if not found:
        raise refusals[0]
    return found


def _exponent_draws(fitted: Fit) -> Array:
    """(draws, 2): alpha and beta. RefusalError where the form has not both."""
    names = fitted.form.coordinates
    if not {"alpha", "beta"} <= set(names):
        raise RefusalError("no-exponents", f"{fitted.form.name}, {fitted.form.formula}, has not both alpha and beta")
    return fitted.draws[:, [names.index("alpha"), names.index("beta")]]


def _laws(references: Sequence[Table | PublishedLaw]) -> list[PublishedLaw]:
    return [reference for reference in references if isinstance(reference, PublishedLaw)]


def _region(axis: Axes, cloud: Array, color: str, dash: str) -> None:
    """Contour of the kernel density (Scott's rule) above which 95 % of the draws lie; several pieces, if it must be."""
    if np.linalg.matrix_rank(np.cov(cloud.T)) < 2:
        return  # draws on a line have no region
    narrow = np.linalg.cholesky(np.linalg.inv(np.cov(cloud.T) * len(cloud) ** (-1 / 3)))
    drawn = cloud @ narrow

    def density(points: Array) -> Array:
        at = points @ narrow
        apart = (at**2).sum(1)[:, None] + (drawn**2).sum(1) - 2 * at @ drawn.T
        return np.asarray(np.exp(-apart / 2).mean(axis=1))

    low, high = np.quantile(cloud, [0.005, 0.995], axis=0)
    margin = 0.3 * (high - low)
    x, y = np.meshgrid(*(np.linspace(low[i] - margin[i], high[i] + margin[i], 80) for i in (0, 1)))
    height = density(np.stack([x.ravel(), y.ravel()], axis=1)).reshape(x.shape)
    level = np.quantile(density(cloud[:1000]), 0.05)
    axis.contour(x, y, height, levels=[level], colors=[color], linewidths=1.3, linestyles=[dash])
