"""Processes that die with their parent, and processes that are found by a tag when they did not.

torchrun puts its workers into sessions of their own, so that killing the launcher's process group misses them: each
link of the chain controller -> supervisor -> torchrun -> worker therefore asks the kernel to be killed when the link
above dies, and what slipped through is found by the lease's token in its environment. Linux only; no torch.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

TOKEN_VARIABLE = "SCALING_TOKEN"
"""Environment variable by which the processes of one attempt are found: the token of its lease."""

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


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


def usable_cores() -> int:
    """Cores that this process may use; all of the machine's where the system tells no affinity, as macOS."""
    import psutil

    process = psutil.Process()
    if hasattr(process, "cpu_affinity"):
        return len(process.cpu_affinity())
    return psutil.cpu_count() or 1


def die_with_parent(parent: int) -> None:
    """Have the kernel SIGKILL this process when its parent dies; exit at once if the parent `parent` is gone already.

    Safe between fork and exec. The signal follows the death of the *thread* that forked, so fork from one that lasts.
    """
    if _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os._exit(1)


def start_bound(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a process that dies with this one, its output appended to a file.

    It has a session of its own: Ctrl-C does not reach it.
    """
    parent = os.getpid()
    with open(log, "ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: die_with_parent(parent),
        )


def tagged(token: str) -> Iterator[int]:
    """Process ids, other than this one, whose environment carries the token."""
    needle = f"{TOKEN_VARIABLE}={token}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # it ended meanwhile, or belongs to somebody else
        if needle in variables:
            yield int(entry.name)


def kill_tagged(token: str) -> list[int]:
    """SIGKILL every other process of an attempt. Returns their ids."""
    killed = []
    for pid in tagged(token):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        killed.append(pid)
    return killed


def process_start(pid: int) -> float | None:
    """Start time of a process in clock ticks since boot, or None if there is none: tells a reused pid apart.

    psutil gives the moment on the wall clock instead, which moves when that clock is set.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state == "Z" else float(fields[18])
