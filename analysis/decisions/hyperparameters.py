"""Laws of hyperparameters: where the best learning rate or batch lies, and how it moves with N and D.

In each cell (one family, N and D) losses against the logarithm of the axis are a parabola near their least; its minimum
is the cell's best value. What scatters about all parabolas says how sure each minimum is. Minima of all cells follow a
power law of N and D, by least squares of their logarithms weighed by their variances (the form of Li et al. 2025, arXiv
2503.04715). A cell whose best value is the last that was tried has no minimum: it is told, and takes no part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from scipy import optimize

from analysis.findings import RefusalError
from analysis.fitting.bootstrap import LEVEL, TAILS, percentile
from analysis.laws.additive import Array
from xlstm.run.rates.law import RateLaw

DRAWS, SEED = 1000, 0
NEAREST = 5
"""Values of a cell, about its best, that its parabola goes through."""
SCATTER = 1e-3
"""Of log losses about parabolas, where no cell has more values than a parabola has parameters."""
REFERENCES = {
    "learning_rate": ("Step Law, arXiv 2503.04715: 1.79 N^-0.713 D^0.307, N without embeddings", 1.79, -0.713, 0.307),
    "batch_tokens": ("Step Law, arXiv 2503.04715: 0.58 D^0.571", 0.58, 0.0, 0.571),
}
"""Published laws of an axis: how they are written, coefficient, exponents of N and D."""


@dataclass(frozen=True)
class Cell:
    """The best value of the axis for one model size and budget."""

    parameters: float
    tokens: float
    best: float
    """Where the parabola is lowest; at an edge the best value that was tried."""
    interval: tuple[float, float] | None
    """Of the best value, at LEVEL; None at an edge."""
    at_edge: bool
    """Whether the minimum lies at or beyond the values tried."""
    off_by_two: float | None
    """Relative loss that a value twice or half the best costs; None at an edge."""
    values: tuple[float, ...]
    losses: tuple[float, ...]
    """Means over repetitions, in the order of the values."""


@dataclass(frozen=True)
class HyperparameterLaw:
    """best = K N^p D^q of one family."""

    family: str
    axis: str
    cells: tuple[Cell, ...]
    exponents: Mapping[str, float]
    """K, and the exponents of what varies among the cells: N, D or both."""
    intervals: Mapping[str, tuple[float, float]]
    draws: Array
    """(draws, k): log K and the exponents, about the cells' mean log N and log D."""
    center: tuple[float, float]
    """Mean log N and log D of the cells that were fitted."""
    departures: Array
    """(draws,): how far the logarithm of a new cell's best value, searched as these were, lies from the law."""

    @property
    def formula(self) -> str:
        """The law with its constants."""
        factors = [f"{name}^{value:.3f}" for name, value in self.exponents.items() if name != "K"]
        return " ".join([f"{self.axis} = {self.exponents['K']:.4g}", *factors])

    def predict(self, parameters: float, tokens: float) -> tuple[float, float, float]:
        """What the law says at (N, D), and the bounds of its interval."""
        return self.kept.at(parameters, tokens)

    def predict_cell(self, parameters: float, tokens: float) -> tuple[float, float]:
        """Bounds of the interval for the best value that a search at (N, D) finds: `predict`'s, with `departures`."""
        return percentile(self.kept.drawn(parameters, tokens)[1:] * np.exp(self.departures))

    @cached_property
    def kept(self) -> RateLaw:
        """What is kept of the law for other sweeps to take their values from."""
        varying = tuple(name for name in self.exponents if name != "K")
        draws = tuple(map(tuple, self.draws.tolist()))
        return RateLaw(family=self.family, law=self.formula, varying=varying, center=self.center, draws=draws)

    def to_json(self) -> dict[str, Any]:
        """Plain values, in the shape of `scaling fit --hyperparameters --json`."""
        reference = REFERENCES.get(self.axis)
        published = None
        if reference is not None:
            told, coefficient, of_n, of_d = reference
            published = {
                "law": told,
                "at_cells": [coefficient * one.parameters**of_n * one.tokens**of_d for one in self.cells],
            }
        return {
            "family": self.family,
            "axis": self.axis,
            "law": self.formula,
            "exponents": dict(self.exponents),
            "intervals": {name: list(bounds) for name, bounds in self.intervals.items()},
            "interval_level": LEVEL,
            "cells": [
                vars(cell) | {"interval": None if cell.interval is None else list(cell.interval)} for cell in self.cells
            ],
            "published": published,
        }


@dataclass(frozen=True)
class _Search:
    """What one cell measured: logarithms of values about the best, and log losses there."""

    parameters: float
    tokens: float
    log_values: Array
    log_losses: Array

    @property
    def best(self) -> int:
        """Which value has the lowest loss."""
        return int(np.argmin(self.log_losses))

    @property
    def near(self) -> slice:
        """The NEAREST values about the best one, as many on both sides as there are."""
        begin = max(0, min(self.best - NEAREST // 2, len(self.log_values) - NEAREST))
        return slice(begin, begin + NEAREST)

    @property
    def columns(self) -> Array:
        """(values, 3): 1, x and x² about the best value."""
        x = self.log_values[self.near] - self.log_values[self.best]
        return np.stack([np.ones_like(x), x, x * x], axis=1)

    def minima(self, log_losses: Array) -> Array:
        """Where parabolas through rows of losses (draws, values) are lowest; not a number where there is no minimum."""
        coefficients = np.linalg.lstsq(self.columns, log_losses.T, rcond=None)[0]
        with np.errstate(all="ignore"):
            lowest = -coefficients[1] / (2 * coefficients[2])
        return np.asarray(np.where(coefficients[2] > 0, lowest, np.nan) + self.log_values[self.best])

    @property
    def residuals(self) -> Array:
        """Of the log losses about the parabola."""
        near = self.log_losses[self.near]
        return np.asarray(near - self.columns @ np.linalg.lstsq(self.columns, near, rcond=None)[0])


def fit(frame: pl.DataFrame, axis: str) -> list[HyperparameterLaw]:
    """A law for each family of a frame with the axis as a column of numbers; rows that are excluded take no part.

    RefusalError where no family has enough cells with at least three values, the best of them inside.
    """
    usable = frame.filter(pl.col("excluded").is_null() & pl.col(axis).is_finite() & (pl.col(axis) > 0))
    found, reasons = [], []
    for (family,), rows in usable.group_by(["family"], maintain_order=True):
        try:
            found.append(_of_family(str(family), axis, rows))
        except RefusalError as refusal:
            reasons.append(f"{family}: {refusal}")
    if not found:
        raise RefusalError("too-few-cells", "; ".join(reasons) or f"no usable rows have a {axis}")
    return found


def _of_family(family: str, axis: str, rows: pl.DataFrame) -> HyperparameterLaw:
    searches = []
    for (n, d), cell in rows.group_by(["parameters", "tokens"], maintain_order=True):
        means = cell.group_by(axis).agg(pl.col("loss").mean()).sort(axis)
        if means.height >= 3:
            values, losses = np.log(means[axis].to_numpy()), np.log(means["loss"].to_numpy())
            searches.append(_Search(float(n), float(d), values, losses))  # type: ignore[arg-type]
    if not searches:
        raise RefusalError("too-few-cells", f"no size and budget has three values of {axis}")
    scatter = _scatter(searches)
    random = np.random.default_rng(SEED)
    drawn = []
    for one in searches:
        near = one.log_losses[one.near]
        noise = scatter * random.standard_normal((DRAWS, len(near)))
        drawn.append(one.minima(np.concatenate([near[None], near + noise])))  # the first is of what was measured
    cells = [_cell(one, minima) for one, minima in zip(searches, drawn, strict=True)]
    inside = [(one, minima) for one, minima, cell in zip(searches, drawn, cells, strict=True) if not cell.at_edge]
    varying = _varying([one for one, _ in inside])
    if len(inside) < 1 + len(varying) or not varying:
        raise RefusalError(
            "too-few-cells",
            f"{len(inside)} of {len(cells)} sizes and budgets have their best {axis} inside the values tried; a law "
            "needs several of different N or D",
        )
    fitted, minima = zip(*inside, strict=True)
    return _law(family, axis, cells, fitted, np.stack(minima), varying)


def _scatter(searches: Sequence[_Search]) -> float:
    """Standard deviation of log losses about all parabolas."""
    residuals = [one.residuals for one in searches]
    freedom = sum(max(len(one) - 3, 0) for one in residuals)
    squares = sum(float((one**2).sum()) for one in residuals)
    return float(np.sqrt(squares / freedom)) if freedom else SCATTER


def _cell(one: _Search, minima: Array) -> Cell:
    best, tried = minima[0], one.log_values
    measured = float(one.log_values[one.best])
    inside = bool(tried[0] < measured < tried[-1] and np.isfinite(best) and tried[0] < best < tried[-1])
    values, losses = (tuple(map(float, np.exp(array))) for array in (tried, one.log_losses))
    if not inside:
        return Cell(one.parameters, one.tokens, float(np.exp(measured)), None, True, None, values, losses)
    low, high = np.exp(np.nanquantile(minima[1:], TAILS))
    bend = float(np.linalg.lstsq(one.columns, one.log_losses[one.near], rcond=None)[0][2])
    costs = float(np.expm1(bend * np.log(2) ** 2))
    return Cell(
        one.parameters, one.tokens, float(np.exp(best)), (float(low), float(high)), False, costs, values, losses
    )


def _varying(searches: Sequence[_Search]) -> list[str]:
    """Which of N and D differ among the cells, and not in one ratio throughout, where N alone is taken."""
    if not searches:
        return []
    log_n, log_d = (np.log([getattr(one, name) for one in searches]) for name in ("parameters", "tokens"))
    names = [name for name, logs in (("N", log_n), ("D", log_d)) if np.ptp(logs) > 1e-6]
    if len(names) == 2:
        centered = np.stack([log_n - log_n.mean(), log_d - log_d.mean()])
        singular = np.linalg.svd(centered, compute_uv=False)
        if len(searches) < 3 or singular[1] < 0.05 * singular[0]:
            return ["N"]
    return names


def _law(
    family: str, axis: str, cells: Sequence[Cell], searches: Sequence[_Search], minima: Array, varying: Sequence[str]
) -> HyperparameterLaw:
    """By weighted least squares of each draw's minima (cells, 1 + draws); the scatter of cells about it counts, too."""
    logs = {"N": np.log([one.parameters for one in searches]), "D": np.log([one.tokens for one in searches])}
    center = float(logs["N"].mean()), float(logs["D"].mean())
    about = {"N": logs["N"] - center[0], "D": logs["D"] - center[1]}
    columns = np.stack([np.ones(len(searches)), *(about[name] for name in varying)], axis=1)
    known = np.where(np.isfinite(minima), minima, minima[:, :1])
    deviation = np.maximum(known[:, 1:].std(axis=1), 1e-3)
    weights = 1 / deviation
    solved = np.linalg.lstsq(columns * weights[:, None], known * weights[:, None], rcond=None)[0]  # (k, 1 + draws)
    freedom = len(searches) - columns.shape[1]
    missed = (known[:, 0] - columns @ solved[:, 0]) * weights
    excess = float(np.sqrt(max((missed**2).sum() / freedom, 1.0))) if freedom > 0 else 1.0
    spread = solved[:, :1] + excess * (solved - solved[:, :1])
    shift = sum(spread[1 + index] * center["ND".index(name)] for index, name in enumerate(varying))
    constants = {"K": np.exp(spread[0] - shift), **{name: spread[1 + index] for index, name in enumerate(varying)}}
    return HyperparameterLaw(
        family,
        axis,
        tuple(cells),
        {name: float(values[0]) for name, values in constants.items()},
        {name: percentile(values[1:]) for name, values in constants.items()},
        spread.T,
        center,
        _departures(known, columns, deviation),
    )


def _departures(minima: Array, columns: Array, deviation: Array) -> Array:
    """Draws of a new cell's best value about the law, in logarithms: what cells scatter, and a search's own error.

    The scatter is the variance that makes the residuals of the cells' minima (cells, 1 + draws) as large as they are
    expected (Paule & Mandel 1982); the error is that of any cell, deviations (cells,). Student's t allows for how
    few cells tell the scatter.
    """
    freedom = columns.shape[0] - columns.shape[1]
    random = np.random.default_rng(SEED + 1)
    own = random.choice(deviation, DRAWS) ** 2
    if freedom <= 0:
        return np.asarray(np.sqrt(own) * random.standard_normal(DRAWS))

    def excess(variance: float) -> float:
        root = 1 / np.sqrt(deviation**2 + variance)
        solved = np.linalg.lstsq(columns * root[:, None], minima[:, 0] * root, rcond=None)[0]
        return float((((minima[:, 0] - columns @ solved) * root) ** 2).sum() - freedom)

    widest = float(np.ptp(minima[:, 0])) ** 2 + 1e-12
    between = optimize.brentq(excess, 0.0, widest) if excess(0.0) > 0 > excess(widest) else 0.0
    return np.asarray(np.sqrt(between + own) * random.standard_t(freedom, DRAWS))
