"""Locks that the kernel holds for a process, and lets go of when the process ends, however it ends; errors of leases.

Written on `flock` and not on the library filelock: that one asks again every 50 ms where the kernel wakes who waits,
and on file systems without locks it takes to files that outlive a killed holder.
"""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from xlstm.run.json_files import is_in_the_way, refused
from xlstm.run.records import Holder


def take(file: IO[Any], *, wait: bool) -> bool:
    """Lock an open file until it is closed. Returns False where another holds it and `wait` is false."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock on a file, made if missing; yields whether it is held: always, where `wait` is true."""
    with open_lock(path) as file:
        yield take(file, wait=wait)


def open_lock(path: Path) -> IO[str]:
    """Open the file of a lock, made if missing. DamagedFileError where something else lies in its place."""
    try:
        return open(path, "a+", encoding="utf-8")
    except OSError as error:
        if is_in_the_way(error):
            raise refused(path, error, "remove it") from None
        raise


class LeaseHeldError(RuntimeError):
    """Another launcher holds the run."""

    def __init__(self, run_id: str, holder: Holder) -> None:
        super().__init__(f"{run_id} is held by {holder.described}")


class AlreadyCompleteError(RuntimeError):
    """The run is trained and measured: there is nothing to attempt."""


class CancelRequestedError(RuntimeError):
    """Somebody asked for the end of the run: no attempt is begun."""


class LeaseLostError(RuntimeError):
    """The lease was taken by another launcher: stop without writing."""
