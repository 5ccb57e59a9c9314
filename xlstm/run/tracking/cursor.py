"""How far a tracking store has followed a run: a file in the run's folder, which one process at a time may move on."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

from xlstm.run.directory import RunDirectory
from xlstm.run.json_files import DamagedFileError
from xlstm.run.locks import locked
from xlstm.run.records import Record
from xlstm.run.tracking.store import Place

OWN = "the workspace's own store"


class Cursor(Record):
    """How far one (tracking store, sweep) has followed a run."""

    tracking_uri: str
    """Of a server or a shared database, without its password; `OWN` for the store that lies in the workspace."""
    experiment: str
    child: str
    offset: int = 0
    """Bytes of `metrics.jsonl` that were read."""
    last_step: int = -1
    """Step of the last row shipped."""
    state: str = ""
    """What the tags were written for."""
    files: str = ""
    """The run's files as they were when all of this was shipped: while they are the same, nothing is to be done."""


@contextlib.contextmanager
def exclusive(run: RunDirectory, place: Place) -> Iterator[Path | None]:
    """The cursor's file, held by this process alone; None while another holds it."""
    try:
        run.cursors.mkdir(exist_ok=True)
    except FileExistsError:
        raise DamagedFileError(run.cursors, "is no folder, where one belongs", "remove it") from None
    cursor_file = cursor_file_of(run, place)
    with locked(cursor_file.with_suffix(".lock"), wait=False) as held:
        yield cursor_file if held else None


def cursor_file_of(run: RunDirectory, place: Place) -> Path:
    return run.cursors / f"{cursor_name(OWN if place.own else place.tracking_uri, place.sweep)}.json"


def cursor_name(tracking_uri: str, sweep: str) -> str:
    return hashlib.sha256(f"{tracking_uri}\n{sweep}".encode()).hexdigest()[:12]


def read_cursor(path: Path) -> Cursor | None:
    try:
        return Cursor.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None  # a cursor is worth nothing but time: the child is made anew
