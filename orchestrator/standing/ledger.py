"""What a sweep planned, spent, wasted and saved: in tokens, exact FLOPs and device-hours.

Derived from the run directories each time, never kept in a process. A step counts as spent each time it is executed;
what an attempt did beyond the checkpoint that the next one continued from is wasted. Steps of a killed attempt are
known up to its last row of metrics.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from xlstm.run.directory import RunDirectory
from xlstm.run.records import State


@dataclass(frozen=True)
class Amount:
    """Work in three units."""

    tokens: int = 0
    flops: float = 0.0
    device_hours: float = 0.0

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(self.tokens + other.tokens, self.flops + other.flops, self.device_hours + other.device_hours)


@dataclass(frozen=True)
class Ledger:
    """The account of a run or a sweep."""

    planned: Amount = Amount()
    """What the runs cost trained alone and undisturbed; device-hours as the plan estimates them."""
    spent: Amount = Amount()
    wasted: Amount = Amount()
    saved: Amount = Amount()
    """What runs took over from trunks instead of training it again."""
    pruned: Amount = Amount()
    """What runs did not train any more that were pruned; device-hours as the plan estimates them."""

    def __add__(self, other: "Ledger") -> "Ledger":
        return Ledger(
            self.planned + other.planned,
            self.spent + other.spent,
            self.wasted + other.wasted,
            self.saved + other.saved,
            self.pruned + other.pruned,
        )

    def document(self) -> dict[str, Any]:
        """Plain values; `pruned` where runs were."""
        return {name: amount for name, amount in asdict(self).items() if name != "pruned" or self.pruned.tokens}


@dataclass(frozen=True)
class Attempt:
    """Steps that one attempt executed, and for how long it held how many devices."""

    first: int
    last: int
    device_hours: float
    begun: bool = True
    """Whether it said where it starts; one that loads, or was killed while it did, has not."""


def account(run: RunDirectory, planned: Mapping[str, Any]) -> Ledger:
    """The ledger of one run; `planned` is its row of the plan."""
    per_step_tokens = planned["batch_tokens"]
    per_step_flops = planned["flops"]["exact"] / planned["steps"]
    attempts = attempts_of(run)
    # Each attempt keeps what lies before the place where the next one starts; the last one that began keeps all it did.
    wasted_steps, wasted_hours = 0, 0.0
    for index, attempt in enumerate(attempts):
        kept_to = next((later.first for later in attempts[index + 1 :] if later.begun), None)
        if kept_to is None:
            break
        lost = max(0, attempt.last - max(kept_to, attempt.first))
        executed = attempt.last - attempt.first
        wasted_steps += lost
        wasted_hours += attempt.device_hours * (lost / executed if executed else 1.0)
    spent_steps = sum(attempt.last - attempt.first for attempt in attempts)
    hours = sum(attempt.device_hours for attempt in attempts)
    saved_steps = attempts[0].first if attempts else 0

    def amount(steps: int, device_hours: float) -> Amount:
        return Amount(steps * per_step_tokens, steps * per_step_flops, device_hours)

    left = planned["steps"] - max(attempt.last for attempt in attempts) if attempts else planned["steps"]
    pruned = left if run.status().state is State.PRUNED else 0
    alone = planned["device_hours"] / max(1e-12, 1 - saved_steps / planned["steps"])
    return Ledger(
        planned=amount(planned["steps"], planned["device_hours"]),
        spent=amount(spent_steps, hours),
        wasted=amount(wasted_steps, wasted_hours),
        saved=amount(saved_steps, alone - planned["device_hours"] if saved_steps else 0.0),
        pruned=amount(pruned, alone * pruned / planned["steps"]),
    )


def attempts_of(run: RunDirectory) -> list[Attempt]:
    """The attempts that were launched, in order. A run that finished at once is read without its metrics."""
    status, result = run.status(), run.known_result()
    if status.attempt == 1 and result is not None and (launch := run.launch(1)) is not None:
        first = launch.fork.step if launch.fork else 0
        return [Attempt(first, result.steps, result.device_hours)]
    rows = run.history()
    return [attempt for number in range(1, status.attempt + 1) if (attempt := _attempt(run, number, rows)) is not None]


def _attempt(run: RunDirectory, number: int, rows: Iterable[Mapping[str, Any]]) -> Attempt | None:
    launch = run.launch(number)
    if launch is None:
        return None
    own = [row for row in rows if row.get("attempt") == number]
    first = next((row["step"] for row in own if row.get("event") == "resume"), 0)
    steps = [row["step"] for row in own if "event" not in row]
    verdict = run.verdict(number)
    if verdict is not None and verdict.step is not None and verdict.state is not State.FAILED:
        steps.append(verdict.step)
    hours = run.attempt_seconds(number) * launch.execution.devices_taken / 3600
    return Attempt(first, max([first, *steps]), hours, begun=number == 1 or bool(own) or bool(steps))
