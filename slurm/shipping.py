"""MLflow from inside a job: ship to a tracking server if there is one.

SQLite is written only on the machine that holds it, so a job leaves an embedded store alone; what reads on the login
node brings it up to date first.
"""

import contextlib
import threading
from collections.abc import Iterator

from xlstm.run import tracking
from xlstm.run.directory import RunDirectory

SHIP_SECONDS = 10.0


@contextlib.contextmanager
def shipped(run: RunDirectory, sweep: str, tracking_uri: str) -> Iterator[None]:
    """While the context is open, and once at its end, ship the run to the server at `tracking_uri`, if it is one."""
    if not tracking_uri.startswith(("http://", "https://")):
        yield
        return
    end = threading.Event()

    def ship() -> None:
        while not end.wait(SHIP_SECONDS):
            tracking.sync(run, sweep, tracking_uri)

    thread = threading.Thread(target=ship, name="mlflow", daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
        tracking.sync(run, sweep, tracking_uri)
