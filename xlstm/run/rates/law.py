"""Laws of the best learning rate as a fit keeps them, and what they say at (N, D). Imports without torch."""

import math
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LEVEL = 0.95


class RateLaw(BaseModel):
    """best rate = K N^p D^q of one family, N all parameters and D tokens; with the draws that its intervals come of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str
    law: str
    """With its constants, for people."""
    varying: tuple[str, ...]
    """Which of N and D it depends on."""
    center: tuple[float, float]
    """Mean log N and log D of what was fitted."""
    draws: tuple[tuple[float, ...], ...]
    """Log rate at the center and the exponents: of what was measured, then of each draw."""

    def drawn(self, parameters: float, tokens: float) -> "NDArray[np.float64]":
        """The best rate at (N, D): of what was measured, then of each draw."""
        import numpy as np

        about = {"N": math.log(parameters) - self.center[0], "D": math.log(tokens) - self.center[1]}
        return np.asarray(np.exp(np.array(self.draws) @ np.array([1.0, *(about[name] for name in self.varying)])))

    def at(self, parameters: float, tokens: float) -> tuple[float, float, float]:
        """The best rate at (N, D), and the bounds of its interval at LEVEL."""
        import numpy as np

        drawn = self.drawn(parameters, tokens)
        low, high = np.quantile(drawn[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return float(drawn[0]), float(low), float(high)


class RateLaws(BaseModel):
    """`best-learning_rate.json` of a fit: a law for each family."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    laws: tuple[RateLaw, ...]
