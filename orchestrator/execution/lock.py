"""One controller per sweep at a time, so that two do not ask for the same devices.

The kernel holds the lock for the process, and lets go of it when the process ends, however it ends. The file says who
holds it. Leases keep runs apart where this lock cannot: runs that two sweeps share, and file systems without locks
across machines.
"""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from rich.console import Console

from orchestrator.standing.status import look
from xlstm.run.directory import Workspace
from xlstm.run.locks import open_lock, take

WAIT_SECONDS = 0.5
SAY_SECONDS = 30.0


def holder(workspace: Workspace, sweep: str) -> str | None:
    """Who carries a sweep out now, in words; None where nobody does."""
    path = workspace.sweep(sweep).controller_lock
    if not path.is_file():
        return None
    with open(path) as file:
        return None if take(file, wait=False) else file.read().strip() or "another process"


@contextmanager
def sole_controller(workspace: Workspace, sweep: str, engine: str, console: Console) -> Iterator[None]:
    """Be the only controller of a sweep; while there is another, say so, wait for its end, and tell how it goes."""
    path = workspace.sweep(sweep).controller_lock
    if not path.parent.is_dir():
        yield  # a single run of `scaling train` belongs to no sweep, and has its lease
        return
    with open_lock(path) as file:
        if not take(file, wait=False):
            who = path.read_text(errors="replace").strip() or "another process"
            console.print(f"{sweep} is carried out by {who}; waiting to do what it leaves", highlight=False)
            _wait(file, workspace, sweep, console)
            console.print(f"{sweep}: the other has ended; going on here", highlight=False)
        file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"process {os.getpid()} on {socket.gethostname()} with --on {engine} since {since}\n")
        file.flush()
        yield


def _wait(file: IO[str], workspace: Workspace, sweep: str, console: Console) -> None:
    said = time.monotonic()
    while not take(file, wait=False):
        time.sleep(WAIT_SECONDS)
        if time.monotonic() - said >= SAY_SECONDS:
            said = time.monotonic()
            console.print(f"{sweep}: {look(workspace, sweep).counted}")
