"""The two laws of curves: loss as a function of the rate's path."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from analysis.curves.curve import Path
from analysis.findings import RefusalError
from analysis.laws.additive import Array

FORGOTTEN = "log (1 - lambda)"


@dataclass(frozen=True)
class CurveLaw:
    """A law with its coordinates; positive constants are fitted as logarithms."""

    name: str
    formula: str
    source: str
    coordinates: tuple[str, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    evaluate: Callable[[Path, Array], tuple[Array, Array]]
    """Losses (rows,) at coordinates (k,), and their derivatives (rows, k)."""
    starts: tuple[tuple[float, float], ...]
    """Between what each coordinate's starts are drawn; L0's are shares of the least loss."""
    beliefs: tuple[tuple[str, float, float], ...] = ()
    """Coordinates of which something is known beforehand: name, mean, standard deviation."""
    steadied: str | None = None
    """A coordinate that few curves hardly tell from the believed ones: fits hold it near what these beliefs make it."""

    def holding(self, values: Mapping[str, float]) -> "CurveLaw":
        """The law of the other coordinates, these held at values."""
        free = [place for place, name in enumerate(self.coordinates) if name not in values]
        whole = np.array([values.get(name, 0.0) for name in self.coordinates])

        def evaluate(path: Path, theta: Array) -> tuple[Array, Array]:
            at = whole.copy()
            at[free] = theta
            loss, slopes = self.evaluate(path, at)
            return loss, slopes[:, free]

        return replace(
            self,
            coordinates=tuple(self.coordinates[place] for place in free),
            lower=tuple(self.lower[place] for place in free),
            upper=tuple(self.upper[place] for place in free),
            starts=tuple(self.starts[place] for place in free),
            evaluate=evaluate,
            beliefs=tuple(belief for belief in self.beliefs if belief[0] not in values),
        )

    def parameters(self, theta: Array) -> dict[str, float]:
        """Constants by their names in the formula."""
        found = {}
        for name, value in zip(self.coordinates, theta, strict=True):
            if name == FORGOTTEN:
                found["lambda"] = float(-np.expm1(value))
            else:
                found[name.removeprefix("log ")] = float(np.exp(value)) if name.startswith("log ") else float(value)
        return found


def _base(path: Path, theta: Array) -> tuple[Array, Array]:
    """L0 + A S^-alpha, and derivatives by (L0, log A, alpha) in the first three of k columns."""
    floor, log_a, alpha = theta[:3]
    log_sums = np.log(path.sums)
    falling = np.exp(log_a - alpha * log_sums)
    slopes = np.zeros((len(path.steps), len(theta)))
    slopes[:, 0], slopes[:, 1], slopes[:, 2] = 1.0, falling, -falling * log_sums
    return floor + falling, slopes


def _multi_power(path: Path, theta: Array) -> tuple[Array, Array]:
    loss, slopes = _base(path, theta)
    log_b, log_c, beta, gamma = theta[3:]
    inner = np.exp(log_c - gamma * path.log_rate) * path.since
    log_outer = np.log1p(inner)
    left = np.exp(-beta * log_outer)
    by_inner = beta * left * inner / (1 + inner)
    size = np.exp(log_b)
    gained = size * path.total(1 - left)
    slopes[:, 3] = -gained
    slopes[:, 4] = -size * path.total(by_inner)
    slopes[:, 5] = -size * path.total(left * log_outer)
    slopes[:, 6] = size * path.total(by_inner * path.log_rate)
    return loss - gained, slopes


def _annealing(path: Path, theta: Array) -> tuple[Array, Array]:
    loss, slopes = _base(path, theta)
    size, forgotten = np.exp(theta[3]), np.exp(theta[4])
    log_kept = np.log1p(-forgotten)
    kept = np.exp(path.steps_since * log_kept)
    area = path.total((1 - kept) / forgotten)
    slopes[:, 3] = -size * area
    by_forgotten = -(1 - kept) / forgotten + path.steps_since * np.exp((path.steps_since - 1) * log_kept)
    slopes[:, 4] = -size * path.total(by_forgotten)
    return loss - size * area, slopes


_FLOOR = (0.5, 1.0)
MULTI_POWER = CurveLaw(
    "multi-power",
    "L0 + A S^-alpha - B sum_k (eta_{k-1} - eta_k) (1 - (1 + C eta_k^-gamma S_k)^-beta)",
    "Luo et al. 2025, arXiv 2503.12811",
    ("L0", "log A", "alpha", "log B", "log C", "beta", "gamma"),
    (0.0, -12.0, 0.02, -12.0, -12.0, 0.02, -1.0),
    (20.0, 12.0, 3.0, 14.0, 12.0, 5.0, 3.0),
    _multi_power,
    (_FLOOR, (-1.5, 1.0), (0.2, 1.0), (3.0, 7.0), (-0.5, 2.0), (0.3, 0.9), (0.3, 0.9)),
    # What the paper's fits to curves of two sizes came to. A few curves hardly tell these three from each other.
    (("log C", float(np.log(2.1)), 0.5), ("beta", 0.6, 0.1), ("gamma", 0.65, 0.1)),
    steadied="log B",
)
ANNEALING = CurveLaw(
    "annealing",
    "L0 + A S^-alpha - C sum_{i<=t} sum_{k<=i} (eta_{k-1} - eta_k) lambda^(i-k)",
    "Tissue et al. 2024, arXiv 2408.11029",
    ("L0", "log A", "alpha", "log C", FORGOTTEN),
    (0.0, -12.0, 0.02, -12.0, -12.0),
    (20.0, 12.0, 3.0, 12.0, -0.5),
    _annealing,
    (_FLOOR, (-1.5, 1.0), (0.2, 1.0), (-2.0, 1.5), (-8.0, -4.0)),
)
LAWS = {law.name: law for law in (MULTI_POWER, ANNEALING)}


def find(name: str) -> CurveLaw:
    """The law of a name. RefusalError names those that there are."""
    if name not in LAWS:
        raise RefusalError("unknown-form", f"--form {name}: laws of curves are {', '.join(LAWS)}")
    return LAWS[name]
