"""Approach 2 beside approach 3: the exponents of N* and D* by IsoFLOP profiles, and by the law, on the same runs.

They ask different things of the same losses: a profile trusts its own few sizes, a law its form. Where they disagree by
more than their intervals, one of them is wrong, and nothing in either says which.
"""

from dataclasses import dataclass, replace
from math import hypot

from analysis.decisions import allocation, isoflop
from analysis.findings import FitWarning, RefusalError
from analysis.fitting.fit import Fit


@dataclass(frozen=True)
class Agreement:
    """Both exponents by both approaches, with intervals at 0.95, over the budgets whose profiles have minima."""

    profiles: isoflop.Frontier
    law: dict[str, tuple[float, tuple[float, float]]]
    """Of `parameters` and `tokens`, by the law, between the smallest and the largest of those budgets."""

    @property
    def difference(self) -> float:
        """Of the exponents of N*, over what both intervals' half widths allow for together; beyond 1 they differ."""
        exponent, (low, high) = self.law["parameters"]
        least, most = self.profiles.interval
        allowed = hypot((high - low) / 2, (most - least) / 2)
        return abs(exponent - self.profiles.exponent) / max(allowed, 1e-9)


def compare(fitted: Fit) -> Agreement:
    """Both approaches on the runs of a fit. RefusalError where the runs are no profiles, or the form splits nothing."""
    profiles = isoflop.frontier(fitted.used)
    budgets = [profile.flops for profile in profiles.profiles if profile.optimum is not None]
    return Agreement(profiles, allocation.exponents_between(fitted, min(budgets), max(budgets)))


def checked(fitted: Fit) -> Fit:
    """The fit, with a warning where its law and the IsoFLOP profiles of its runs disagree."""
    try:
        found = compare(fitted)
    except RefusalError:
        return fitted
    if found.difference <= 1:
        return fitted
    exponent, (low, high) = found.law["parameters"]
    least, most = found.profiles.interval
    told = (
        f"{fitted.family}: N* goes as C^{exponent:.3f} [{low:.3f}, {high:.3f}] by the law and as "
        f"C^{found.profiles.exponent:.3f} [{least:.3f}, {most:.3f}] by IsoFLOP profiles: they disagree by more than "
        "their intervals"
    )
    return replace(fitted, warnings=(*fitted.warnings, FitWarning("approaches-disagree", told)))
