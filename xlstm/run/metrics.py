"""`metrics.jsonl`: one row a line, only appended to; the one place where it is parsed.

Rows are described at `RunDirectory.metrics`. A line torn by a kill is no row: its step is written again by the next
attempt. Nor is any other line that no trainer wrote; such lines are left out, and `damage` names them. Imports without
torch.
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from xlstm.run.json_files import DamagedFileError, read_bytes
from xlstm.run.records import Metric

_TAIL_BYTES = 8192
_REMEDY = "submit its sweep again, which sets it aside"


def parse(lines: Iterable[str | bytes]) -> Iterator[dict[str, Any]]:
    """Yield the rows among lines, in their order."""
    for line in lines:
        if (row := _row(line)) is not None:
            yield row


def read(path: Path) -> tuple[list[dict[str, Any]], DamagedFileError | None]:
    """Every row of the file, in the order in which they were written, and what is wrong with the lines left out.

    No row where there is no file. DamagedFileError where something else lies there.
    """
    content = read_bytes(path, _REMEDY)
    return _examined(path, (content or b"").split(b"\n"))


def read_added(path: Path, offset: int) -> tuple[list[dict[str, Any]], int, DamagedFileError | None]:
    """Rows written after byte `offset`, the offset up to which they reach, and what is wrong with the lines left out.

    A last line that is still being written is left for the next call. DamagedFileError where no file lies there.
    """
    content = read_bytes(path, _REMEDY, offset) or b""
    whole = content[: content.rfind(b"\n") + 1]
    rows, damage = _examined(path, whole.split(b"\n"))
    return rows, offset + len(whole), damage


def read_last(path: Path) -> dict[str, Any]:
    """The last row that holds a training loss, from the file's end alone; empty where there is none."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return {}
    return next((row for row in parse(reversed(lines)) if Metric.LOSS in row), {})


def surviving(written: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that count among all, given in the order written: see `RunDirectory.metrics`."""
    rows: list[dict[str, Any]] = []
    for row in written:
        if row.get("event") == "resume":
            rows = [earlier for earlier in rows if earlier["step"] <= row["step"]]
        elif row.get("event") == "evaluation" and row["before"] not in (None, row["fingerprint"]):
            rows = [rest for earlier in rows if (rest := _without_validation(earlier))]
        elif "event" not in row:
            rows.append(row)
    return rows


def _without_validation(row: dict[str, Any]) -> dict[str, Any] | None:
    """A row less what an evaluation measured; None where it held nothing else."""
    if Metric.VALIDATION_LOSS not in row:
        return row
    rest = {key: value for key, value in row.items() if not key.startswith("validation/")}
    return rest if Metric.LOSS in rest else None


def _row(line: str | bytes) -> dict[str, Any] | None:
    """The row that a line is: what happened, or numbers measured after a step. None for any other line."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    if row.get("event") == "resume":
        return row if _is_whole(row.get("step")) else None
    if row.get("event") == "evaluation":
        return row if {"before", "fingerprint"} <= row.keys() else None
    if "event" in row:
        return row
    measured = all(is_number(value) for name, value in row.items() if "/" in name)
    return row if measured and _is_whole(row.get("step")) and is_number(row.get("time", 0)) else None


def _examined(path: Path, lines: list[bytes]) -> tuple[list[dict[str, Any]], DamagedFileError | None]:
    """The rows among lines, and the error that names the others, but for those that a kill tore: they begin as rows."""
    rows, bad = [], []
    for line in lines:
        row = _row(line)
        if row is not None:
            rows.append(row)
        elif line and not (line.startswith(b"{") and line.isascii() and not line.rstrip().endswith(b"}")):
            bad.append(line)
    if not bad:
        return rows, None
    shown = bad[0][:40].decode("ascii", "backslashreplace")
    what = (
        f"{len(bad)} line{'s' if len(bad) > 1 else ''} left out that no trainer wrote, the first begins with {shown!r}"
    )
    return rows, DamagedFileError(path, what, "the other lines are read; remove it by hand")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a number, and neither true nor false."""
    return isinstance(value, int | float) and not isinstance(value, bool)
