"""`metrics.jsonl`: one row a line, only appended to; the one place where it is written and parsed.

Rows are described at `RunDirectory.metrics`. A line torn by a kill is no row: its step is written again by the next
attempt. Imports without torch.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from xlstm.run.records import Metric

_TAIL_BYTES = 8192


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Append one row in one write. ValueError for NaN and infinities: no measurements."""
    line = json.dumps(row, allow_nan=False, separators=(",", ":"))
    with open(path, "ab+") as file:
        torn = file.seek(0, os.SEEK_END) > 0 and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
        file.write((b"\n" if torn else b"") + line.encode() + b"\n")


def parse(lines: Iterable[str | bytes]) -> Iterator[dict[str, Any]]:
    """Yield the rows among lines, in their order."""
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            continue


def read(path: Path) -> list[dict[str, Any]]:
    """Every row of the file, in the order in which they were written; none where there is no file."""
    try:
        return list(parse(path.read_bytes().splitlines()))
    except FileNotFoundError:
        return []


def read_added(path: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """Rows written after byte `offset`, and the offset up to which they reach.

    A last line that is still being written is left for the next call.
    """
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            content = file.read()
    except FileNotFoundError:
        return [], offset
    whole = content[: content.rfind(b"\n") + 1]
    return list(parse(whole.splitlines())), offset + len(whole)


def read_last(path: Path) -> dict[str, Any]:
    """The last row that holds a training loss, from the file's end alone; empty where there is none."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return {}
    # The first line of the tail may be a part of one that parses as another JSON value.
    rows = (row for row in parse(reversed(lines)) if isinstance(row, dict) and Metric.LOSS in row)
    return next(rows, {})


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
