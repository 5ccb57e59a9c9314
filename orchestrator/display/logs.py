"""Prints what a run's latest attempt says of itself: its metrics, a line a row, and its log files. Follows it too."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from orchestrator.errors import InputError
from xlstm.quantities import compact
from xlstm.run import metrics
from xlstm.run.directory import RunDirectory
from xlstm.run.records import Metric

FOLLOW_SECONDS = 0.5
_SAID: dict[str, Callable[[Any], str]] = {
    Metric.LOSS: "loss {:.4f}".format,
    Metric.VALIDATION_LOSS: "validation loss {:.4f}".format,
    Metric.LEARNING_RATE: "learning rate {:.2e}".format,
    Metric.TOKENS: lambda tokens: f"{compact(tokens)} tokens",
    Metric.TOKENS_PER_SECOND: lambda speed: f"{compact(round(speed))} tokens/s",
}
"""What is said of a row, in this order."""


def _added(path: Path, read: int, *, end: bool) -> tuple[list[str], int]:
    """Whole lines behind so many bytes that were `read`, at the `end` what there is; and the bytes read by now."""
    if not path.is_file():
        return [], read
    with open(path, "rb") as file:
        file.seek(read)
        added = file.read()
    whole = added if end else added[: added.rfind(b"\n") + 1]
    return whole.decode(errors="replace").splitlines(), read + len(whole)


def print_logs(run: RunDirectory, out: TextIO, *, follow: bool = False) -> None:
    """Write metrics and logs of the latest attempt, each under its file's name; with `follow`, go on while a launcher
    holds the run.

    InputError where no attempt was made yet.
    """
    if run.status().attempt == 0 and not follow:
        raise InputError(f"{run.run_id} has no logs yet: it was never started")
    read: dict[Path, int] = {}
    latest: Path | None = None
    while True:
        end = not (follow and run.is_held())
        attempt = run.status().attempt
        for path in (run.metrics_file, *run.logs(attempt)):
            lines, read[path] = _added(path, read.get(path, 0), end=end)
            if path == run.metrics_file:
                lines = [said for row in metrics.parse(lines) if (said := _sentence(row, attempt))]
            if lines and path != latest:
                out.write(f"==> {path} <==\n")
                latest = path
            out.writelines(f"{line}\n" for line in lines)
            out.flush()
        if end:
            return
        time.sleep(FOLLOW_SECONDS)


def _sentence(row: Mapping[str, Any], attempt: int) -> str:
    """A row of metrics for people; nothing for rows of other attempts."""
    if row.get("attempt") != attempt:
        return ""
    if row.get("event") == "resume":
        return f"attempt {attempt} continues from step {row['step']}"
    parts = [said(row[metric]) for metric, said in _SAID.items() if metric in row]
    return f"step {row['step']}: {', '.join(parts)}" if parts else ""
