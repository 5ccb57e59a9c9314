"""A Ray cluster: one placement group per run, a gang or nothing; one supervisor per node, as a subprocess of a task.

torchrun must own the main thread of its process, so the task starts the supervisor and waits. Everything dies with the
task's worker, the worker with its raylet: a lost node takes its part of the gang along, and the rest of the gang is
ended, since it can only wait for it. The nodes share the workspace, which is checked before anything starts.
"""

import contextlib
import os
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from orchestrator import supervisor
from orchestrator.errors import InputError
from orchestrator.executors.contract import Handle, Job, JobState
from xlstm.processes import die_with_parent
from xlstm.records import RunDirectory, Workspace

CHECK_SECONDS = 60.0
GRACE_SECONDS = 60.0
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass
class _Gang:
    """The tasks of one job, one per node, and the resources they hold together."""

    group: PlacementGroup
    tasks: list[Any]
    meeting: Path
    ending: bool = False


@dataclass
class RayExecutor:
    """Runs jobs on the Ray cluster of this process, or on the one at `address`."""

    workspace: Workspace
    address: str | None = None
    name: str = "ray"
    _gangs: dict[str, _Gang] = field(default_factory=dict)
    _ended: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        if not ray.is_initialized():
            try:
                ray.init(
                    address=self.address or "auto",
                    log_to_driver=False,
                    logging_level="warning",
                    runtime_env={"env_vars": {"PYTHONPATH": str(REPOSITORY)}},
                )
            except ConnectionError:
                where = self.address or "this machine"
                raise InputError(f"--on ray: no cluster at {where}; start one with: ray start --head") from None
        self._require_shared_workspace()

    def submit(self, jobs: Sequence[Job]) -> list[Handle]:
        """Ask for the resources of each job; they start as the cluster grants them. InputError for what never fits."""
        shapes = [self._bundles(job) for job in jobs]
        for job, bundles in zip(jobs, shapes, strict=True):
            self._require_room(job, bundles)
        for job, bundles in zip(jobs, shapes, strict=True):
            group = placement_group(bundles, strategy="STRICT_SPREAD" if len(bundles) > 1 else "PACK")
            meeting = job.run.path / f"meeting-{job.token}"
            tasks = [
                ray.remote(_carry_out)
                .options(
                    num_cpus=bundle.get("CPU", 0),
                    num_gpus=bundle.get("GPU", 0),
                    max_retries=0,
                    name=f"{job.run.run_id}-node-{rank}",
                    scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
                )
                .remote(str(job.run.path), job.token, rank, len(bundles), _arguments(job), str(meeting))
                for rank, bundle in enumerate(bundles)
            ]
            self._gangs[job.token] = _Gang(group, tasks, meeting)
        return [Handle(run=job.run, token=job.token, job=job.token) for job in jobs]

    def poll(self, handles: Sequence[Handle]) -> list[JobState]:
        """The state of each job, from one query for all tasks. A gang that lost a node is ended."""
        tasks = [task for gang in self._gangs.values() for task in gang.tasks]
        done = set(ray.wait(tasks, num_returns=len(tasks), timeout=0)[0]) if tasks else set()
        for token, gang in list(self._gangs.items()):
            finished = [task for task in gang.tasks if task in done]
            if len(finished) == len(gang.tasks):
                self._close(token)
            elif finished and not gang.ending and any(_was_lost(task) for task in finished):
                gang.ending = True
                for task in gang.tasks:
                    if task not in done:
                        ray.cancel(task)
        return [self._state(handle) for handle in handles]

    def cancel(self, handles: Sequence[Handle], *, grace_seconds: float = GRACE_SECONDS) -> None:
        """Interrupt the tasks, which ask for checkpoints; what outlives the grace ends with its placement group."""
        gangs = {handle.job: self._gangs[handle.job] for handle in handles if handle.job in self._gangs}
        tasks = [task for gang in gangs.values() for task in gang.tasks]
        for task in tasks:
            ray.cancel(task)
        # A cancelled task counts as done at once; its supervisor still writes a checkpoint, and says so by its lease.
        deadline = time.monotonic() + grace_seconds
        while any(_holds(handle) for handle in handles) and time.monotonic() < deadline:
            time.sleep(0.2)
        for token in gangs:
            self._close(token)

    def logs(self, handle: Handle) -> list[Path]:
        return handle.run.logs(handle.run.status().attempt)

    def _state(self, handle: Handle) -> JobState:
        if handle.job in self._ended:
            return JobState.ENDED
        return JobState.RUNNING if _holds(handle) else JobState.WAITING

    def _close(self, token: str) -> None:
        gang = self._gangs.pop(token)
        remove_placement_group(gang.group)
        gang.meeting.unlink(missing_ok=True)
        self._ended.add(token)

    def _bundles(self, job: Job) -> list[dict[str, float]]:
        """What each node of the gang gives: GPUs where the cluster has any and the run takes them, else cores."""
        execution = job.spec.execution
        if execution.device != "cpu" and (ray.cluster_resources().get("GPU", 0) or execution.device == "cuda"):
            return [{"GPU": float(execution.devices), "CPU": 1.0}] * execution.nodes
        return [{"CPU": float(execution.devices * (execution.threads_per_rank or 1))}] * execution.nodes

    def _require_room(self, job: Job, bundles: Sequence[dict[str, float]]) -> None:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        wide = [node for node in nodes if all(node.get(name, 0) >= need for name, need in bundles[0].items())]
        if len(wide) < len(bundles):
            raise InputError(
                f"{job.run.run_id} asks for {len(bundles)} nodes with {bundles[0]}; "
                f"the cluster has {len(wide)} such nodes"
            )

    def _require_shared_workspace(self) -> None:
        """InputError naming the nodes that do not see what this process writes to the workspace."""
        self.workspace.runs.mkdir(parents=True, exist_ok=True)
        probe = self.workspace.runs / f".probe-{uuid.uuid4().hex}"
        probe.write_text(probe.name)
        try:
            nodes = [node for node in ray.nodes() if node["Alive"]]
            look = ray.remote(_sees)
            places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
            looks = [look.options(num_cpus=0, scheduling_strategy=place).remote(str(probe)) for place in places]
            seen = ray.get(looks, timeout=CHECK_SECONDS)
        finally:
            probe.unlink()
        blind = [node["NodeManagerHostname"] for node, sees in zip(nodes, seen, strict=True) if not sees]
        if blind:
            raise InputError(
                f"--on ray: {', '.join(blind)} cannot read {self.workspace.root}; "
                "set SCALING_WORKSPACE to a folder that every node shares"
            )


def _sees(probe: str) -> bool:
    path = Path(probe)
    return path.exists() and path.read_text() == path.name


def _carry_out(run: str, token: str, rank: int, nodes: int, arguments: list[str], meeting: str) -> int:
    """One node's part of a gang: start the supervisor, wait for it, and hand an interruption on to it."""
    if nodes > 1 and rank == 0:
        Path(meeting).write_text(f"{ray.util.get_node_ip_address()}:{_free_port()}")
    arguments = [*arguments, "--node-rank", str(rank), "--parent", str(os.getpid())]
    if nodes > 1:
        arguments += ["--rendezvous", _read_meeting(Path(meeting))]
    parent = os.getpid()
    with open(Path(run) / "supervisor.log", "ab") as log:
        process = subprocess.Popen(
            supervisor.command(RunDirectory(Path(run)), token, "ray", arguments=arguments),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])},
            start_new_session=True,
            preexec_fn=lambda: die_with_parent(parent),
        )
    try:
        while True:
            # In short waits: an interruption of Ray's is seen between two of them, never within one.
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(timeout=0.5)
    except KeyboardInterrupt:
        process.send_signal(signal.SIGTERM)
        return process.wait()


def _holds(handle: Handle) -> bool:
    lease = handle.run.status().lease
    return lease is not None and lease.token == handle.token


def _read_meeting(meeting: Path) -> str:
    deadline = time.monotonic() + supervisor.JOIN_SECONDS
    while time.monotonic() < deadline:
        if meeting.exists() and (text := meeting.read_text()):
            return text
        time.sleep(0.1)
    raise TimeoutError(f"the first node did not say within {supervisor.JOIN_SECONDS:.0f} s where to meet")


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("", 0))
        return int(listening.getsockname()[1])


def _was_lost(task: Any) -> bool:
    """Whether a finished task ended without its supervisor's exit code: its worker or node died."""
    try:
        ray.get(task)
    except ray.exceptions.RayError:
        return True
    return False


def _arguments(job: Job) -> list[str]:
    arguments = []
    if job.fork is not None:
        arguments += ["--fork-run", job.fork.run_id, "--fork-step", str(job.fork.step)]
    if job.checkpoint_at:
        arguments += ["--checkpoint-at", *map(str, job.checkpoint_at)]
    return arguments
