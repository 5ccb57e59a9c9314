"""Ships runs to MLflow from a background thread while they train: an outage delays nobody and loses nothing."""

import threading
from collections.abc import Iterable
from types import TracebackType

from xlstm import tracking
from xlstm.records import RunDirectory, Workspace

SHIP_SECONDS = 3.0
MAXIMUM_FAILURES = 2
"""In a row, after which a round of shipping is given up."""


class Shipper:
    """Keeps MLflow following the runs of one sweep, for as long as the context is open.

    `touch` says that a run has news; leaving the context ships once more what is left. `complaint` is what the store
    last answered when it could not be written, for people; `scaling sync` makes up for it later.
    """

    def __init__(self, workspace: Workspace, sweep: str) -> None:
        self.workspace, self.sweep = workspace, sweep
        self.complaint: str | None = None
        self._news: set[str] = set()
        self._live: set[str] = set()
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._ship_until_end, name="mlflow", daemon=True)

    def touch(self, run: RunDirectory, live: bool) -> None:
        """Ship this run soon, and, while it is live, again and again."""
        with self._lock:
            self._news.add(run.run_id)
            (self._live.add if live else self._live.discard)(run.run_id)

    def __enter__(self) -> "Shipper":
        # The store is initialised here, once, before anybody else may touch a fresh file.
        self.complaint = tracking.open_store(self.workspace.tracking_uri, self.workspace.artifacts)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def _ship_until_end(self) -> None:
        while not self._end.wait(SHIP_SECONDS):
            self._ship()
        self._ship()

    def _ship(self) -> None:
        with self._lock:
            due = sorted(self._news | self._live)
            self._news.clear()
        shipped, self.complaint = ship(self.workspace, self.sweep, due)
        with self._lock:
            self._news |= set(due) - shipped


def ship(workspace: Workspace, sweep: str, run_ids: Iterable[str]) -> tuple[set[str], str | None]:
    """Make MLflow equal the directories of these runs; returns which were shipped, and the first complaint.

    Two failures in a row end the round: a store that is away is not asked once per run.
    """
    shipped: set[str] = set()
    complaint, in_a_row = None, 0
    for run_id in run_ids:
        synced = tracking.sync(workspace.run(run_id), sweep, workspace.tracking_uri)
        if synced.ok:
            shipped.add(run_id)
            in_a_row = 0
            continue
        complaint = complaint or synced.message
        in_a_row += 1
        if in_a_row == MAXIMUM_FAILURES:
            break
    return shipped, complaint
