"""Ends runs of a search, while they train, that another one beats by the law of curves (`prune` of a sweep)."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING

from orchestrator.errors import InputError
from orchestrator.planning.plan import Plan, RunPlan
from xlstm.run.identity import canonical
from xlstm.run.records import Metric, State

if TYPE_CHECKING:
    from analysis.curves.curve import Curve
    from analysis.curves.prune import Loser

LOOK_SECONDS = 0.5
"""Between two looks at what was validated."""
POINTS = 400
"""Of a rate's path, beside the steps at which it bends."""


def pruner(plan: Plan) -> Callable[[], Mapping[str, str]]:
    """Says which runs of a plan are to be pruned, each with the reason; nothing where the sweep does not say `prune`.

    InputError where no run of the sweep is validated while it trains.
    """
    risk = plan.sweep.file.prune
    if risk is None:
        return dict
    if all(run.spec.execution.validate_every is None for run in plan.runs):
        raise InputError("prune: no run is validated while it trains; say `validate_every` under `resources`")
    from analysis.curves.prune import losers  # now, as it may take long while runs train

    return Pruner(plan, risk, losers)


def refuse(plan: Plan, engine: str) -> None:
    """InputError where runs of a plan are to be pruned, on an engine on which nobody watches them."""
    if plan.sweep.file.prune is not None:
        raise InputError(f"prune: nobody watches runs on {engine}; leave it out (--set prune=null)")


@dataclass
class Pruner:
    """Compares the runs of each point of a search whenever one of them was validated."""

    plan: Plan
    risk: float
    """Chance, for each point, that its best run is pruned, if the law holds."""
    losers: "Callable[[Sequence[Curve], float], list[Loser]]"
    """Which runs have less than a chance to win: `analysis.curves.prune`."""
    _read: dict[str, int] = field(default_factory=dict)
    """How many bytes of each run's metrics were looked at."""
    _next: float = 0.0

    @cached_property
    def _cells(self) -> list[list[RunPlan]]:
        """Runs that differ in the searched axis alone."""

        def others(run: RunPlan) -> str:
            axis = self.plan.sweep.file.best_of
            return canonical({name: value for name, value in run.sweep_run.point.items() if name != axis})

        return [list(runs) for _, runs in groupby(sorted(self.plan.runs, key=others), others)]

    def __call__(self) -> dict[str, str]:
        """The runs that cannot win, by what was validated since the last look; a trunk of others is none of them."""
        if time.monotonic() < self._next:
            return {}
        self._next = time.monotonic() + LOOK_SECONDS
        return {run_id: why for cell in self._cells for run_id, why in self._losers(cell).items()}

    def _losers(self, cell: Sequence[RunPlan]) -> dict[str, str]:
        new = [self._is_new(run) for run in cell]
        if not any(new):
            return {}
        states = {run.run_id: self.plan.workspace.run(run.run_id).status().state for run in cell}
        held = [run for run in cell if states[run.run_id] in (State.RUNNING, State.PREEMPTED, State.COMPLETED)]
        curves = [curve for run in held if (curve := self._curve(run)) is not None]
        looks = max(
            run.spec.physics.steps // (run.spec.execution.validate_every or run.spec.physics.steps) for run in held
        )
        risk = self.risk / max(1, len(cell) - 1) / looks
        may_end = {run.run_id for run in cell if states[run.run_id] is State.RUNNING and not run.share.checkpoint_at}
        return {
            one.run: f"cannot win: it would end below {one.better} with a chance of {one.chance:.1g}"
            for one in self.losers(curves, risk)
            if one.run in may_end
        }

    def _is_new(self, run: RunPlan) -> bool:
        """Whether the run was validated since it was looked at last."""
        begin = self._read.get(run.run_id, 0)
        try:
            with open(self.plan.workspace.run(run.run_id).metrics_file, "rb") as file:
                file.seek(begin)
                lines = file.read().rpartition(b"\n")[0]
        except OSError:
            return False
        self._read[run.run_id] = begin + len(lines)
        return Metric.VALIDATION_LOSS.encode() in lines

    def _curve(self, run: RunPlan) -> "Curve | None":
        """What was validated of the run so far, and its rate until its end; None where nothing was."""
        import numpy as np

        from analysis.curves.curve import Curve
        from xlstm.training.optimization.schedule import learning_rate

        rows = self.plan.workspace.run(run.run_id).metrics()
        losses = {row["step"]: row[Metric.VALIDATION_LOSS] for row in rows if row.get(Metric.VALIDATION_LOSS)}
        losses.pop(0, None)
        if not losses:
            return None
        physics = run.spec.physics
        warm = min(physics.schedule.warmup_steps, physics.steps - 1)
        bends = [max(warm, 1), max(physics.undecided_steps, 1), physics.steps]
        at = np.unique(np.append(np.linspace(max(warm, 1), physics.steps, POINTS).round(), bends))
        rates = np.array([learning_rate(physics, int(step) - 1) for step in at])
        steps = sorted(losses)
        return Curve(
            run.run_id, np.array(steps, float), np.array([losses[step] for step in steps]), at, rates, float(warm)
        )
