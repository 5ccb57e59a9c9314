"""Processes that are forked and go on as what they are asked to be, and such as somebody else has forked."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn


class Forked:
    """A process that is held by a descriptor, whoever its parent is: what is needed of `subprocess.Popen`."""

    def __init__(self, pid: int, descriptor: int, *, own: bool = False) -> None:
        """`own`: it is a child of this process, which takes its exit code."""
        self.pid = pid
        self._descriptor, self._own = descriptor, own
        self._code: int | None = None

    def __del__(self) -> None:
        os.close(self._descriptor)

    def fileno(self) -> int:
        """Readable when it has ended."""
        return self._descriptor

    def poll(self) -> int | None:
        """Its exit code, minus the signal that ended it; 0 of one whose parent takes the code; None while it lives."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0.0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """As `poll`, when it has ended. TimeoutExpired where it has not within so many seconds."""
        if self._code is None:
            if not select.select([self._descriptor], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a forked process", timeout or 0.0)
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]) if self._own else 0
        return self._code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def fork(child: Callable[[], int]) -> Forked:
    """A child of this process that calls `child` and ends with the exit code it returns, whatever it raises."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _end_with(child)
    return Forked(pid, os.pidfd_open(pid), own=True)


def _end_with(child: Callable[[], int]) -> NoReturn:
    """Call `child` and end, without what the process that was forked had wanted to do at its end."""
    code = 1
    try:
        code = child()
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
        if isinstance(exit.code, str):
            print(exit.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
