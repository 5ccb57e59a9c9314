"""A Ray cluster inside a Slurm allocation, for as long as one command runs: the other way to use a cluster.

    sbatch --nodes=4 --gpus-per-node=8 --time=12:00:00 --wrap \\
        "python -m slurm.ray -- scaling submit SWEEP.yaml --on ray"

One srun starts Ray on every node, the head on the first. The command runs on the first node with RAY_ADDRESS set; when
it ends, however it ends, Ray ends with it.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from orchestrator.execution.command import free_port
from slurm import commands
from slurm.job import first_node

START_SECONDS = 300.0


class RayStartError(RuntimeError):
    """Ray did not come up on every node."""


def _agree_on_authentication() -> None:
    """Settle, for all that is started from here, whether Ray asks for a token; what the user has set stands.

    `ray start --head` asks for one wherever a token is kept, but who joins by an address does not know that.
    """
    kept = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    known = "RAY_AUTH_TOKEN" in os.environ or kept.exists()
    os.environ.setdefault("RAY_AUTH_MODE", "token" if known else "disabled")


@contextlib.contextmanager
def ray_cluster(nodes: int) -> Iterator[str]:
    """Ray on all nodes of this allocation; yields its address. RayStartError where not every node joins in time."""
    _agree_on_authentication()
    port = free_port()
    address = f"{socket.gethostbyname(first_node())}:{port}"
    layout = [f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--overlap", "--wait=0"]
    environment = os.environ | {"RAY_ADDRESS": address}
    node = [sys.executable, "-m", "slurm.ray", "--node", address]
    with subprocess.Popen(["srun", *layout, *node], stdin=subprocess.DEVNULL, env=environment) as srun:
        try:
            _wait_for_nodes(srun, address, nodes)
            yield address
        finally:
            srun.terminate()


def _wait_for_nodes(srun: subprocess.Popen[bytes], address: str, nodes: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    count = (
        "import ray; ray.init(log_to_driver=False, logging_level='error'); print(sum(n['Alive'] for n in ray.nodes()))"
    )
    while True:
        asked = subprocess.run(
            [sys.executable, "-c", count],
            env=os.environ | {"RAY_ADDRESS": address, "RAY_gcs_server_port_wait_time_s": "20"},
            capture_output=True,
            text=True,
            check=False,
        )
        if asked.stdout.split()[-1:] == [str(nodes)]:
            return
        if srun.poll() is not None or time.monotonic() > deadline:
            words = (asked.stderr.strip().splitlines() or ["no answer"])[-1]
            raise RayStartError(f"Ray did not come up on {nodes} nodes: {words}")
        time.sleep(1.0)


def _be_a_node(address: str) -> None:
    """Become Ray's process of this node."""
    port = address.rpartition(":")[2]
    head = os.environ["SLURM_PROCID"] == "0"
    where = ["--head", f"--port={port}", "--include-dashboard=false"] if head else [f"--address={address}"]
    ray = shutil.which("ray", path=os.path.dirname(sys.executable)) or "ray"
    cpus = os.environ.get("SLURM_CPUS_PER_TASK", os.environ.get("SLURM_CPUS_ON_NODE", "1"))
    if not head:
        _wait_for_head(address)
    kept = commands.environment(os.environ)
    kept.pop("RAY_ADDRESS", None)
    kept.setdefault("RAY_gcs_server_port_wait_time_s", f"{START_SECONDS:.0f}")  # instead of 30, for a busy node
    os.execve(ray, [ray, "start", "--block", "--disable-usage-stats", f"--num-cpus={cpus}", *where], kept)


def _wait_for_head(address: str) -> None:
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with socket.socket() as client:
            if client.connect_ex((host, int(port))) == 0:
                return
        time.sleep(0.5)


def run(command: Sequence[str], nodes: int) -> int:
    """Run a command beside a Ray cluster on all nodes of this allocation. Returns its exit code."""
    with ray_cluster(nodes) as address:
        print(f"Ray runs on {nodes} nodes at {address}", flush=True)
        environment = commands.environment(os.environ) | {"RAY_ADDRESS": address}
        with subprocess.Popen(command, env=environment) as child:

            def forward(number: int, frame: FrameType | None) -> None:
                child.send_signal(number)

            for number in (signal.SIGTERM, signal.SIGUSR2):
                signal.signal(number, forward)
            return child.wait()


def main() -> int:
    if sys.argv[1:2] == ["--node"]:
        _be_a_node(sys.argv[2])
    if sys.argv[1:2] != ["--"] or not sys.argv[2:]:
        print("usage, inside an allocation: python -m slurm.ray -- COMMAND …", file=sys.stderr)
        return 2
    if "SLURM_JOB_ID" not in os.environ:
        print("this is no Slurm job: start it with sbatch or from salloc", file=sys.stderr)
        return 2
    try:
        return run(sys.argv[2:], int(os.environ["SLURM_JOB_NUM_NODES"]))
    except RayStartError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
