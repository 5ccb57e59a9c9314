"""Ranks that begin with torch imported: they are forked from a process that spent those seconds once for all tests."""

import functools
import importlib.util
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess

PRELOADED = [
    *("xlstm.training.attempt", "xlstm.models.llama", "torch._dynamo"),
    *("kernels.cpu.runtime", "kernels.rms_norm.numba_norm", "numba.typed", "numba.np.linalg", "numba.np.polynomial"),
    "pytest",  # of which multiprocessing imports the main module again
]


class ForkedRank:
    """A forked rank, as `subprocess.Popen` would show it."""

    def __init__(self, process: ForkServerProcess) -> None:
        self._process = process

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Exit code, once it has ended. TimeoutExpired where it has not within so many seconds."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("a rank", timeout or 0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self._process.ident or 0, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def fork_rank(arguments: list[str], environment: dict[str, str], wrapper: str) -> ForkedRank:
    """Run the trainer's module with these arguments and variables, after the Python of `wrapper`."""
    process = _server().Process(target=_rank, args=(arguments, environment, wrapper))
    process.start()
    return ForkedRank(process)


@functools.cache
def _server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    for name in PRELOADED:
        assert importlib.util.find_spec(name), name  # the server would do without
    context.set_forkserver_preload(PRELOADED)
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
    return context


def _rank(arguments: list[str], environment: dict[str, str], wrapper: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["xlstm.training", *arguments]
    exec(wrapper, {"__name__": "wrapper"})
    runpy.run_module("xlstm.training", run_name="__main__", alter_sys=True)
