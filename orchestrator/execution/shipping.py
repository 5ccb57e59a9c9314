"""Ships runs to MLflow from a background thread while they train: an outage delays nobody and loses nothing.

The sweep's parent run carries the sweep, its plan, its ledger and, where somebody fits it, the law so far.
"""

import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from orchestrator.standing.status import look
from xlstm.run import tracking
from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.json_files import DamagedFileError, read_json
from xlstm.run.records import State
from xlstm.run.sweep_directory import SweepDirectory
from xlstm.run.tracking.bulk import Point
from xlstm.run.tracking.store import Place

SHIP_SECONDS = 3.0
MAXIMUM_FAILURES = 2
"""In a row, after which a round of shipping is given up."""
PUBLISH_SECONDS = 60.0
"""Between two accounts of the whole sweep while runs end."""
FEWEST_RUNS = 6
"""Complete runs of one family from which on a law may be fitted to it: one more than it has parameters."""

LiveFit: TypeAlias = Callable[[], Mapping[str, str | Path]]
"""Fits the law to the runs so far; gives artifacts by name, none where the runs do not determine it yet. The one named
`DESCRIPTION` is no artifact, but what is shown of the sweep first, in Markdown."""
DESCRIPTION = "description"


class Shipper:
    """Keeps MLflow following the runs of one sweep, for as long as the context is open.

    `touch` says that a run has news; leaving the context ships once more what is left. `complaint` is what the store
    last answered when it could not be written, for people; `scaling sync` makes up for it later.
    """

    def __init__(self, workspace: Workspace, sweep: str, live_fit: LiveFit | None = None) -> None:
        self.workspace, self.sweep, self.live_fit = workspace, sweep, live_fit
        self.complaint: str | None = None
        self._news: set[str] = set()
        self._live: set[str] = set()
        self._unpublished = True
        self._published = time.monotonic()
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._ship_until_end, name="mlflow", daemon=True)

    def touch(self, run: RunDirectory, live: bool) -> None:
        """Ship this run soon, and, while it is live, again and again."""
        with self._lock:
            self._news.add(run.run_id)
            (self._live.add if live else self._live.discard)(run.run_id)
            self._unpublished |= not live

    def __enter__(self) -> "Shipper":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()

    def _ship_until_end(self) -> None:
        # Takes seconds, in which the first runs start.
        self.complaint = tracking.open_store(self.workspace.tracking_uri, self.workspace.artifacts)
        while not self._end.wait(SHIP_SECONDS):
            self._ship()
            if self._unpublished and time.monotonic() - self._published > PUBLISH_SECONDS:
                self._publish()
        self._ship()
        self._publish()

    def _ship(self) -> None:
        with self._lock:
            due = sorted(self._news | self._live)
            self._news.clear()
        shipped, self.complaint = ship(self.workspace, self.sweep, due)
        with self._lock:
            self._news |= set(due) - shipped

    def _publish(self) -> None:
        self._published, self._unpublished = time.monotonic(), False
        self.complaint = publish(self.workspace, self.sweep, self.live_fit) or self.complaint


def publish(workspace: Workspace, sweep: str, live_fit: LiveFit | None = None) -> str | None:
    """Give the parent run of a sweep its plan, its ledger and the law so far; returns None, or what is wrong."""
    directory = workspace.sweep(sweep)
    if not directory.plan_file.is_file():
        return None  # a single run, which `scaling train` carried out
    place = Place(sweep, workspace.tracking_uri, workspace.artifacts)
    try:
        stamp = _stamp(workspace, directory, with_fit=live_fit is not None)
        if tracking.is_published(place, stamp):
            return None
        standing = look(workspace, sweep)
        kept = read_json(directory.sweep_file, f"submit {sweep} again from its own file") or {}
    except DamagedFileError as error:
        return str(error)
    files: dict[str, str | Path] = {path.name: path for path in (directory.sweep_file, directory.plan_file)}
    files["ledger.json"] = json.dumps(standing.ledger.document(), indent=2) + "\n"
    complete = Counter(run.planned["model"] for run in standing.runs if run.state is State.COMPLETED)
    if live_fit is not None and max(complete.values(), default=0) >= FEWEST_RUNS:
        try:
            files |= live_fit()
        except Exception as error:  # a law that cannot be fitted must not keep the runs from being shipped
            return f"the law so far could not be fitted: {type(error).__name__}: {error}"
    law = files.get("fit/fit.json")
    points = _law_points(json.loads(law), sum(complete.values())) if isinstance(law, str) else []
    ended = all(run.state.ended for run in standing.runs)
    notes = str(kept.get("notes") or "")
    told = [str(files.pop(DESCRIPTION, "")), f"{len(standing.runs)} runs, {standing.counted}", notes]
    description = "\n\n".join(part for part in told if part)
    return tracking.publish(place, files, ended=ended, stamp=stamp, points=points, description=description, notes=notes)


def _law_points(documents: Iterable[Mapping[str, Any]], complete: int) -> list[Point]:
    """The parameters of the laws so far as metrics `law/FAMILY/NAME`, over the number of complete runs."""
    now = int(time.time() * 1000)
    return [
        (f"law/{re.sub('[^a-zA-Z0-9_. -]', '-', one['family'])}/{name}", float(value), now, complete)
        for one in documents
        for name, value in one["parameters"].items()
    ]


def _stamp(workspace: Workspace, directory: SweepDirectory, *, with_fit: bool) -> str:
    """Of all that the account of a sweep is made from. DamagedFileError where its plan cannot be read."""
    said = hashlib.sha256(b"with the law" if with_fit else b"")
    for path in (directory.sweep_file, directory.plan_file):
        said.update(path.read_bytes() if path.is_file() else b"")
    for row in directory.plan()["runs"]:
        said.update(tracking.files_stamp(workspace.run(row["run_id"])).encode())
    return said.hexdigest()


def ship(
    workspace: Workspace, sweep: str, run_ids: Iterable[str], tell: Callable[[str], object] = lambda damage: None
) -> tuple[set[str], str | None]:
    """Make MLflow equal the directories of these runs; returns which were shipped, and the first complaint.

    Two failures in a row end the round: a store that is away is not asked once per run. `tell` is called with what of a
    run is damaged and could not be shipped.
    """
    shipped: set[str] = set()
    complaint, in_a_row = None, 0
    place = Place(sweep, workspace.tracking_uri, workspace.artifacts)
    runs = [workspace.run(run_id) for run_id in run_ids]
    for run, synced in zip(runs, tracking.sync_all(runs, place), strict=False):  # the round may end before the runs
        if synced.damage:
            tell(synced.damage)
        if synced.ok:
            shipped.add(run.run_id)
            in_a_row = 0
            continue
        complaint = complaint or synced.message
        in_a_row += 1
        if in_a_row == MAXIMUM_FAILURES:
            break
    return shipped, complaint
