"""The command line of a supervisor, one per node of an attempt, the same for every engine; and where the nodes meet.

Imports nothing of ours: what runs it has to start at once.
"""

import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xlstm.run.executor import Job

SUPERVISOR = "orchestrator.execution.supervisor"


def arguments(job: "Job", executor: str, *, whole_devices: bool = False) -> list[str]:
    """What every supervisor of an attempt is told: the run, the token of its lease, and what it shares with others.

    `whole_devices`: the engine hands out no parts of a device.
    """
    told = [str(job.run.path), "--token", job.token, "--executor", executor]
    if whole_devices:
        told.append("--whole-devices")
    if job.fork is not None:
        told += ["--fork-run", job.fork.run_id, "--fork-step", str(job.fork.step)]
    if job.checkpoint_at:
        told += ["--checkpoint-at", *map(str, job.checkpoint_at)]
    return told


def command(told: Sequence[str], *, node_rank: int = 0, rendezvous: str = "", parent: int | None = None) -> list[str]:
    """The command line that starts a supervisor on this node, from the `arguments` of its attempt.

    `rendezvous` is host:port on the first node, for a run of several; `parent` the process that it dies with. What
    lies in the working directory under the names of our packages is not looked into (`-P`).
    """
    line = [sys.executable, "-P", "-m", SUPERVISOR, *told, "--node-rank", str(node_rank)]
    if rendezvous:
        line += ["--rendezvous", rendezvous]
    if parent is not None:
        line += ["--parent", str(parent)]
    return line


def free_port() -> int:
    """A port nobody listens on. Taken anew for every attempt; the lease's token keeps out whoever met here before."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port
