"""Forms of scaling laws: how loss depends on parameters N and training tokens D."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

SMALLEST = math.exp(-30.0)
"""What stands for a coefficient of zero where its logarithm is stored: small beside any loss."""


@dataclass(frozen=True)
class AdditiveLaw:
    """L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, arXiv 2203.15556, equation 2)."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def predict(self, parameters: ArrayLike, tokens: ArrayLike) -> Array:
        """Loss in nats per token at N parameters and D tokens; broadcasts."""
        n, d = np.asarray(parameters, float), np.asarray(tokens, float)
        return self.E + self.A * n**-self.alpha + self.B * d**-self.beta

    @property
    def values(self) -> dict[str, float]:
        """The parameters by name."""
        return asdict(self)

    @property
    def parameters_exponent(self) -> float:
        """a of N* ~ C^a: the compute-optimal split under C = 6ND."""
        return self.beta / (self.alpha + self.beta)

    def compute_optimal(self, flops: ArrayLike) -> tuple[Array, Array]:
        """(N*, D*) that minimise the loss at C = 6ND (Hoffmann et al. 2022, equation 4), infinite for some."""
        c = np.asarray(flops, float)
        ratio = np.float64(self.alpha * self.A / (self.beta * self.B))
        with np.errstate(over="ignore"):
            g = ratio ** (1 / (self.alpha + self.beta))
        n = g * (c / 6) ** self.parameters_exponent
        return n, c / (6 * n)

    @classmethod
    def from_vector(cls, theta: Array) -> "AdditiveLaw":
        """From (log A, log B, log E, alpha, beta), the coordinates in which it is fitted."""
        a, b, e, alpha, beta = (float(x) for x in theta)
        return cls(E=math.exp(e), A=math.exp(a), B=math.exp(b), alpha=alpha, beta=beta)

    def to_vector(self) -> Array:
        """(log A, log B, log E, alpha, beta)."""
        logs = [math.log(max(coefficient, SMALLEST)) for coefficient in (self.A, self.B, self.E)]
        return np.array([*logs, self.alpha, self.beta])


def log_terms(coordinates: Iterable[Any], log_n: Any, log_d: Any) -> tuple[Any, Any, Any]:
    """Logarithms of A/N^alpha, B/D^beta and E, from (log A, log B, log E, alpha, beta); real or complex, broadcast."""
    log_a, log_b, log_e, alpha, beta = coordinates
    return log_a - alpha * log_n, log_b - beta * log_d, log_e
