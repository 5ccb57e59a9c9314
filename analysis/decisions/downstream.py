"""From loss to what a benchmark scores: error = epsilon - k exp(-gamma L) (Gadre et al. 2024, arXiv 2403.08540, eq. 5).

A law gives the loss, this link gives the error at that loss; the intervals of both go into what is predicted.
"""

import math
from dataclasses import dataclass

import numpy as np
import polars as pl

from analysis.data.quality import usable
from analysis.findings import FitWarning, RefusalError
from analysis.fitting.bootstrap import TAILS
from analysis.fitting.fit import Fit
from analysis.fitting.regression import fit_form
from analysis.laws.additive import Array
from analysis.laws.forms import Complex, Form
from analysis.laws.objectives import LEAST_SQUARES
from xlstm.quantities import nearest

LOSS = "validation_loss"
"""Column of the losses that errors are predicted from."""
SATURATED = 0.9
"""Share of epsilon above which even the best error shows no skill yet."""


def _error(theta: Complex, x: Complex) -> Complex:
    epsilon, k, gamma = (np.exp(theta[:, index]) for index in range(3))
    left = epsilon - k * np.exp(-gamma * np.exp(x[0]))
    return np.asarray(np.log(np.where(left.real > 1e-12, left, 1e-12)))


LINK = Form(
    "downstream",
    "epsilon - k exp(-gamma L)",
    (LOSS,),
    ("log epsilon", "log k", "log gamma"),
    (-6.0, -30.0, -6.0),
    (2.0, 30.0, 4.0),
    _error,
    "Gadre et al. 2024, arXiv 2403.08540, equation 5",
)


def _sigmoid(theta: Complex, x: Complex) -> Complex:
    best, span, middle, steepness = (theta[:, index] for index in range(4))
    z = np.exp(steepness) * (np.exp(x[0]) - middle)
    z = np.where(np.abs(z.real) < 500, z, 500 * np.sign(z.real))
    return np.asarray(np.log(np.exp(best) + np.exp(span) / (1 + np.exp(-z))))


def _sigmoid_starts(log_inputs: Array, log_error: Array, random: np.random.Generator, count: int) -> Array:
    loss, error = np.exp(log_inputs[0]), np.exp(log_error)
    best = error.min() * random.uniform(0.05, 1.0, count)
    span = (error.max() - best) * random.uniform(1.0, 1.5, count)
    middle = random.uniform(loss.min(), loss.max(), count)
    return np.stack([np.log(best), np.log(span), middle, random.uniform(-1.0, 3.0, count)], axis=1)


SIGMOID = Form(
    "downstream-sigmoid",
    "best + span / (1 + exp(-k (L - L0)))",
    (LOSS,),
    ("log best", "log span", "L0", "log k"),
    (-30.0, -6.0, 0.0, -6.0),
    (2.0, 2.0, 20.0, 6.0),
    _sigmoid,
    "Grattafiori et al. 2024, arXiv 2407.21783, section 3.2.1; Bhagia et al. 2024, arXiv 2412.04403, equation 2",
    starts=_sigmoid_starts,
)
LINKS = {"exponential": LINK, "sigmoid": SIGMOID}


@dataclass(frozen=True)
class Link:
    """Error of a benchmark as a function of loss."""

    fit: Fit
    warnings: tuple[FitWarning, ...]

    def predict(self, loss: Array) -> Array:
        """Error at each loss."""
        return self.fit.predict_rows(pl.DataFrame({LOSS: loss}))

    def predict_from(self, law: Fit, frame: pl.DataFrame) -> tuple[Array, Array, Array]:
        """Error at the rows of a frame that has the law's inputs, and its bounds at level 0.95, (rows,) each.

        Each draw of the law meets a draw of the link, so that both uncertainties are in the bounds. ValueError where
        either was fitted without draws.
        """
        count = min(len(law.draws), len(self.fit.draws))
        if not count:
            raise ValueError("both fits need bootstrap draws: fit them with num_draws")
        losses, links = law.drawn_rows(frame)[:count], self.fit.draws[:count]
        drawn = [
            self.fit.form.loss(link[None], np.log(loss)[None])[0] for loss, link in zip(losses, links, strict=True)
        ]
        low, high = np.quantile(drawn, TAILS, axis=0)
        return self.predict(law.predict_rows(frame)), low, high


def fit_link(frame: pl.DataFrame, error: str, *, link: str = "exponential", num_draws: int = 0) -> Link:
    """Fit the error in column `error` (a fraction, lower is better) to the `loss` of the same rows, by least squares.

    `link` is one of LINKS: `exponential`, or `sigmoid` for scores that stay at chance, then rise, then saturate.
    Warns with `saturated` where every run's error is within a tenth of epsilon, that without any skill.
    Raises RefusalError as `fit_form` does.
    """
    rows = usable(frame)
    if link not in LINKS:
        raise RefusalError("no-such-link", f"no link `{link}`; {nearest(link, LINKS)}")
    renamed = rows.select(pl.col("loss").alias(LOSS), pl.col(error).alias("loss"))
    if link == "sigmoid":
        found = fit_form(renamed, SIGMOID, LEAST_SQUARES, num_draws=num_draws)
        return Link(found, found.warnings)
    loss, wrong = renamed[LOSS].to_numpy(), renamed["loss"].to_numpy()
    random = np.random.default_rng(0)
    gamma = np.exp(random.uniform(np.log(0.1), np.log(5.0), 64))
    epsilon = wrong.max() * random.uniform(1.0, 1.5, 64)
    k = (epsilon - wrong.min()) * np.exp(gamma * loss.min())
    begin = np.clip(np.log(np.stack([epsilon, k, gamma], axis=1)), LINK.lower, LINK.upper)
    found = fit_form(renamed, LINK, LEAST_SQUARES, num_draws=num_draws, begin=begin)
    warnings = found.warnings
    if wrong.min() > SATURATED * found.parameters["epsilon"]:
        told = f"the best error, {wrong.min():.3g}, is near that without any skill, {found.parameters['epsilon']:.3g}"
        warnings = (*warnings, FitWarning("saturated", told))
    return Link(found, warnings)


DEAR = 0.2
"""Share of the runs, by compute, on which a link that was fitted to the others is tried."""


@dataclass(frozen=True)
class Chosen:
    """The link whose form foretells the dear runs best from the cheap ones."""

    name: str
    link: Link
    rollouts: dict[str, float | None]
    """Root mean square error on the dear runs by form; None where a form cannot be fitted to the others."""


def choose_link(frame: pl.DataFrame, error: str, *, num_draws: int = 0) -> Chosen:
    """Fit the link of the form with the least error on the dear fifth of the runs, when fitted to the others.

    The exponential form where none can be tried, or both foretell alike. Raises RefusalError as `fit_link` does.
    """
    rows = usable(frame).drop_nulls([error, "loss"]).sort("flops")
    held = max(1, math.ceil(DEAR * rows.height))
    cheap, dear = rows.head(rows.height - held), rows.tail(held)
    rollouts = {name: _rollout(cheap, dear, error, name) for name in LINKS}
    known = [(missed, place, name) for place, (name, missed) in enumerate(rollouts.items()) if missed is not None]
    name = min(known)[2] if known else next(iter(LINKS))
    return Chosen(name, fit_link(rows, error, link=name, num_draws=num_draws), rollouts)


def _rollout(cheap: pl.DataFrame, dear: pl.DataFrame, error: str, name: str) -> float | None:
    try:
        link = fit_link(cheap, error, link=name)
    except RefusalError:
        return None
    missed = link.predict(dear["loss"].to_numpy()) - dear[error].to_numpy()
    return float(np.sqrt(np.mean(missed**2)))
