"""The process of one rank, before torch is there: it dies with its parent, and its output goes to its own file.

Imports neither torch nor anything slow, so that the window in which a killed launcher leaves an orphan is short.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the parent ends. torchrun's workers live in sessions of their own: no process
    group reaches them. Linux only; elsewhere nothing happens."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # The parent may have died before the request: then this process already belongs to somebody else, and a worker
    # of torchrun whose parent is not Python was handed to an init process.
    orphaned = os.getppid() != parent
    if "TORCHELASTIC_RUN_ID" in os.environ and not orphaned:
        try:
            orphaned = os.path.basename(os.readlink(f"/proc/{parent}/exe")) != os.path.basename(
                os.readlink("/proc/self/exe")
            )
        except OSError:
            orphaned = True
    if orphaned:
        os._exit(1)


def redirect_output(path: Path) -> None:
    """Append this process's standard output and error to a file, those of libraries included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
