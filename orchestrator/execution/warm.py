"""Supervisors and trainers that begin with torch imported: for runs of one rank, which may last seconds.

`python -m orchestrator.execution.warm DESCRIPTOR` imports what a trainer imports, once, and forks itself for every
attempt that it is asked for over that socket. The fork is the attempt's supervisor, and forks its trainer in turn. Both
are processes of their own from there on, as they are under torchrun: what one attempt breaks, leaks or leaves hanging
ends with it. The server computes nothing and starts no thread, or a fork of it could not.
"""

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import select
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.execution.forks import Forked, fork
from xlstm.run.processes import die_with_parent, redirect_output
from xlstm.run.spec import Execution

COLD_START_VARIABLE = "SCALING_COLD_START"
"""Environment variable that has every run start anew, under torchrun, when it is not empty: where it is submitted, or
on the machine that carries it."""
PRELOADED = ("xlstm.training.attempt", "torch._dynamo", "scipy.linalg", "numba.typed", "numba.np.polynomial")
"""What trainers import, or the libraries they use for them, beside our models and kernels."""
START_SECONDS = 600.0
"""How long importing it all may take, on a busy machine: whoever does without the server imports it too."""


def can_be_forked(execution: Execution) -> bool:
    """Whether a run is one process with one thread, which is what a server of warm starts makes."""
    return execution.ranks == 1 and execution.threads_per_rank in (None, 1)


class WarmStart:
    """The server, as whoever asks it for supervisors sees it. It dies with the process that started it."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(START_SECONDS)
        parent = os.getpid()
        # Read when torch is imported, which is before a supervisor can say so; one thread is what is asked for here.
        environment = {"OMP_WAIT_POLICY": "passive"} | os.environ | {"OMP_NUM_THREADS": "1"}
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                env=environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                preexec_fn=lambda: die_with_parent(parent),
            )

    def close(self) -> None:
        """End the server, and with it whatever it carries."""
        self._socket.close()
        self._server.kill()
        self._server.wait()

    def supervise(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> Forked:
        """Start a supervisor with these arguments and variables, its output appended to `log`.

        ConnectionError where the server has ended, which says why on standard error.
        """
        with open(log, "ab"):
            pass  # raises where the run's folder is gone
        request = json.dumps({"arguments": list(arguments), "environment": dict(environment), "log": str(log)}).encode()
        self._socket.sendall(len(request).to_bytes(8) + request)
        said, descriptors, _, _ = socket.recv_fds(self._socket, 32, 1)
        if not descriptors:
            raise ConnectionError("the server of warm starts has ended")
        return Forked(int(said), descriptors[0])


def serve(connection: socket.socket) -> None:
    """Fork a supervisor for every request, until the other end is closed."""
    preload()
    server = os.getpid()
    children: list[Forked] = []
    while True:
        watched: list[socket.socket | Forked] = [connection, *children]
        ready, _, _ = select.select(watched, [], [])
        children = [child for child in children if child not in ready or child.poll() is None]
        if connection not in ready:
            continue
        length = connection.recv(8, socket.MSG_WAITALL)
        if not length:
            return
        request = json.loads(connection.recv(int.from_bytes(length), socket.MSG_WAITALL))

        def child(request: dict[str, Any] = request) -> int:
            connection.close()
            return _supervise(server, **request)

        children.append(fork(child))
        socket.send_fds(connection, [str(children[-1].pid).encode()], [children[-1].fileno()])


def preload() -> None:
    """Import what trainers import: all but what is for GPUs, which no process may have touched that is forked."""
    gc.disable()  # as for a trainer that starts anew
    import kernels.cpu
    from xlstm import models

    for name in PRELOADED:
        with contextlib.suppress(ModuleNotFoundError):  # Numba, where it is not installed
            importlib.import_module(name)
    for package in (kernels, models):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if "triton" not in module.name:
                with contextlib.suppress(ModuleNotFoundError):
                    importlib.import_module(module.name)
    kernels.cpu.prepare()
    gc.collect()
    gc.freeze()
    gc.enable()


def _supervise(server: int, arguments: list[str], environment: dict[str, str], log: str) -> int:
    from orchestrator.execution import supervisor

    os.setsid()
    die_with_parent(server)
    os.environ.clear()
    os.environ.update(environment)
    redirect_output(Path(log))
    sys.argv = [supervisor.__file__, *arguments]
    return supervisor.main(warm=True)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
