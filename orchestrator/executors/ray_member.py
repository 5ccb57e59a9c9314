"""One node's part of a worker group on Ray: an actor that starts supervisors as subprocesses, and waits for them.

Everything it started dies with it. It answers while a supervisor runs, also to a controller that did not ask for it.
It imports next to nothing, as the first run waits for that. Supervisors of runs of one rank with one thread are forked
from a server of its own that has imported torch, so that those that come after the first start at once.
"""

import asyncio
import contextlib
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import get_current_placement_group, remove_placement_group

from orchestrator.execution.command import command, free_port
from orchestrator.execution.forks import Forked
from orchestrator.execution.warm import COLD_START_VARIABLE, WarmStart
from xlstm.run.directory import RunDirectory
from xlstm.run.json_files import write_text
from xlstm.run.processes import kill_tagged, start_bound

JOIN_SECONDS = 300.0
"""How long the other nodes of a group wait for the first one's address."""
WATCH_SECONDS = 2.0
"""How often an actor that carries nothing looks whether the controller that asked for it lives."""
LINGER_SECONDS = 15.0
"""How long it stays without one when it has carried a run: the next controller may want to know how that ended."""


class Member:
    """Holds one node's part of a worker group's resources, for one run after another.

    It leaves when it carries nothing and the controller that asked for it is gone. `asker` holds an object which that
    controller owns: with its process, the object is lost. In a list, so that nobody waits for it.
    """

    def __init__(self, asker: list[Any]) -> None:
        self._me = ray.get_runtime_context().current_actor
        self._placement = get_current_placement_group()
        self._asker = asker[0]
        self._job: tuple[str, str] | None = None
        self._supervisor: subprocess.Popen[bytes] | Forked | None = None
        self._asked_to_stop = False
        self._warm: WarmStart | None = None
        self._idle_since: float | None = -math.inf
        """On the monotonic clock; None while it carries a run."""
        threading.Thread(target=self._watch, daemon=True).start()

    async def place(self) -> str:
        """The id of the node that this lives on."""
        return str(ray.get_runtime_context().get_node_id())

    async def carry(self, run: str, token: str, rank: int, nodes: int, arguments: list[str], forked: bool) -> int:
        """Be rank `rank` of the `nodes` supervisors, told `arguments`, of one attempt of the run at `run`; as `end`.

        `forked`: the run is such as a server of warm starts makes.
        """
        self._idle_since = None
        self._job, self._supervisor, self._asked_to_stop = (run, token), None, False
        directory = RunDirectory(Path(run))
        meeting = await asyncio.to_thread(_meet, directory.meeting_file(token), rank) if nodes > 1 else ""
        supervisor: subprocess.Popen[bytes] | Forked | None = None
        if forked and not os.environ.get(COLD_START_VARIABLE):
            supervisor = await self._fork(arguments, directory.supervisor_log)
        if supervisor is None:
            line = command(arguments, node_rank=rank, rendezvous=meeting, parent=os.getpid())
            supervisor = start_bound(line, directory.supervisor_log)
        self._supervisor = supervisor
        if self._asked_to_stop:
            await self.stop(token)
        return await self.end()

    async def carried(self) -> tuple[str, str] | None:
        """The path and the token of what this carries, or carried last."""
        return self._job

    async def end(self) -> int:
        """The supervisor's exit code, when it has ended."""
        while (supervisor := self._supervisor) is None:
            await asyncio.sleep(0.1)  # it waits for the first node of the group
        code = await asyncio.to_thread(supervisor.wait)
        if supervisor is self._supervisor:
            self._idle_since = time.monotonic()
        return code

    async def stop(self, token: str) -> None:
        """If this carries the job with that token, ask for a checkpoint and the end, as soon as it has begun."""
        if not self._carries(token):
            return
        self._asked_to_stop = True
        if self._supervisor is not None and self._supervisor.poll() is None:
            self._supervisor.send_signal(signal.SIGTERM)

    async def abandon(self, token: str) -> None:
        """End the trainers at once: one of the group is lost, and the others can only wait for it."""
        await self.stop(token)
        # The supervisor, told that it ends on purpose, gives the lease back when its trainers are gone.
        kill_tagged(token)

    async def leave(self, token: str) -> None:
        """If the job with that token was the last, end, and the group with it."""
        if self._carries(token):
            self._end_group()

    async def _fork(self, arguments: list[str], log: Path) -> Forked | None:
        """A supervisor with torch imported; None where the server that makes them has ended."""
        # The server dies with the thread that starts it: in this one, which lasts.
        self._warm = self._warm or WarmStart()
        try:
            return await asyncio.to_thread(self._warm.supervise, arguments, dict(os.environ), log)
        except (ConnectionError, TimeoutError) as error:
            print(f"{error}; a supervisor is started without it", file=sys.stderr)
            self._warm.close()
            self._warm = None
            return None

    def _carries(self, token: str) -> bool:
        return self._job is not None and self._job[1] == token

    def _watch(self) -> None:
        while True:
            idle = self._idle_since
            if idle is not None and time.monotonic() - idle > LINGER_SECONDS and not self._is_wanted():
                self._leave()
            time.sleep(WATCH_SECONDS)

    def _is_wanted(self) -> bool:
        try:
            ray.get(self._asker, timeout=WATCH_SECONDS)
        except ray.exceptions.GetTimeoutError:
            return True  # it is busy
        except ray.exceptions.RayError:
            return False
        return True

    def _leave(self) -> None:
        """End; the group too, unless the others have still something to do."""
        if self._job is not None:
            path, token = self._job
            if RunDirectory(Path(path)).status().is_held_by(token):
                ray.kill(self._me)
                return
        self._end_group()

    def _end_group(self) -> None:
        if self._placement is not None:
            remove_placement_group(self._placement)
        ray.kill(self._me)


def _meet(meeting: Path, rank: int) -> str:
    """host:port where the group meets."""
    if rank == 0:
        address = f"{ray.util.get_node_ip_address()}:{free_port()}"
        write_text(meeting, address, durably=False)
        return address
    deadline = time.monotonic() + JOIN_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            return meeting.read_text()
        time.sleep(0.1)
    raise TimeoutError(f"the first node did not say within {JOIN_SECONDS:.0f} s where to meet")
