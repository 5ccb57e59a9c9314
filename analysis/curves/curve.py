"""One run's losses and its learning rate at every step, as laws of curves need them."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from analysis.laws.additive import Array

WARMUP_PIECES = 32
"""Pieces in which the rate is taken to rise during a warm-up."""
PIECES, MOST_PIECES = 8, 1600
"""Pieces into which the rate's path is cut between two rows, and about how many a curve may have."""
JUMP, STEEP = 0.1, 4.0
"""A rate that changes by this share from one row to the next, and so many times as much as beside them, jumps."""


@dataclass(frozen=True)
class Curve:
    """What one run measured, and the rate it had."""

    run: str
    steps: Array
    """(rows,): updates made when a loss was measured, rising."""
    losses: Array
    """(rows,): nats per token."""
    rate_steps: Array
    """(points,): updates made where the rate is known, rising; it is linear between them, but where it jumps."""
    rates: Array
    """(points,): the learning rate there."""
    warmup_steps: float
    """Updates of the linear warm-up, which begins at a rate of 0."""

    @property
    def after_warmup(self) -> "Curve":
        """The curve without the losses within the warm-up, of which no law speaks."""
        late = self.steps >= self.warmup_steps
        return replace(self, steps=self.steps[late], losses=self.losses[late])

    @cached_property
    def path(self) -> "Path":
        """The rate's path with the rows at which the loss is asked for."""
        return Path.of(self.rate_steps, self.rates, self.warmup_steps, self.steps)


@dataclass(frozen=True)
class Path:
    """A rate that rises and falls in small drops, and for every row the drops before it.

    A pair is a row and a drop that came before it. All arrays of pairs are in the rows' order.
    """

    steps: Array
    """(rows,)"""
    sums: Array
    """(rows,): the rate summed over all updates until the row, those of the warm-up among them."""
    row: NDArray[np.intp]
    """(pairs,): the row of each pair."""
    drop: Array
    """(pairs,): by how much the rate fell; less than 0 where it rose, as in the warm-up."""
    log_rate: Array
    """(pairs,): the logarithm of the rate after the drop."""
    since: Array
    """(pairs,): the rate summed over the updates from the drop to the row."""
    steps_since: Array
    """(pairs,): updates from the drop to the row."""

    @classmethod
    def of(cls, rate_steps: Array, rates: Array, warmup_steps: float, at: Array) -> "Path":
        """The path of a rate that is known at some updates, for rows at the updates `at`."""
        if at.max() > rate_steps[-1]:
            rate_steps, rates = np.append(rate_steps, at.max()), np.append(rates, rates[-1])
        times, values = _refined(rate_steps, rates, warmup_steps)
        sums = np.concatenate([[0.0], np.cumsum(np.diff(times) * (values[1:] + values[:-1]) / 2)])
        drops = values[:-1] - values[1:]
        (fallen,) = np.nonzero((drops != 0) & (values[1:] > 0))
        row, which = np.nonzero(at[:, None] > times[fallen][None] + 1e-9)
        here, until = fallen[which], np.interp(at, times, sums)
        return cls(
            at, until, row, drops[here], np.log(values[here + 1]), until[row] - sums[here], at[row] - times[here]
        )

    def total(self, pairs: Array) -> Array:
        """The sum over each row's drops of the drop times a value: (rows,)."""
        return np.asarray(np.bincount(self.row, self.drop * pairs, len(self.steps)), float)


def _refined(steps: Array, rates: Array, warmup_steps: float) -> tuple[Array, Array]:
    """The rate's path from its first update on, in small pieces: two values at the update of a jump."""
    change = np.diff(rates)
    beside = np.maximum(np.abs(np.append(0.0, change[:-1])), np.abs(np.append(change[1:], 0.0)))
    jumps = (np.abs(change) > STEEP * beside) & (np.abs(change) > JUMP * np.abs(rates[:-1]))
    pieces = max(1, min(PIECES, MOST_PIECES // max(len(steps), 1)))
    times, values = [steps[:1]], [rates[:1]]
    share = np.arange(1, pieces + 1) / pieces
    for place, jumped in enumerate(jumps):
        if change[place] == 0:
            times.append(steps[place + 1 : place + 2])
            values.append(rates[place + 1 : place + 2])
        elif jumped:  # held until the row that shows the new rate
            times.append(np.repeat(steps[place + 1], 2))
            values.append(rates[place : place + 2])
        else:
            times.append(steps[place] + share * (steps[place + 1] - steps[place]))
            values.append(rates[place] + share * change[place])
    time, value = np.concatenate(times), np.concatenate(values)
    rising = min(warmup_steps, float(steps[0]))
    if rising > 0:
        start = np.linspace(0.0, rising, WARMUP_PIECES + 1)
        top = float(rates[0])
        plateau = [float(steps[0])] if float(steps[0]) > rising else []
        time = np.concatenate([start[:-1], [rising] if plateau else [], time])
        value = np.concatenate([top * start[:-1] / rising, [top] if plateau else [], value])
    return time, value


def schedule(kind: str, steps: int, *, peak: float, final: float, warmup_steps: float, decay_share: float) -> Curve:
    """A run that there is not, with no loss yet: constant, cosine or wsd, whose last `decay_share` is linear."""
    at = np.unique(np.concatenate([np.linspace(max(warmup_steps, 1.0), steps, 400), [steps]]))
    done = (at - warmup_steps) / max(steps - warmup_steps, 1.0)
    if kind == "cosine":
        rates = final + (peak - final) * (1 + np.cos(np.pi * done)) / 2
    elif kind == "wsd":
        begin = steps * (1 - decay_share)
        at = np.unique(np.append(at, begin))
        rates = np.interp(at, [0.0, begin, steps], [peak, peak, final])
    else:
        rates = np.full(len(at), peak)
    end = np.array([float(steps)])
    return Curve(kind, end, np.full(1, np.nan), at, rates, warmup_steps)


def metrics(measured: Array, predicted: Array) -> dict[str, float]:
    """How near predicted losses come to measured ones."""
    miss = predicted - measured
    spread = float(((measured - measured.mean()) ** 2).sum())
    return {
        "r2": 1 - float((miss**2).sum()) / spread if spread > 0 else float("nan"),
        "mae": float(np.abs(miss).mean()),
        "rmse": float(np.sqrt((miss**2).mean())),
        "mean_relative_error": float((np.abs(miss) / measured).mean()),
        "worst_relative_error": float((np.abs(miss) / measured).max()),
    }
