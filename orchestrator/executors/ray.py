"""A Ray cluster: a gang holds a placement group, all of it or nothing, and carries one run after another in it.

A gang has an actor on each node. torchrun must own the main thread of its process, so an actor starts the supervisor as
a subprocess and waits for it. A gang whose run has ended takes the next one that needs the same, and is given back when
the next one needs something else. The actors are detached: they outlive the controller that asked for them, and the
next one asks them what they carry. The processes of a run live no longer than its actors, and those no longer than
their raylets: a lost node takes its part of the gang along, and the rest of the gang is ended, since it can only wait
for it. Our code travels with the job; the nodes share the workspace and have installed what the code needs, which is
checked before anything starts.
"""

import contextlib
import hashlib
import importlib
import importlib.metadata
import os
import tempfile
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
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
from orchestrator.execution.command import arguments
from orchestrator.executors.ray_member import Member
from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.executor import ENDING_SECONDS, Handle, Job, JobState

CHECK_SECONDS = 60.0
NAMESPACE = "scaling"
PACKAGES = ("analysis", "kernels", "orchestrator", "slurm", "sweeps", "xlstm")
"""What is shipped to the nodes."""
REQUIRED = ("torch", "numpy", "psutil", "pydantic", "tokenizers")
"""What trainers and their supervisors import, and nodes have installed."""
ASKED_AT_ONCE = 16
"""Gangs that may wait for resources in the cluster; other jobs wait here, so that a thousand cost it nothing."""
ANSWER_SECONDS = 5.0
"""How long actors may take to tell the next controller what they carry; those that wait for resources cannot tell."""


@dataclass(frozen=True)
class _Need:
    """What a job asks for: so much of each of so many nodes."""

    nodes: int
    cpus: float
    gpus: float = 0.0

    @property
    def bundle(self) -> dict[str, float]:
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


@dataclass(frozen=True)
class _Waiting:
    job: Job
    need: _Need


@dataclass
class _Gang:
    """Actors that hold the resources of a job, one per node, and carry one job after another."""

    members: list[Any]
    group: PlacementGroup | None
    need: _Need | None
    """None for one that another controller asked for: it is left when its job has ended."""
    run: RunDirectory | None = None
    token: str = ""
    """Of the job that it carries; nothing if it carries none."""
    ends: list[Any] = field(default_factory=list)
    """One reference per member, to its supervisor's exit code."""
    jobs: int = 0
    whole: bool = True
    abandoned: bool = False
    lost: bool = False

    def __post_init__(self) -> None:
        self.places = [member.place.remote() for member in self.members]
        """One reference per member, to the node on which it lives: there once the member is."""

    def carry(self, job: Job) -> None:
        """Start the supervisors of a job."""
        self.run, self.token = job.run, job.token
        self.jobs += 1
        self.ends = [
            member.carry.remote(str(job.run.path), job.token, rank, len(self.members), arguments(job, "ray"))
            for rank, member in enumerate(self.members)
        ]


@dataclass
class RayExecutor:
    """Runs jobs on the Ray cluster of this process, or on the one at `address`."""

    workspace: Workspace
    address: str | None = None
    name: str = "ray"
    _waiting: deque[_Waiting] = field(default_factory=deque)
    _free: list[_Gang] = field(default_factory=list)
    """Gangs that carry nothing: most of them wait for resources."""
    _carrying: dict[str, _Gang] = field(default_factory=dict)
    """By the token of the job."""
    _begun: set[str] = field(default_factory=set)
    _ended: dict[str, JobState] = field(default_factory=dict)

    def __post_init__(self) -> None:
        connect(self.address)
        self._alive = ray.put(None)
        """Lost with this process, by which actors that carry nothing learn of it."""
        self._require_shared_workspace()

    def submit(self, jobs: Sequence[Job]) -> list[Handle]:
        """Ask for the resources of each job; they start as the cluster grants them. InputError for what never fits.

        A run that was carried out here before is waited for, as a cluster may lose nodes and get others.
        """
        waiting = [_Waiting(job, _need(job)) for job in jobs]
        for one in waiting:
            if one.job.run.status().attempt == 0:
                _require_room(one)
        self._waiting.extend(waiting)
        self._hand_out()
        return [Handle(run=job.run, token=job.token, job=job.token) for job in jobs]

    def adopt(self, runs: Sequence[RunDirectory]) -> list[Handle]:
        """The jobs of these runs that outlived their controller. Gangs of it that carry nothing leave by themselves."""
        wanted = {str(run.path): run for run in runs}
        groups = {
            one["name"]: PlacementGroup(PlacementGroupID(bytes.fromhex(identity)))
            for identity, one in placement_group_table().items()
            if one["state"] != "REMOVED" and one["name"].startswith(self._prefix)
        }
        gangs: dict[str, list[Any]] = {}
        sizes = {}
        for actor in ray.util.list_named_actors(all_namespaces=True):
            name, _, place = actor["name"].rpartition("/")
            if actor["namespace"] == NAMESPACE and name.startswith(self._prefix):
                gangs.setdefault(name, []).append(_find(actor["name"]))
                sizes[name] = int(place.rpartition("-of-")[2])
        for name in groups.keys() - gangs.keys():
            remove_placement_group(groups[name])
        there = {name: [member for member in members if member is not None] for name, members in gangs.items()}
        told = {name: [member.carried.remote() for member in members] for name, members in there.items()}
        if answers := [answer for answers in told.values() for answer in answers]:
            ray.wait(answers, num_returns=len(answers), timeout=ANSWER_SECONDS)
        handles = []
        for name, members in there.items():
            jobs = [_told(answer) for answer in told[name]]
            path, token = next((job for job in jobs if job is not None), ("", ""))
            if path not in wanted:
                continue
            gang = _Gang(members, groups.get(name), need=None, run=wanted[path], token=token)
            gang.whole = jobs == [(path, token)] * sizes[name]
            gang.ends = [member.end.remote() for member in members]
            self._carrying[token] = gang
            handles.append(Handle(run=wanted[path], token=token, job=token))
        # Of two gangs of one run, one has its lease, and the other is about to learn that.
        return sorted(handles, key=lambda handle: not _holds(handle))

    def poll(self, handles: Sequence[Handle]) -> list[JobState]:
        """The state of each job, from one look at all of them. A gang that lost a member is ended."""
        references = [end for gang in self._carrying.values() for end in gang.ends]
        done = set(ray.wait(references, num_returns=len(references), timeout=0)[0]) if references else set()
        for gang in list(self._carrying.values()):
            self._look(gang, done)
        self._hand_out()
        return [self._state(handle) for handle in handles]

    def rest(self, seconds: float) -> None:
        """Until a supervisor ends or a gang has got its resources."""
        awaited = [end for gang in self._carrying.values() for end in gang.ends]
        awaited += [place for gang in self._free for place in gang.places]
        if awaited:
            ray.wait(awaited, timeout=seconds)
        else:
            time.sleep(seconds)

    def cancel(self, handles: Sequence[Handle], *, grace_seconds: float = ENDING_SECONDS) -> None:
        """Drop what waits, ask what runs to write a checkpoint, and kill what has not ended when the grace is over."""
        tokens = {handle.job for handle in handles}
        self._ended |= {one.job.token: JobState.ENDED for one in self._waiting if one.job.token in tokens}
        self._waiting = deque(one for one in self._waiting if one.job.token not in tokens)
        gangs = [self._carrying[token] for token in tokens if token in self._carrying]
        for gang in gangs:
            for member in gang.members:
                member.stop.remote(gang.token)
        if ends := [end for gang in gangs for end in gang.ends]:
            ray.wait(ends, num_returns=len(ends), timeout=grace_seconds)
        for gang in gangs:
            self._end(gang, JobState.ENDED)
        self._hand_out()

    @property
    def _prefix(self) -> str:
        """By which the gangs of a workspace are found again."""
        return f"{workspace_key(self.workspace)}/gang/"

    def _hand_out(self) -> None:
        """Give gangs that have their resources to jobs, ask for gangs for the next ones, give back what is too much."""
        places = [place for gang in self._free for place in gang.places]
        there = set(ray.wait(places, num_returns=len(places), timeout=0)[0]) if places else set()
        asked: dict[_Need, list[_Gang]] = {}
        for gang in self._free:
            assert gang.need is not None
            granted = there.issuperset(gang.places)
            if granted and (one := next((one for one in self._waiting if one.need == gang.need), None)):
                self._waiting.remove(one)
                gang.carry(one.job)
                self._carrying[one.job.token] = gang
            else:
                asked.setdefault(gang.need, []).append(gang)
        soon = Counter(one.need for one in islice(self._waiting, ASKED_AT_ONCE))
        for need, gangs in asked.items():
            for gang in gangs[soon[need] :]:
                self._give_back(gang)
        self._free = [gang for need, gangs in asked.items() for gang in gangs[: soon[need]]]
        for need, count in soon.items():
            self._free += [self._ask(need) for _ in range(count - len(asked.get(need, [])))]

    def _ask(self, need: _Need) -> _Gang:
        name = f"{self._prefix}{uuid.uuid4().hex}"
        bundles = [need.bundle] * need.nodes
        group = placement_group(bundles, strategy="STRICT_SPREAD", name=name, lifetime="detached")
        members = [
            ray.remote(Member)
            .options(
                name=f"{name}/{rank}-of-{need.nodes}",
                namespace=NAMESPACE,
                lifetime="detached",
                num_cpus=need.cpus,
                num_gpus=need.gpus,
                max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
            )
            .remote([self._alive])
            for rank in range(need.nodes)
        ]
        return _Gang(members, group, need)

    def _look(self, gang: _Gang, done: set[Any]) -> None:
        assert gang.run is not None
        ended = 0
        for rank, end in enumerate(gang.ends):
            if end not in done:
                continue
            try:
                ray.get(end)
            except ray.exceptions.ActorUnavailableError:
                # It does not answer; whether it is dead, Ray finds out.
                gang.ends[rank] = gang.members[rank].end.remote()
                continue
            except ray.exceptions.RayError:
                # One that was lost between two jobs is not the fault of the second.
                unused = gang.jobs > 1 and not _was_begun(gang.run, gang.token)
                gang.lost |= unused or _machine_lost(gang.places[rank])
                gang.whole = False
            ended += 1
        if ended == len(gang.members):
            self._end(gang, JobState.LOST if gang.lost else JobState.ENDED)
        elif not gang.whole and not gang.abandoned:
            gang.abandoned = True
            for member in gang.members:
                member.abandon.remote(gang.token)

    def _state(self, handle: Handle) -> JobState:
        token = handle.job
        if token in self._ended:
            return self._ended[token]
        if token not in self._begun and token in self._carrying and _holds(handle):
            self._begun.add(token)
        return JobState.RUNNING if token in self._begun else JobState.WAITING

    def _end(self, gang: _Gang, state: JobState) -> None:
        """The job has ended; its gang takes the next one if that needs the same."""
        assert gang.run is not None
        del self._carrying[gang.token]
        self._ended[gang.token] = state
        gang.run.meeting_file(gang.token).unlink(missing_ok=True)
        if gang.whole and state is JobState.ENDED and self._waiting and self._waiting[0].need == gang.need:
            self._free.insert(0, gang)
        else:
            self._give_back(gang)

    def _give_back(self, gang: _Gang) -> None:
        if gang.need is None and gang.whole:
            # The controller that asked for it may be alive, and have given it the next job.
            leaving = [member.leave.remote(gang.token) for member in gang.members]
            ray.wait(leaving, num_returns=len(leaving), timeout=ANSWER_SECONDS)
            return
        for member in gang.members:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(member)
        if gang.group is not None:
            remove_placement_group(gang.group)

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


def _need(job: Job) -> _Need:
    """GPUs where the cluster has any and the run takes them, else cores."""
    execution = job.spec.execution
    if execution.device != "cpu" and (ray.cluster_resources().get("GPU", 0) or execution.device == "cuda"):
        return _Need(execution.nodes, cpus=1.0, gpus=execution.devices / execution.runs_per_device)
    return _Need(execution.nodes, cpus=float(execution.devices * (execution.threads_per_rank or 1)))


def _require_room(one: _Waiting) -> None:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    wide = [node for node in nodes if all(node.get(name, 0) >= need for name, need in one.need.bundle.items())]
    if len(wide) < one.need.nodes:
        raise InputError(
            f"{one.job.run.run_id} asks for {one.need.nodes} nodes with {one.need.bundle}; "
            f"the cluster has {len(wide)} such nodes"
        )


def _told(answer: Any) -> tuple[str, str] | None:
    """What an actor said that it carries: a run's path and a token. None for nothing, and for no answer."""
    try:
        told: tuple[str, str] | None = ray.get(answer, timeout=0)
        return told
    except ray.exceptions.RayError:
        return None


def _was_begun(run: RunDirectory, token: str) -> bool:
    """Whether a supervisor with this token has taken the run, now or for its last attempt."""
    status = run.status()
    launch = run.launch(status.attempt)
    return token in (status.lease.token if status.lease else None, launch.token if launch else None)


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
