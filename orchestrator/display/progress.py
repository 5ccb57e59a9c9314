"""The progress of a submission, for people: a live table on a terminal, plain lines elsewhere."""

import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.execution.controller import Event, Happening
from orchestrator.execution.submission import Display
from xlstm.quantities import compact, duration
from xlstm.run.directory import RunDirectory
from xlstm.run.records import Metric, Result, State

PLAIN_SECONDS = 30.0
"""Seconds between the lines that tell a log file how far a submission is."""
MOST_ROWS = 12
USUAL = frozenset({"model", "size", "seed", "tokens", "flops", "tokens_per_parameter"})
"""Axes that the name of a run tells, and its id."""

STYLES = {
    State.PLANNED: "dim",
    State.QUEUED: "dim",
    State.RUNNING: "cyan",
    State.PREEMPTED: "yellow",
    State.FAILED: "red",
    State.DIVERGED: "magenta",
    State.COMPLETED: "green",
    State.CANCELLED: "yellow",
    State.PRUNED: "yellow",
}


def make_display(console: Console, sweep: str, rows: Sequence[Mapping[str, Any]]) -> Display:
    """The display that fits the console; `rows` are the runs of the plan."""
    progress = SweepProgress(sweep, {row["run_id"]: _Line(row) for row in rows})
    return LiveDisplay(console, progress) if console.is_terminal else PlainDisplay(console, progress)


@dataclass
class _Line:
    planned: Mapping[str, Any]
    state: State = State.PLANNED
    reason: str = ""
    tokens: int = 0
    loss: float | None = None
    speed: float | None = None
    result: Result | None = None

    @property
    def flops(self) -> float:
        return float(self.planned["flops"]["exact"])

    @property
    def fraction(self) -> float:
        return 1.0 if self.state is State.COMPLETED else min(1.0, self.tokens / self.planned["tokens"])

    @property
    def own_tokens(self) -> int:
        """What it trains itself: without what it takes over from a trunk."""
        fork = self.planned["forks_from"]
        return int(self.planned["tokens"] - (fork["step"] * self.planned["batch_tokens"] if fork else 0))

    @property
    def tokens_left(self) -> int:
        return int(self.planned["tokens"] - self.tokens)

    @property
    def planned_pace(self) -> float:
        """Seconds per token, by the plan."""
        return float(self.planned["device_hours"] * 3600 / self.planned["ranks"] / self.own_tokens)

    @property
    def seconds_left(self) -> float | None:
        return self.tokens_left / self.speed if self.speed else None


@dataclass
class SweepProgress:
    """How far the runs are, and when the rest will be done: by the plan, set right by the steps that are seen."""

    sweep: str
    lines: dict[str, _Line]
    latest: deque[_Line] = field(default_factory=lambda: deque(maxlen=MOST_ROWS))
    """Those that were completed last."""
    shown: dict[str, _Line] = field(default_factory=dict)
    """What runs, and what ended without a result, by its id."""
    _begun: dict[str, _Line] = field(default_factory=dict)
    """What holds tokens and is not complete. However many wait or are complete, a look takes no longer."""

    def __post_init__(self) -> None:
        self.flops = sum(line.flops for line in self.lines.values())
        self._counts = Counter(line.state for line in self.lines.values())
        self._complete = 0.0
        self._directories: dict[str, RunDirectory] = {}
        waiting = [line for line in self.lines.values() if not line.state.ended]
        self._own_tokens = sum(line.own_tokens for line in waiting)
        """Of the runs that have not ended, those that were begun included; as their seconds by the plan."""
        self._planned_seconds = sum(line.own_tokens * line.planned_pace for line in waiting)

    def happened(self, event: Event) -> None:
        if event.what is Happening.DAMAGED:
            return
        run_id = event.run.run_id
        self._directories[run_id] = event.run
        line = self.lines[run_id]
        before = line.state
        line.state, line.reason = event.status.state, event.status.reason
        if event.what is Happening.STARTED:
            line.state = State.RUNNING
        self._counts[before] -= 1
        self._counts[line.state] += 1
        self._complete += line.flops * ((line.state is State.COMPLETED) - (before is State.COMPLETED))
        back = before.ended - line.state.ended  # 1 where it is tried again
        self._own_tokens += line.own_tokens * back
        self._planned_seconds += line.own_tokens * line.planned_pace * back
        if line.state is State.COMPLETED:
            line.result = event.run.known_result()
            line.tokens = line.planned["tokens"]
            self._begun.pop(run_id, None)
            if before is not State.COMPLETED:
                self.latest.append(line)
        if line.state is State.RUNNING or line.state.unsuccessful:
            self.shown[run_id] = line
        else:
            self.shown.pop(run_id, None)

    def read(self) -> None:
        """Look at the metrics of what runs."""
        for run_id, line in self.shown.items():
            if line.state is State.RUNNING and (row := self._directories[run_id].last_row()):
                line.tokens = int(row.get(Metric.TOKENS, line.tokens))
                line.loss = row.get(Metric.LOSS)
                line.speed = row.get(Metric.TOKENS_PER_SECOND)
                self._begun[run_id] = line

    @property
    def flops_done(self) -> float:
        return self._complete + sum(line.fraction * line.flops for line in self._begun.values())

    @property
    def seconds_left(self) -> float | None:
        """Until the runs have ended that still may, as many at a time as now; None until one that runs tells its speed.

        What steps take beyond the plan is taken to be the same for a token of any model: that of small ones is not in
        their FLOPs. Where they take less, the plan is faster by the same factor.
        """
        told = [line for line in self.shown.values() if line.state is State.RUNNING and line.speed]
        if not told:
            return None
        tokens, seconds = float(self._own_tokens), self._planned_seconds
        for line in self._begun.values():
            if not line.state.ended:
                tokens -= line.own_tokens - line.tokens_left
                seconds -= (line.own_tokens - line.tokens_left) * line.planned_pace
        measured = fmean(1 / line.speed for line in told if line.speed)
        planned = fmean(line.planned_pace for line in told)
        beyond = measured - planned
        return (seconds + beyond * tokens if beyond > 0 else seconds * measured / planned) / self._counts[State.RUNNING]

    def summary(self) -> str:
        """`7 of 18 runs complete, 2 running, 61% of the FLOPs, 3:20 left`."""
        parts = [f"{self._counts[State.COMPLETED]} of {len(self.lines)} runs complete"]
        for state in (State.RUNNING, State.FAILED, State.DIVERGED, State.PRUNED):
            if number := self._counts[state]:
                parts.append(f"{number} {state.value.lower()}")
        # Rounded down: all of them are done when every run is.
        parts.append(f"{int(100 * self.flops_done / max(1.0, self.flops) + 1e-9)}% of the FLOPs")
        if left := self.seconds_left:
            parts.append(f"{duration(left)} left")
        return ", ".join(parts)


class LiveDisplay:
    """A table that redraws itself: what runs with its loss and speed, what ended last, and the whole."""

    def __init__(self, console: Console, progress: SweepProgress) -> None:
        self.console, self.progress = console, progress
        self._live = Live(self._draw(), console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> "LiveDisplay":
        self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.refresh()
        self._live.__exit__(*error)

    def happened(self, event: Event) -> None:
        self.progress.happened(event)
        if event.what in (Happening.RETRIED, Happening.HELD, Happening.DAMAGED) or event.status.state.unsuccessful:
            self._live.console.print(_sentence(event))

    def refresh(self) -> None:
        self.progress.read()
        self._live.update(self._draw(), refresh=True)

    def _draw(self) -> Group:
        progress = self.progress
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for name in ("run", "state", ""):
            table.add_column(name, no_wrap=True)
        for name in ("tokens", "loss", "tokens/s", "left"):
            table.add_column(name, justify="right", no_wrap=True)
        shown, ended = list(progress.shown.values())[:MOST_ROWS], list(progress.latest)
        for line in [*ended[max(0, len(ended) - (MOST_ROWS - len(shown))) :], *shown]:
            loss = line.result.validation.loss if line.result else line.loss
            left = line.seconds_left if line.state is State.RUNNING else None
            table.add_row(
                label(line.planned),
                Text(state_word(line.state, line.tokens), style=STYLES[line.state]),
                ProgressBar(total=1.0, completed=line.fraction, width=16),
                f"{compact(line.tokens)}/{compact(line.planned['tokens'])}",
                f"{loss:.3f}" if loss is not None else "",
                compact(round(line.speed)) if line.speed and line.state is State.RUNNING else "",
                duration(left) if left is not None else "",
            )
        whole = ProgressBar(total=1.0, completed=progress.flops_done / max(1.0, progress.flops), width=40)
        return Group(Text(progress.sweep, style="bold"), table, whole, Text(progress.summary()))


class PlainDisplay:
    """One line per event, and every half minute one on the whole."""

    def __init__(self, console: Console, progress: SweepProgress) -> None:
        self.console, self.progress = console, progress
        self._last = time.monotonic()

    def __enter__(self) -> "PlainDisplay":
        return self

    def __exit__(self, *error: Any) -> None:
        self._say()

    def happened(self, event: Event) -> None:
        self.progress.happened(event)
        if event.what is not Happening.SUBMITTED:
            self.console.print(_sentence(event), soft_wrap=True, highlight=False)

    def refresh(self) -> None:
        if time.monotonic() - self._last >= PLAIN_SECONDS:
            self._say()

    def _say(self) -> None:
        self._last = time.monotonic()
        self.progress.read()
        self.console.print(self.progress.summary(), soft_wrap=True, highlight=False)


def state_word(state: State, tokens: int) -> str:
    """A state for people; what runs and has no step yet loads, and compiles where nobody did before."""
    return "starting" if state is State.RUNNING and not tokens else state.value.lower()


def label(planned: Mapping[str, Any]) -> str:
    """What people call a run: `xlstm[7:1] 125M 15B s0`, and the axes beyond if there are any."""
    more = [f"{axis}={value}" for axis, value in planned.get("point", {}).items() if axis not in USUAL]
    return " ".join([planned["model"], planned["size"], compact(planned["tokens"]), f"s{planned['seed']}", *more])


def _sentence(event: Event) -> str:
    state = event.status.state
    words = f"{event.run.run_id}: {event.what.value}"
    if event.what is Happening.HELD and (holder := event.status.lease) is not None:
        words += f": {holder.described}; waiting for it"
    if event.what is Happening.ENDED:
        words = f"{event.run.run_id}: {state.value.lower()}"
        result = event.run.known_result() if state is State.COMPLETED else None
        if result is not None:
            words += f", validation perplexity {result.validation.perplexity:.3f}"
            if result.validation.bits_per_byte is not None:
                words += f", {result.validation.bits_per_byte:.3f} bits per byte"
    return f"{words} ({event.status.reason})" if event.status.reason and state is not State.QUEUED else words
