"""Worker groups on a Ray cluster: actors, one per node, that hold the placement group of a job and carry it.

Actors and placement groups are detached: they outlive the controller that asked for them, and the next one asks them
what they carry.
"""

import contextlib
import time
import uuid
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import PlacementGroupID
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orchestrator.errors import InputError
from orchestrator.execution.command import arguments
from orchestrator.execution.warm import can_be_forked
from orchestrator.executors.ray_member import Member
from orchestrator.executors.ray_runtime import NAMESPACE, dead_nodes
from xlstm.run.directory import RunDirectory
from xlstm.run.executor import Job
from xlstm.run.spec import Execution

ANSWER_SECONDS = 5.0
"""How long actors may take to tell the next controller what they carry; those that wait for resources cannot tell."""
LATE_ANSWER_SECONDS = 60.0
"""How long they may take where that leaves a run that is held without an actor, or a group with some of its actors."""


@dataclass(frozen=True)
class Need:
    """What a job asks for: so much of each of so many nodes."""

    nodes: int
    cpus: float
    gpus: float = 0.0

    @property
    def bundle(self) -> dict[str, float]:
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})

    @classmethod
    def of(cls, execution: Execution) -> "Need":
        """GPUs where the cluster has any and the run takes them, else cores."""
        if execution.device != "cpu" and (ray.cluster_resources().get("GPU", 0) or execution.device == "cuda"):
            return cls(execution.nodes, cpus=1.0, gpus=execution.devices / execution.runs_per_device)
        return cls(execution.nodes, cpus=float(execution.devices * (execution.threads_per_rank or 1)))

    @property
    def is_free(self) -> bool:
        """Whether the cluster could give it now."""
        free = ray.available_resources()
        return all(free.get(name, 0) >= self.nodes * part for name, part in self.bundle.items())

    def require_room(self, run: RunDirectory) -> None:
        """InputError where the cluster has too few nodes that could ever give what the run asks for."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        wide = [node for node in nodes if all(node.get(name, 0) >= part for name, part in self.bundle.items())]
        if len(wide) < self.nodes:
            raise InputError(
                f"{run.run_id} asks for {self.nodes} nodes with {self.bundle}; the cluster has {len(wide)} such nodes"
            )


@dataclass
class WorkerGroup:
    """Actors that hold the resources of a job, one per node, and carry one job after another."""

    members: list[Any]
    placement: PlacementGroup | None
    need: Need | None
    """None for one that another controller asked for: it is left when its job has ended."""
    run: RunDirectory | None = None
    token: str = ""
    """Of the job that it carries; nothing if it carries none."""
    ends: list[Any] = field(default_factory=list)
    """One reference per member, to its supervisor's exit code."""
    jobs: int = 0
    """That it has carried."""
    whole: bool = True
    """Whether no member is lost."""
    abandoned: bool = False
    """Whether the members that are left were told to end."""
    lost: bool = False
    """Whether it lost a member by no fault of the run."""

    def __post_init__(self) -> None:
        self.places = [member.place.remote() for member in self.members]
        """One reference per member, to the node on which it lives: there once the member is."""

    def carry(self, job: Job) -> None:
        """Start the supervisors of a job."""
        self.run, self.token = job.run, job.token
        self.jobs += 1
        told, forked = arguments(job, "ray"), can_be_forked(job.spec.execution)
        self.ends = [
            member.carry.remote(str(job.run.path), job.token, rank, len(self.members), told, forked)
            for rank, member in enumerate(self.members)
        ]

    @classmethod
    def request(cls, need: Need, prefix: str, asker: Any) -> "WorkerGroup":
        """Ask for a group under a name that begins with `prefix`; it leaves when `asker`, an object, is lost."""
        name = f"{prefix}{uuid.uuid4().hex}"
        bundles = [need.bundle] * need.nodes
        placement = placement_group(bundles, strategy="STRICT_SPREAD", name=name, lifetime="detached")
        members = [
            ray.remote(Member)
            .options(
                name=f"{name}/{rank}-of-{need.nodes}",
                namespace=NAMESPACE,
                lifetime="detached",
                num_cpus=need.cpus,
                num_gpus=need.gpus,
                max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(placement, placement_group_bundle_index=rank),
            )
            .remote([asker])
            for rank in range(need.nodes)
        ]
        return cls(members, placement, need)

    @classmethod
    def find(cls, prefix: str, wanted: Mapping[str, RunDirectory]) -> Iterator["WorkerGroup"]:
        """The groups that carry one of the runs that are `wanted`, which are given by path.

        Placement groups whose actors are all gone are given back.
        """
        placements = {
            one["name"]: PlacementGroup(PlacementGroupID(bytes.fromhex(identity)))
            for identity, one in placement_group_table().items()
            if one["state"] != "REMOVED" and one["name"].startswith(prefix)
        }
        found: dict[str, list[Any]] = {}
        sizes = {}
        for actor in ray.util.list_named_actors(all_namespaces=True):
            name, _, place = actor["name"].rpartition("/")
            if actor["namespace"] == NAMESPACE and name.startswith(prefix):
                found.setdefault(name, []).append(_actor(actor["name"]))
                sizes[name] = int(place.rpartition("-of-")[2])
        for name in placements.keys() - found.keys():
            remove_placement_group(placements[name])
        there = {name: [member for member in members if member is not None] for name, members in found.items()}
        told = {name: [member.carried.remote() for member in members] for name, members in there.items()}
        _await_answers(told, wanted)
        for name, members in there.items():
            jobs = [_told(answer) for answer in told[name]]
            path, token = next((job for job in jobs if job is not None), ("", ""))
            if path in wanted:
                group = cls(members, placements.get(name), need=None, run=wanted[path], token=token)
                group.whole = jobs == [(path, token)] * sizes[name]
                group.ends = [member.end.remote() for member in members]
                yield group

    def look(self, done: Set[Any]) -> bool:
        """Whether the job has ended, given the ends that are `done`; where a member is lost, the others are ended."""
        assert self.run is not None
        ended = 0
        for rank, end in enumerate(self.ends):
            if end not in done:
                continue
            try:
                ray.get(end)
            except ray.exceptions.ActorUnavailableError:
                # It does not answer; whether it is dead, Ray finds out.
                self.ends[rank] = self.members[rank].end.remote()
                continue
            except ray.exceptions.RayError:
                # One that was lost between two jobs is not the fault of the second.
                unused = self.jobs > 1 and not _was_begun(self.run, self.token)
                self.lost |= unused or _machine_lost(self.places[rank])
                self.whole = False
            ended += 1
        if ended == len(self.members):
            return True
        if not self.whole and not self.abandoned:
            self.abandoned = True
            for member in self.members:
                member.abandon.remote(self.token)
        return False

    def stop(self) -> None:
        """Ask for a checkpoint and the end of the job."""
        for member in self.members:
            member.stop.remote(self.token)

    def give_back(self) -> None:
        """End the actors and free what they hold."""
        if self.need is None and self.whole:
            # The controller that asked for it may be alive, and have given it the next job.
            leaving = [member.leave.remote(self.token) for member in self.members]
            ray.wait(leaving, num_returns=len(leaving), timeout=ANSWER_SECONDS)
            return
        for member in self.members:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(member)
        if self.placement is not None:
            remove_placement_group(self.placement)


def _await_answers(told: Mapping[str, list[Any]], wanted: Mapping[str, RunDirectory]) -> None:
    """Until the actors have told what they carry, by group, or those that have not told carry no run that is wanted."""
    answers = [answer for group in told.values() for answer in group]
    deadline, seconds = time.monotonic() + LATE_ANSWER_SECONDS, ANSWER_SECONDS
    while answers:
        late = set(ray.wait(answers, num_returns=len(answers), timeout=seconds)[1])
        known = {name: [_told(answer) for answer in group if answer not in late] for name, group in told.items()}
        torn = any(any(known[name]) and not late.isdisjoint(group) for name, group in told.items())
        paths = {job[0] for jobs in known.values() for job in jobs if job is not None}
        missed = late and (torn or any(run.is_held() for path, run in wanted.items() if path not in paths))
        if not missed or time.monotonic() > deadline:
            return
        seconds = 1.0


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
    return status.is_held_by(token) or (launch is not None and launch.token == token)


def _actor(name: str) -> Any | None:
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
    while node not in dead_nodes():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True
