"""The controller of a sweep on a Ray cluster, as a detached actor: whoever submitted may leave.

The actor keeps one process alive, `scaling submit SWEEP --on ray` on the sweep as it was kept, until the sweep has
ended. Ray restarts the actor when it dies, on another node if need be; the actor restarts the process. Each new
controller adopts the worker groups of the one before, which have gone on meanwhile.
"""

import os
import subprocess
import threading
import time
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.execution.detached import submission
from orchestrator.executors.ray_runtime import NAMESPACE, connect, workspace_key
from orchestrator.standing.status import look
from xlstm.run.directory import WORKSPACE_VARIABLE, Workspace
from xlstm.run.processes import start_bound

PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
_CARRIED = ("MLFLOW_TRACKING_URI",)
"""Variables of whoever submits that the controller sees too."""
_ENDED_BY_ITSELF = (0, 2, 130)
"""Exit codes after which nothing is left to do here: done, bad input, stopped by somebody."""


class Keeper:
    """Keeps the controller of the sweep `sweep` alive until the sweep has ended, then ends itself."""

    def __init__(self, workspace: str, sweep: str, environment: dict[str, str]) -> None:
        self._workspace, self._sweep, self._environment = Workspace(Path(workspace)), sweep, environment
        self._again = False
        self._lock = threading.Lock()
        self._me = ray.get_runtime_context().current_actor
        threading.Thread(target=self._keep, name="keeper", daemon=True).start()

    def again(self) -> None:
        """The sweep was submitted once more: when the controller ends, look again for what is missing."""
        with self._lock:
            self._again = True

    def place(self) -> str:
        """The id of the node that this lives on."""
        return str(ray.get_runtime_context().get_node_id())

    def _keep(self) -> None:
        pause = PAUSE_SECONDS
        while True:
            started = time.monotonic()
            code = self._start().wait()
            with self._lock:
                if not self._again and self._is_over(code):
                    ray.kill(self._me)
                    return
                self._again = False
            if time.monotonic() - started > LONGEST_PAUSE_SECONDS:
                pause = PAUSE_SECONDS
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _is_over(self, code: int) -> bool:
        return code in _ENDED_BY_ITSELF or all(state.ended for state in look(self._workspace, self._sweep).counts)

    def _start(self) -> subprocess.Popen[bytes]:
        told = {
            WORKSPACE_VARIABLE: str(self._workspace.root),
            "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        }
        command = submission(self._workspace, self._sweep, "ray")
        log = self._workspace.sweep(self._sweep).submission_log
        return start_bound(command, log, os.environ | self._environment | told)


def keep(workspace: Workspace, sweep: str, address: str | None) -> bool:
    """Have the cluster carry out a kept sweep. False if it does so already, and was told to look again when it is done.

    InputError where there is no cluster.
    """
    connect(address)
    name = f"{workspace_key(workspace)}/controller of {sweep}"
    try:
        ray.get(ray.get_actor(name, namespace=NAMESPACE).again.remote())
        return False
    except (ValueError, ray.exceptions.RayActorError):
        pass
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    keeper = (
        ray.remote(Keeper)
        .options(
            name=name, namespace=NAMESPACE, lifetime="detached", num_cpus=0, max_restarts=-1, scheduling_strategy=here
        )
        .remote(str(workspace.root), sweep, {name: os.environ[name] for name in _CARRIED if name in os.environ})
    )
    ray.get(keeper.place.remote())
    return True
