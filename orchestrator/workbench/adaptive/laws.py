"""What the runs of a pool say that were seen: laws, the targets' intervals, and which run to buy for them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from analysis.data import quality, runs
from analysis.decisions import next_run, pool
from analysis.fitting.fit import Fit
from orchestrator.planning.plan import Plan, RunPlan
from sweeps.design import Design

_NUMBERS = ("parameters", "tokens", "flops")


@dataclass(frozen=True)
class Laws:
    """The laws of a pool's families, each of the runs of it that were seen."""

    plan: Plan
    design: Design
    _known: dict[tuple[str, ...], Fit | None] = field(default_factory=dict)
    """By the runs they were fitted to."""
    _frames: dict[tuple[str, ...], pl.DataFrame] = field(default_factory=dict)
    """By the runs that were asked for: what was seen of a run stays."""

    @cached_property
    def runs(self) -> dict[str, RunPlan]:
        """The runs of the pool by their ids, as they cost trained alone."""
        return {run.run_id: run for run in self.plan.runs}

    @cached_property
    def families(self) -> list[str]:
        return list(dict.fromkeys(map(self.family, self.runs)))

    def family(self, run_id: str) -> str:
        return str(self.runs[run_id].sweep_run.point["model"])

    @property
    def targets(self) -> list[tuple[float, float]]:
        """N and D of each."""
        return [(float(one.parameters), float(one.tokens)) for one in self.design.target]

    def about(self, family: str, seen: Sequence[str]) -> dict[str, Any]:
        """The law of a family, by its form and its parameters, and what it says of the targets."""
        law = self._law(family, seen)
        if law is None:
            return {"form": None, "parameters": None, "targets": []}
        targets = [pool.predicted(law, target) for target in self.targets]
        return {"form": law.form.name, "parameters": law.parameters, "runs": law.used.height, "targets": targets}

    def width(self, family: str, seen: Sequence[str]) -> float:
        """Half the width of the widest target's interval over its loss; infinite where the law is not known yet."""
        return pool.width(self._law(family, seen), self.targets)

    def bounds(self, run_id: str, seen: Sequence[str]) -> tuple[float, float] | None:
        """Bounds within which a run agrees with the law of those seen before it; None where there is none.

        Nor are there any for a run that is not fitted.
        """
        law, run = self._law(self.family(run_id), seen), self._frame(self.family(run_id), [run_id])
        if law is None or not run.height:
            return None
        return pool.expected(law, run["parameters"][0], run["tokens"][0], len(self.runs))

    def pick(
        self,
        family: str,
        seen: Sequence[str],
        training: Sequence[str],
        offered: Sequence[str],
        costs: Sequence[float],
        left: float,
        spent: float | None,
    ) -> pool.Pick | str:
        """Which of the runs that are offered to buy, by `pool.pick`; RefusalError where no form describes them."""
        chosen = pool.forms_named(self.design.form)
        size = max(len(form.coordinates) for form in chosen)
        rows = self._frame(family, seen)
        return pool.pick(
            rows.select("run_id", *(pl.col(name).cast(pl.Float64) for name in (*_NUMBERS, "loss"))),
            self._planned([run_id for run_id in training if self.family(run_id) == family]),
            self._planned(offered),
            self.targets,
            np.array(costs),
            left,
            chosen,
            max(self.design.first or size + 2, size + 1),
            self.design.seed + 1000 * rows.height + len(training),
            spent,
            least=0.0 if self.design.until is None and self.design.budget is not None else next_run.WORTH,
        )

    def _law(self, family: str, seen: Sequence[str]) -> Fit | None:
        rows = self._frame(family, seen)
        key = tuple(rows["run_id"])
        if key not in self._known:
            self._known[key] = pool.law(rows, self.design.form, self.design.seed)
        return self._known[key]

    def _frame(self, family: str, run_ids: Sequence[str]) -> pl.DataFrame:
        """Rows of a family's runs that are fitted, as `scaling fit` reads them, by their ids."""
        own = tuple(sorted(run_id for run_id in run_ids if self.family(run_id) == family))
        if own not in self._frames:
            frame = runs.read(self.plan.name, workspace=self.plan.workspace).frame
            self._frames[own] = quality.usable(frame.filter(pl.col("run_id").is_in(own))).sort("run_id")
        return self._frames[own]

    def _planned(self, run_ids: Sequence[str]) -> pl.DataFrame:
        """Runs of the pool by the numbers of the plan."""
        rows = [
            (
                run_id,
                float((run := self.runs[run_id]).parameters.total),
                float(run.spec.physics.steps * run.spec.physics.batch_tokens),
                float(run.flops["exact"]),
            )
            for run_id in run_ids
        ]
        kinds = {"run_id": pl.String} | dict.fromkeys(_NUMBERS, pl.Float64)
        return pl.DataFrame(rows, schema=kinds, orient="row")
