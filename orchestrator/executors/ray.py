"""A Ray cluster: one placement group per run, a gang or nothing; one supervisor per node, as a subprocess of an actor.

torchrun must own the main thread of its process, so the actor starts the supervisor and waits for it. The actors are
detached and named by run and token: they outlive the controller that asked for them, and the next one adopts them. The
processes of a run live no longer than its actor, and the actor no longer than its raylet: a lost node takes its part of
the gang along, and the rest of the gang is ended, since it can only wait for it. Our code travels with the job; the
nodes share the workspace and have installed what the code needs, which is checked before anything starts.
"""

import contextlib
import hashlib
import importlib
import importlib.metadata
import os
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray import PlacementGroupID
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from orchestrator import provenance
from orchestrator.errors import InputError
from orchestrator.executors.contract import Handle, Job, JobState
from orchestrator.executors.ray_member import Member, meeting
from xlstm.records import RunDirectory, Workspace

CHECK_SECONDS = 60.0
GRACE_SECONDS = 60.0
NAMESPACE = "scaling"
PACKAGES = ("analysis", "kernels", "orchestrator", "slurm", "sweeps", "xlstm")
"""What is shipped to the nodes."""
REQUIRED = ("torch", "numpy", "psutil", "pydantic", "tokenizers")
"""What trainers and their supervisors import, and nodes have installed."""
WAITING_AT_ONCE = 16
"""Gangs that may wait for resources in the cluster; the others wait here, so that a thousand cost it nothing."""


@dataclass
class _Gang:
    """The actors of one job, one per node, and the resources they hold together."""

    run: RunDirectory
    members: list[Any]
    group: PlacementGroup | None
    whole: bool = True
    """False for one that had lost a member when it was adopted."""
    places: list[Any] = field(default_factory=list)
    """One reference per member, to the node on which it lives: there once the member is."""
    ends: list[Any] = field(default_factory=list)
    """One reference per member, to its supervisor's exit code."""
    abandoned: bool = False
    lost: bool = False

    def __post_init__(self) -> None:
        self.places = [member.place.remote() for member in self.members]
        self.ends = [member.end.remote() for member in self.members]


@dataclass
class RayExecutor:
    """Runs jobs on the Ray cluster of this process, or on the one at `address`."""

    workspace: Workspace
    address: str | None = None
    name: str = "ray"
    _waiting: deque[Job] = field(default_factory=deque)
    _gangs: dict[str, _Gang] = field(default_factory=dict)
    _begun: set[str] = field(default_factory=set)
    _ended: dict[str, JobState] = field(default_factory=dict)

    def __post_init__(self) -> None:
        connect(self.address)
        self._require_shared_workspace()

    def submit(self, jobs: Sequence[Job]) -> list[Handle]:
        """Ask for the resources of each job; they start as the cluster grants them. InputError for what never fits.

        A run that was carried out here before is waited for, as a cluster may lose nodes and get others.
        """
        for job in jobs:
            if job.run.status().attempt == 0:
                self._require_room(job)
        self._waiting.extend(jobs)
        self._start_some()
        return [Handle(run=job.run, token=job.token, job=job.token) for job in jobs]

    def adopt(self, runs: Sequence[RunDirectory]) -> list[Handle]:
        """Gangs of these runs that outlived their controller; what remains of others is removed."""
        wanted = {self._name(run): run for run in runs}
        groups = {
            one["name"]: PlacementGroup(PlacementGroupID(bytes.fromhex(identity)))
            for identity, one in placement_group_table().items()
            if one["state"] != "REMOVED" and one["name"].rpartition("/")[0] in wanted
        }
        found: dict[str, list[str]] = {}
        for actor in ray.util.list_named_actors(all_namespaces=True):
            gang = actor["name"].rpartition("/")[0]
            if actor["namespace"] == NAMESPACE and gang.rpartition("/")[0] in wanted:
                found.setdefault(gang, []).append(actor["name"])
        handles = []
        for gang, names in sorted(found.items()):
            prefix, _, token = gang.rpartition("/")
            members = [member for name in sorted(names) if (member := _find(name)) is not None]
            whole = len(members) == int(names[0].rpartition("-of-")[2])
            self._gangs[token] = _Gang(wanted[prefix], members, groups.get(gang), whole)
            handles.append(Handle(run=wanted[prefix], token=token, job=token))
        for gang in groups.keys() - found.keys():
            remove_placement_group(groups[gang])
        # Of two gangs of one run, one has its lease, and the other is about to learn that.
        return sorted(handles, key=lambda handle: not _holds(handle))

    def poll(self, handles: Sequence[Handle]) -> list[JobState]:
        """The state of each job, from one look at all of them. A gang that lost a member is ended."""
        references = [end for gang in self._gangs.values() for end in gang.ends]
        done = set(ray.wait(references, num_returns=len(references), timeout=0)[0]) if references else set()
        for token, gang in list(self._gangs.items()):
            self._look(token, gang, done)
        self._start_some()
        return [self._state(handle) for handle in handles]

    def rest(self, seconds: float) -> None:
        """Until a supervisor ends."""
        if ends := [end for gang in self._gangs.values() for end in gang.ends]:
            ray.wait(ends, timeout=seconds)
        else:
            time.sleep(seconds)

    def cancel(self, handles: Sequence[Handle], *, grace_seconds: float = GRACE_SECONDS) -> None:
        """Drop what waits, ask what runs to write a checkpoint, and kill what has not ended when the grace is over."""
        tokens = {handle.job for handle in handles}
        self._ended |= {job.token: JobState.ENDED for job in self._waiting if job.token in tokens}
        self._waiting = deque(job for job in self._waiting if job.token not in tokens)
        gangs = [self._gangs[token] for token in tokens if token in self._gangs]
        ends = []
        for gang in gangs:
            there, _ = ray.wait(gang.places, num_returns=len(gang.places), timeout=0)
            for member, place, end in zip(gang.members, gang.places, gang.ends, strict=True):
                if place in there:
                    member.stop.remote()
                    ends.append(end)
        if ends:
            ray.wait(ends, num_returns=len(ends), timeout=grace_seconds)
        for token in tokens & self._gangs.keys():
            self._close(token, JobState.ENDED)

    def logs(self, handle: Handle) -> list[Path]:
        return handle.run.logs(handle.run.status().attempt)

    def _start_some(self) -> None:
        while self._waiting and len(self._gangs.keys() - self._begun) < WAITING_AT_ONCE:
            job = self._waiting.popleft()
            self._gangs[job.token] = self._start(job)

    def _start(self, job: Job) -> _Gang:
        bundles = self._bundles(job)
        name = f"{self._name(job.run)}/{job.token}"
        group = None
        if len(bundles) > 1:
            group = placement_group(bundles, strategy="STRICT_SPREAD", name=name, lifetime="detached")
        members = [
            ray.remote(Member)
            .options(
                name=f"{name}/{rank}-of-{len(bundles)}",
                namespace=NAMESPACE,
                lifetime="detached",
                num_cpus=bundle.get("CPU", 0),
                num_gpus=bundle.get("GPU", 0),
                max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
                if group
                else "DEFAULT",
            )
            .remote(str(job.run.path), job.token, rank, len(bundles), _arguments(job))
            for rank, bundle in enumerate(bundles)
        ]
        return _Gang(job.run, members, group)

    def _look(self, token: str, gang: _Gang, done: set[Any]) -> None:
        ended = 0
        for rank, end in enumerate(gang.ends):
            if end not in done:
                continue
            try:
                ray.get(end)
            except ray.exceptions.ActorUnavailableError:
                gang.ends[rank] = gang.members[
                    rank
                ].end.remote()  # it does not answer; whether it is dead, Ray finds out
                continue
            except ray.exceptions.RayError:
                gang.lost |= _machine_lost(gang.places[rank])
                gang.whole = False
            ended += 1
        if ended == len(gang.members):
            self._close(token, JobState.LOST if gang.lost else JobState.ENDED)
        elif not gang.whole and not gang.abandoned:
            gang.abandoned = True
            for member in gang.members:
                member.abandon.remote()

    def _state(self, handle: Handle) -> JobState:
        token = handle.job
        if token in self._ended:
            return self._ended[token]
        if token not in self._begun and token in self._gangs:
            there, _ = ray.wait(self._gangs[token].places, num_returns=1, timeout=0)
            if there and _holds(handle):
                self._begun.add(token)
        return JobState.RUNNING if token in self._begun else JobState.WAITING

    def _close(self, token: str, state: JobState) -> None:
        gang = self._gangs.pop(token)
        for member in gang.members:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(member)
        if gang.group is not None:
            remove_placement_group(gang.group)
        meeting(str(gang.run.path), token).unlink(missing_ok=True)
        self._ended[token] = state

    def _name(self, run: RunDirectory) -> str:
        """By which the gangs of a run are found again."""
        return f"{workspace_key(self.workspace)}/{run.run_id}"

    def _bundles(self, job: Job) -> list[dict[str, float]]:
        """What each node of the gang gives: GPUs where the cluster has any and the run takes them, else cores."""
        execution = job.spec.execution
        if execution.device != "cpu" and (ray.cluster_resources().get("GPU", 0) or execution.device == "cuda"):
            return [{"GPU": execution.devices / execution.runs_per_device, "CPU": 1.0}] * execution.nodes
        return [{"CPU": float(execution.devices * (execution.threads_per_rank or 1))}] * execution.nodes

    def _require_room(self, job: Job) -> None:
        bundles = self._bundles(job)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        wide = [node for node in nodes if all(node.get(name, 0) >= need for name, need in bundles[0].items())]
        if len(wide) < len(bundles):
            raise InputError(
                f"{job.run.run_id} asks for {len(bundles)} nodes with {bundles[0]}; "
                f"the cluster has {len(wide)} such nodes"
            )

    def _require_shared_workspace(self) -> None:
        """InputError naming the nodes that do not see what this process writes to the workspace, or lack a library."""
        self.workspace.runs.mkdir(parents=True, exist_ok=True)
        probe = self.workspace.runs / f".probe-{uuid.uuid4().hex}"
        probe.write_text(probe.name)
        try:
            nodes = [node for node in ray.nodes() if node["Alive"]]
            look = ray.remote(_look)
            places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
            looks = [
                look.options(num_cpus=0, max_retries=0, scheduling_strategy=place).remote(str(probe))
                for place in places
            ]
            ray.wait(looks, num_returns=len(looks), timeout=CHECK_SECONDS)
            problems = [_problem(node, seen, self.workspace) for node, seen in zip(nodes, looks, strict=True)]
        finally:
            probe.unlink()
        if found := [problem for problem in problems if problem]:
            raise InputError("\n".join(f"--on ray: {problem}" for problem in found))


def connect(address: str | None) -> None:
    """Join the cluster at `address`, or this machine's, unless this process is in one. InputError if there is none."""
    if ray.is_initialized():
        return
    try:
        with tempfile.TemporaryDirectory() as folder:
            ray.init(
                address=address or "auto",
                namespace=NAMESPACE,
                log_to_driver=False,
                logging_level="warning",
                runtime_env=shipped(Path(folder)),
            )
    except (ConnectionError, ValueError) as error:
        where = address or "this machine"
        said = str(error).splitlines()[0] if isinstance(error, ValueError) else "start one with: ray start --head"
        raise InputError(f"--on ray: no cluster at {where}; {said}") from None


def workspace_key(workspace: Workspace) -> str:
    """What tells the actors of one workspace from those of another."""
    return hashlib.sha256(str(workspace.root).encode()).hexdigest()[:8]


def shipped(folder: Path) -> dict[str, Any]:
    """The runtime environment of everything we start in a cluster: this very code, wherever it lies here.

    `folder` holds what is to be shipped besides, until it was.
    """
    packages = [importlib.import_module(name).__path__[0] for name in PACKAGES]
    packages.append(str(provenance.leave_for_shipping(folder)))
    variables = {"PYTHONSAFEPATH": "1"}  # what lies where a raylet was started is not what was submitted
    if "PYTHONPATH" in os.environ:
        variables["PYTHONPATH"] = os.environ["PYTHONPATH"]
    return {"py_modules": packages, "excludes": ["__pycache__"], "env_vars": variables}


def _versions() -> dict[str, str | None]:
    """Of what a trainer imports; None for what is not installed."""
    found: dict[str, str | None] = {}
    for name in REQUIRED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _look(probe: str) -> tuple[bool, dict[str, str | None]]:
    """What a node sees: whether the probe is there as it was written, and its versions of what trainers import."""
    path = Path(probe)
    return path.exists() and path.read_text() == path.name, _versions()


def _problem(node: dict[str, Any], look: Any, workspace: Workspace) -> str | None:
    """What is wrong with a node, judged by its look around; None if nothing, or if it is gone by now."""
    name = node["NodeManagerHostname"]
    try:
        seen, versions = ray.get(look, timeout=0)
    except ray.exceptions.GetTimeoutError:
        return None if node["NodeID"] in _dead() else f"{name} did not answer within {CHECK_SECONDS:.0f} s"
    except ray.exceptions.RayTaskError as error:
        return f"{name} cannot run this package: {error.cause}"
    except ray.exceptions.RayError as error:
        return None if node["NodeID"] in _dead() else f"{name} cannot start tasks: {str(error).splitlines()[0]}"
    if not seen:
        return f"{name} cannot read {workspace.root}; set SCALING_WORKSPACE to a folder that every node shares"
    if missing := [package for package, version in versions.items() if version is None]:
        return f"{name} lacks {', '.join(missing)}: install there what is installed here"
    if versions["torch"] != (here := _versions()["torch"]):
        return f"{name} has torch {versions['torch']}, here is {here}: results would depend on the node"
    return None


def _holds(handle: Handle) -> bool:
    lease = handle.run.status().lease
    return lease is not None and lease.token == handle.token


def _find(name: str) -> Any | None:
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return None


def _machine_lost(place: Any) -> bool:
    """Whether the node on which a dead member lived is lost too; a member killed alone is its run's fault."""
    try:
        node = ray.get(place, timeout=0)
    except ray.exceptions.RayError:
        return False  # it never began
    deadline = time.monotonic() + 5.0  # the news of the two deaths travel separately
    while node not in _dead():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _dead() -> Iterable[str]:
    return {node["NodeID"] for node in ray.nodes() if not node["Alive"]}


def _arguments(job: Job) -> list[str]:
    arguments = []
    if job.fork is not None:
        arguments += ["--fork-run", job.fork.run_id, "--fork-step", str(job.fork.step)]
    if job.checkpoint_at:
        arguments += ["--checkpoint-at", *map(str, job.checkpoint_at)]
    return arguments
