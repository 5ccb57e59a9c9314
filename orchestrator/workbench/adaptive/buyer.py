"""Buys runs of a pool while others train, and says of each why.

Every decision is a line of `decisions.jsonl` in the folder of the sweep before anything follows from it. What is bought
and what was seen is read from there and from the run directories, so that whoever goes on after a kill decides as it
would have been decided, and trains nothing twice.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from analysis.decisions.pool import Pick
from analysis.findings import RefusalError
from orchestrator.planning.plan import Plan
from orchestrator.planning.pool import Offer, Pool, bought_shares
from orchestrator.planning.sharing import Share
from orchestrator.standing.decisions import CONTRADICTION, contradictions, sentence
from orchestrator.workbench.adaptive.laws import Laws
from sweeps.design import Design
from xlstm.run.executor import Executor, PlannedRun, is_settled
from xlstm.run.records import State
from xlstm.run.sweep_directory import Decision

if TYPE_CHECKING:
    from rich.console import Console

REASONS = {
    "reached": "every target is known as well as asked",
    "budget": "no run is within what is left of the budget",
    "worth": "no run within the budget promises to narrow a target by as much as it costs",
    "pool": "every run of the pool is bought",
    "law": "no form describes the runs that were seen",
    "cancelled": "a run was cancelled; submit again to go on",
}
"""Why nothing more is bought."""


@dataclass
class Buyer:
    """Decides which runs of a pool are carried out; a `submission.Choice`."""

    plan: Plan
    executor: Executor
    console: "Console"
    design: Design
    queues: bool = False
    """Whether runs are handed to a queue that has them wait for their trunks."""
    stopped: str | None = None
    """Why nothing more is bought, by its word; None while something may be."""
    _rows: list[dict[str, Any]] = field(default_factory=list)
    _found: dict[str, Share] = field(default_factory=dict)
    """Runs of the pool that were trained before and not bought."""
    _nothing_at: tuple[int, int] | None = None
    """How many decisions and runs in training there were when there was nothing to buy."""

    @cached_property
    def laws(self) -> Laws:
        """What the runs say."""
        return Laws(self.plan, self.design)

    @cached_property
    def _pool(self) -> Pool:
        return Pool({run.run_id: run.spec for run in self.plan.runs}, self.plan.workspace)

    def begin(self) -> list[PlannedRun]:
        """The runs that were bought and have not ended for good."""
        self._rows = self.plan.directory.decisions()
        bought = bought_shares(self._rows)
        self._found = {
            run.run_id: Share() for run in self.plan.runs if run.run_id not in bought and self._is_complete(run.run_id)
        }
        return [
            PlannedRun(self._pool.specs[run_id], shared.fork, shared.checkpoint_at)
            for run_id, shared in bought.items()
            if run_id in self._pool.specs and not is_settled(self.plan.workspace.run(run_id).status())
        ]

    def __call__(self) -> list[PlannedRun]:
        """Note what has ended, and buy a run where a device is idle."""
        self._observe()
        training = self.training
        if (len(self._rows), len(training)) == self._nothing_at:
            return []
        open_runs = self._pool.specs.keys() - self._taken.keys()
        full = self.design.at_once is not None and len(training) >= self.design.at_once
        if open_runs and (full or not self._has_room([self._pool.specs[run_id] for run_id in sorted(open_runs)])):
            return []
        offer = self._decide(training)
        if offer is None:
            self._nothing_at = len(self._rows), len(training)
            return []
        return [PlannedRun(offer.spec, offer.share.fork, offer.share.checkpoint_at)]

    def _decided(self, kind: Decision) -> list[dict[str, Any]]:
        """The decisions of one kind about runs that are still of the pool."""
        return [row for row in self._rows if row["decision"] == kind and row["run_id"] in self._pool.specs]

    @property
    def _bought(self) -> list[dict[str, Any]]:
        return self._decided(Decision.BOUGHT)

    @property
    def _taken(self) -> dict[str, Share]:
        return {**self._found, **bought_shares(self._bought)}

    @property
    def _seen(self) -> list[str]:
        return [row["run_id"] for row in self._decided(Decision.SEEN)]

    @property
    def training(self) -> list[str]:
        """Runs that were bought and may still show a loss."""
        seen = set(self._seen)
        return [row["run_id"] for row in self._bought if row["run_id"] not in seen and not self._is_lost(row["run_id"])]

    def _is_lost(self, run_id: str) -> bool:
        status = self.plan.workspace.run(run_id).status()
        return is_settled(status) or status.state is State.CANCELLED

    def _is_complete(self, run_id: str) -> bool:
        run = self.plan.workspace.run(run_id)
        return run.known_result() is not None and run.is_complete(self._pool.specs[run_id])

    def _has_room(self, specs: Sequence[Any]) -> bool:
        """Whether a device is idle for one of the runs."""
        return any(map(self.executor.has_room, {spec.execution.ranks: spec for spec in specs}.values()))

    def _decide(self, training: Sequence[str]) -> Offer | None:
        """Buy one run, or say why none is bought; None while what is being trained may change that, too."""
        taken = self._taken
        offers = self._pool.offers(taken, taken.keys() - set(training))
        if not self.queues:
            offers = [offer for offer in offers if self._may_start(offer)]
        found = self._choose(offers, training)
        if not isinstance(found, str):
            self._buy(*found, training)
            return found[0]
        if training:
            return None
        self.stopped = found
        last = self._rows[-1] if self._rows else {}
        if last.get("decision") != Decision.STOPPED or last["why"] != found:
            known = {family: self.laws.about(family, self._seen) for family in self.laws.families}
            self._say({"decision": Decision.STOPPED, "why": found, "reason": self._reason(found), "families": known})
        return None

    def _may_start(self, offer: Offer) -> bool:
        """Whether a run would not wait for a trunk that is being trained, while a device is idle."""
        fork = offer.share.fork
        return fork is None or self.plan.workspace.run(fork.run_id).has_checkpoint(fork.step)

    def _choose(self, offers: Sequence[Offer], training: Sequence[str]) -> tuple[Offer, Pick] | str:
        """What to buy for the family whose target is known least; why nothing, by its word."""
        if contradictions(self._rows):
            return CONTRADICTION
        if any(self.plan.workspace.run(row["run_id"]).status().state is State.CANCELLED for row in self._bought):
            return "cancelled"
        widths = {family: self.laws.width(family, self._seen) for family in self.laws.families}
        wide = [family for family, width in widths.items() if width > (self.design.until or 0.0)]
        whys = []
        for family in sorted(wide, key=lambda one: -widths[one]):
            own = [offer for offer in offers if self.laws.family(offer.spec.run_id) == family]
            run_ids, costs = [offer.spec.run_id for offer in own], [self._cost(offer)[self._unit] for offer in own]
            try:
                found = self.laws.pick(family, self._seen, training, run_ids, costs, self._left, self._spent(family))
            except RefusalError:
                whys.append("law")
                continue
            if isinstance(found, Pick):
                return own[found.row], found
            whys.append(found)
        return next((why for why in ("law", "worth", "budget", "pool", "wait") if why in whys), "reached")

    def _buy(self, offer: Offer, pick: Pick, training: Sequence[str]) -> None:
        run_id, cost, fork = offer.spec.run_id, self._cost(offer), offer.share.fork
        family = self.laws.family(run_id)
        self._say(
            {
                "decision": Decision.BOUGHT,
                "run_id": run_id,
                "family": family,
                "why": pick.why,
                "promised": pick.worth,
                "cost": cost,
                "forks_from": fork.model_dump() if fork else None,
                "checkpoint_at": list(offer.share.checkpoint_at),
                "training": list(training),
                **self.laws.about(family, self._seen),
            }
        )
        self.plan = replace(
            self.plan,
            runs=tuple(
                replace(run, share=offer.share, estimate=replace(run.estimate, device_hours=cost["device_hours"]))
                if run.run_id == run_id
                else run
                for run in self.plan.runs
            ),
        )
        self.plan.save_document()

    def _observe(self) -> None:
        """Add a row for each run that is complete and has none."""
        seen = self._seen
        for run_id in [run_id for run_id in self._taken if run_id not in seen]:
            if not self._is_complete(run_id):
                continue
            result = self.plan.workspace.run(run_id).known_result()
            assert result is not None
            family, loss = self.laws.family(run_id), result.validation.loss
            row = {"decision": Decision.SEEN, "run_id": run_id, "family": family, "loss": loss}
            if run_id in self._found:
                self._say(row)
            else:
                bounds = self.laws.bounds(run_id, self._seen)
                row["agrees_within"] = bounds
                row["contradicts"] = bounds is not None and not bounds[0] <= loss <= bounds[1]
                self._say(row | self.laws.about(family, [*self._seen, run_id]))

    def _say(self, row: dict[str, Any]) -> None:
        row = {"decision": row["decision"], "time": time.time(), **row}
        self.plan.directory.decide(row)
        self._rows.append(row)
        self.console.print(sentence(row), highlight=False, soft_wrap=True, style="bold")

    def _reason(self, why: str) -> str:
        if why != CONTRADICTION:
            return REASONS[why]
        against = contradictions(self._rows)
        return "; ".join(
            f"{row['run_id']} came to {row['loss']:.4f}, where the law before it allows "
            f"{row['agrees_within'][0]:.4f} to {row['agrees_within'][1]:.4f}"
            for row in self._rows
            if row["decision"] == Decision.SEEN and row["run_id"] in against
        )

    @property
    def _unit(self) -> str:
        budget = self.design.budget
        return "device_hours" if budget is not None and budget.device_hours is not None else "flops"

    @property
    def _left(self) -> float:
        """Of the budget, in its unit."""
        budget = self.design.budget
        limit = math.inf if budget is None else getattr(budget, self._unit)
        return float(limit - sum(row["cost"][self._unit] for row in self._bought))

    def _spent(self, family: str) -> float | None:
        """What the family's runs have cost, those trained before as if alone; None where it is said how narrow
        intervals are to be, or how much may be spent."""
        if self.design.until is not None or self.design.budget is not None:
            return None
        bought = sum(row["cost"][self._unit] for row in self._bought if row["family"] == family)
        found = [self.laws.runs[run_id] for run_id in self._found if self.laws.family(run_id) == family]
        return float(bought + sum(run.flops["exact"] if self._unit == "flops" else run.device_hours for run in found))

    def _cost(self, offer: Offer) -> dict[str, float]:
        """Of the part that the run trains itself."""
        run = self.laws.runs[offer.spec.run_id]
        return {"flops": run.flops["exact"] * offer.own_part, "device_hours": run.device_hours * offer.own_part}
