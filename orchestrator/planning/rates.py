"""Learning rates by a law: taken once from a named fit, kept in the sweep's plan, so that ids do not drift."""

import math
import time
from functools import cached_property
from typing import Any, TypeAlias

from xlstm.quantities import compact, nearest
from xlstm.run.directory import Workspace
from xlstm.run.json_files import DamagedFileError, read_record
from xlstm.run.rates.law import RateLaw, RateLaws

WIDEST = 100.0
"""Upper over lower end of an interval from which a law leaves the rate open."""

_Asked: TypeAlias = tuple[str, str, int, int]
_ASKED = ("law", "family", "parameters", "tokens")
"""What a rate is asked for, as the keys of its row in the plan."""


class RatesByLaw:
    """The rates of one sweep: those its plan keeps, and of new models and budgets those of the law as it stands."""

    def __init__(self, workspace: Workspace, sweep: str, *, refresh: bool = False) -> None:
        """With `refresh`, nothing is kept."""
        self._workspace, self._sweep, self._refresh = workspace, sweep, refresh
        self.taken: dict[_Asked, dict[str, Any]] = {}
        """Every rate that was asked for, with its source, as the plan keeps it."""
        self._laws: dict[str, dict[str, RateLaw]] = {}

    def __call__(self, name: str, family: str, parameters: int, tokens: int) -> float:
        """See `RateByLaw`. ValueError where there is no such fit, or its interval is unbounded."""
        asked = (name, family, parameters, tokens)
        if asked not in self.taken:
            self.taken[asked] = self._kept.get(asked) or (
                dict(zip(_ASKED, asked, strict=True)) | self._by_law(name, family, parameters, tokens)
            )
        return float(self.taken[asked]["learning_rate"])

    @cached_property
    def _kept(self) -> dict[_Asked, dict[str, Any]]:
        if self._refresh:
            return {}
        try:
            plan = self._workspace.sweep(self._sweep).known_plan() or {}
        except DamagedFileError as error:
            raise ValueError(f"the rates that were taken are not known: {error}; or --refresh-law") from None
        return {tuple(row[key] for key in _ASKED): row for row in plan.get("rates_by_law", [])}  # type: ignore[misc]

    def _by_law(self, name: str, family: str, parameters: int, tokens: int) -> dict[str, Any]:
        path = self._workspace.sweep(name).rate_laws
        if name not in self._laws:
            again = f"scaling fit {name} --hyperparameters"
            kept = read_record(path, RateLaws, again)
            if kept is None:
                fitted = [one for one in self._workspace.submitted() if self._workspace.sweep(one).rate_laws.is_file()]
                hint = nearest(name, fitted) if fitted else "no sweep of this workspace has one"
                raise ValueError(f"`law`: {name} has no law of the best learning rate; {hint}: {again}")
            self._laws[name] = {one.family: one for one in kept.laws}
        laws = self._laws[name]
        if family not in laws:
            raise ValueError(f"`law`: the law of {name} says nothing of {family}; {nearest(family, laws)}")
        rate, low, high = laws[family].at(parameters, tokens)
        if not (0 < low <= high and math.isfinite(high) and high / low <= WIDEST):
            raise ValueError(
                f"`law`: the law of {name} leaves the best rate of {family} with {compact(parameters)} parameters and "
                f"{compact(tokens)} tokens open: its interval is unbounded, [{low:.3g}, {high:.3g}]"
            )
        return {
            "learning_rate": float(f"{rate:.4g}"),
            "interval": [low, high],
            "formula": laws[family].law,
            "source": str(path.relative_to(self._workspace.root)),
            "taken": time.time(),
        }
