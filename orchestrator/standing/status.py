"""How a sweep stands, read from its run directories at the moment of asking."""

import html
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.standing.ledger import Ledger, account
from orchestrator.standing.lookup import load_document
from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.json_files import refused
from xlstm.run.records import Metric, Result, State
from xlstm.run.sweep_directory import Decision


@dataclass(frozen=True)
class RunStanding:
    """One run of a sweep, as it stands."""

    planned: Mapping[str, Any]
    """Its row of the plan."""
    run: RunDirectory
    state: State
    reason: str
    attempts: int
    tokens: int
    """Trained and surviving."""
    loss: float | None
    """Of the last logged step."""
    result: Result | None
    ledger: Ledger

    @property
    def run_id(self) -> str:
        return self.run.run_id

    def document(self) -> dict[str, Any]:
        """The run as `scaling status --json` shows it."""
        validation = self.result.validation if self.result and self.state is State.COMPLETED else None
        return {
            "run_id": self.run_id,
            "model": self.planned["model"],
            "size": self.planned["size"],
            "seed": self.planned["seed"],
            "point": self.planned.get("point", {}),
            "state": self.state.value,
            "reason": self.reason,
            "attempts": self.attempts,
            "tokens": self.tokens,
            "tokens_planned": self.planned["tokens"],
            "loss": self.loss,
            "validation": validation
            and {
                "loss": validation.loss,
                "perplexity": validation.perplexity,
                "bits_per_byte": validation.bits_per_byte,
            },
            "quality": self.result.quality if self.result else [],
        }


@dataclass(frozen=True)
class SweepStanding:
    """A sweep, as it stands."""

    sweep: str
    runs: tuple[RunStanding, ...]
    decisions: tuple[Mapping[str, Any], ...] = ()
    """What an adaptive sweep decided, in order."""

    @property
    def is_over(self) -> bool:
        """Whether nothing of it is going to happen: each run has ended, or is one of a pool and is not bought."""
        if not self.decisions:
            return all(run.state.ended for run in self.runs)
        bought = {row["run_id"] for row in self.decisions if row["decision"] == Decision.BOUGHT}
        stopped = self.decisions[-1]["decision"] == Decision.STOPPED
        return stopped and all(run.state.ended for run in self.runs if run.run_id in bought)

    def __repr__(self) -> str:
        return f"<standing of {self.sweep}: {len(self.runs)} runs, {self.counted}>"

    @property
    def ledger(self) -> Ledger:
        return sum((run.ledger for run in self.runs), start=Ledger())

    @property
    def counts(self) -> Counter[State]:
        return Counter(run.state for run in self.runs)

    @property
    def counted(self) -> str:
        """In words, such as `7 completed, 2 running`."""
        return ", ".join(f"{count} {state.value.lower()}" for state, count in self.counts.items())

    def _repr_html_(self) -> str:
        rows = [run.document() for run in self.runs]
        shown = ("run_id", "state", "tokens", "tokens_planned", "attempts", "reason")
        cells = [[*(row[name] for name in shown), (row["validation"] or {}).get("loss", "")] for row in rows]
        body = "".join(f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in cells)
        head = "".join(f"<th>{name}</th>" for name in (*shown, "loss"))
        return f"<p>{html.escape(repr(self))}</p><table><tr>{head}</tr>{body}</table>"

    def document(self) -> dict[str, Any]:
        """The sweep as `scaling status --json` shows it."""
        return {
            "sweep": self.sweep,
            "runs": [run.document() for run in self.runs],
            "ledger": self.ledger.document(),
        } | ({"decisions": list(self.decisions)} if self.decisions else {})


@dataclass
class Lookout:
    """Looks at a submitted sweep again and again: what waits or has ended is read anew when its folder has changed."""

    workspace: Workspace
    sweep: str
    _plan: tuple[int, Mapping[str, Any]] | None = None
    _seen: dict[str, tuple[int, RunStanding]] = field(default_factory=dict)

    def __call__(self) -> SweepStanding:
        """How it stands now. SweepError for a name that was never submitted."""
        written = _changed(self.workspace.sweep(self.sweep).plan_file)
        if self._plan is None or self._plan[0] != written:
            self._plan = written, load_document(self.workspace, self.sweep)
        runs = tuple(map(self._stand, self._plan[1]["runs"]))
        return SweepStanding(self.sweep, runs, tuple(self.workspace.sweep(self.sweep).decisions()))

    def _stand(self, planned: Mapping[str, Any]) -> RunStanding:
        before, known = self._seen.get(planned["run_id"], (0, None))
        run = self.workspace.run(planned["run_id"]) if known is None else known.run
        changed = _changed(run.path)
        if known is None or known.planned is not planned or known.state is State.RUNNING or changed != before:
            known = stand(run, planned)
            self._seen[planned["run_id"]] = changed, known
        return known


def _changed(path: Path) -> int:
    """When a file, or which files a folder holds, changed last, in nanoseconds; 0 where there is none."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def look(workspace: Workspace, sweep: str) -> SweepStanding:
    """How a submitted sweep stands. SweepError for a name that was never submitted."""
    return Lookout(workspace, sweep)()


def stand(run: RunDirectory, planned: Mapping[str, Any]) -> RunStanding:
    """How one run stands. A run whose launcher died without a word is interrupted, whatever its status says.

    What is damaged of it is named in its reason; one whose result, or whose folder, cannot be read has failed.
    """
    try:
        return _stand(run, planned)
    except PermissionError as error:
        denied = str(refused(run.path, error, "make it readable"))
        return RunStanding(planned, run, State.FAILED, denied, 0, 0, None, None, Ledger())


def _stand(run: RunDirectory, planned: Mapping[str, Any]) -> RunStanding:
    status, result = run.status(), run.known_result()
    state, reason = status.state, status.reason
    if state is State.COMPLETED and run.result_file in run.noticed:
        state = State.FAILED
    if state is State.RUNNING and not run.is_held():
        state, reason = State.PREEMPTED, "its launcher died; submit the sweep again to continue"
    row = {} if result is not None and state is State.COMPLETED else run.last_row()
    ledger = account(run, planned)
    reason = "; ".join(filter(None, [reason, *map(str, run.noticed.values())]))
    return RunStanding(
        planned=planned,
        run=run,
        state=state,
        reason=reason,
        attempts=status.attempt,
        tokens=result.tokens if result else int(row.get(Metric.TOKENS, 0)),
        loss=row.get(Metric.LOSS),
        result=result,
        ledger=ledger,
    )
