"""One node's part of a gang on Ray: an actor that starts the supervisor as a subprocess, and waits for it.

Everything it started dies with it. It answers while the supervisor runs, also to a controller that did not start it.
It imports next to nothing, as each run waits for that.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import ray

from xlstm.processes import die_with_parent, kill_tagged

SUPERVISOR = "orchestrator.supervisor"
JOIN_SECONDS = 300.0
"""How long the other nodes of a gang wait for the first one's address."""


class Member:
    """Rank `rank` of the `nodes` supervisors that carry out one attempt of the run at the path `run`."""

    def __init__(self, run: str, token: str, rank: int, nodes: int, arguments: list[str]) -> None:
        self._token = token
        parent = os.getpid()
        arguments = [*arguments, "--node-rank", str(rank), "--parent", str(parent)]
        if nodes > 1:
            arguments += ["--rendezvous", _meet(meeting(run, token), rank)]
        with open(Path(run) / "supervisor.log", "ab") as log:
            self._supervisor = subprocess.Popen(
                [sys.executable, "-m", SUPERVISOR, run, "--token", token, "--executor", "ray", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: die_with_parent(parent),
            )

    async def place(self) -> str:
        """The id of the node that this lives on."""
        return str(ray.get_runtime_context().get_node_id())

    async def end(self) -> int:
        """The supervisor's exit code, when it has ended."""
        return await asyncio.to_thread(self._supervisor.wait)

    async def stop(self) -> None:
        """Ask for a checkpoint and the end."""
        if self._supervisor.poll() is None:
            self._supervisor.send_signal(signal.SIGTERM)

    async def abandon(self) -> None:
        """End the trainers at once: one of the gang is lost, and the others can only wait for it."""
        await self.stop()
        # The supervisor, told that it ends on purpose, gives the lease back when its trainers are gone.
        kill_tagged(self._token)


def meeting(run: str, token: str) -> Path:
    """The file in which the first node of a gang of the run at the path `run` tells the others where to meet."""
    return Path(run) / f"meeting-{token}"


def _meet(meeting: Path, rank: int) -> str:
    """host:port where the gang meets."""
    if rank == 0:
        address = f"{ray.util.get_node_ip_address()}:{_free_port()}"
        aside = meeting.with_name(f".{meeting.name}")
        aside.write_text(address)
        aside.replace(meeting)
        return address
    deadline = time.monotonic() + JOIN_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            return meeting.read_text()
        time.sleep(0.1)
    raise TimeoutError(f"the first node did not say within {JOIN_SECONDS:.0f} s where to meet")


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("", 0))
        return int(listening.getsockname()[1])
