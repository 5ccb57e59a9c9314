"""What is known about a fit beside its law: of the optimum that was found, and of the dear runs it was tried on."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Certificate:
    """What is known about the optimum that was found."""

    converged: bool
    agreeing_starts: float
    """Share of starts that ended at the same optimum."""
    scaled_gradient: float
    """Largest reduction of the objective, by its root, predicted for a first-order step of one curvature unit."""
    bounds_hit: tuple[str, ...]
    condition_number: float
    """The weighted least-squares problem's at the optimum, columns scaled: how far the data tell parameters apart."""
    converged_draws: float
    """Share of bootstrap draws that converged; 1 where none were asked for."""


@dataclass(frozen=True)
class Rollout:
    """How a form that was fitted to the cheap runs predicts the dear ones."""

    runs: int
    """How many dear runs."""
    error: float
    """Root mean square of their relative errors."""
    outside: int
    """How many lie outside the interval for a new run."""
    widening: float
    """How many times wider the interval had to be; 1 where no more lie outside than chance allows."""
