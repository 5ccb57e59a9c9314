"""A Ray cluster: a worker group holds a placement group, all of it or nothing, and carries one run after another in it.

A worker group has an actor on each node. torchrun must own the main thread of its process, so an actor starts the
supervisor as a subprocess and waits for it. A group whose run has ended takes the next one that needs the same, and is
given back when the next one needs something else. The processes of a run live no longer than its actors, and those no
longer than their raylets: a lost node takes its part of the group along, and the rest of the group is ended, since it
can only wait for it.
"""

import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import ray

from orchestrator.executors.ray_groups import Need, WorkerGroup
from orchestrator.executors.ray_runtime import connect, require_shared_workspace, workspace_key
from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.executor import ENDING_SECONDS, Handle, Job, JobState
from xlstm.run.spec import RunSpec

ASKED_AT_ONCE = 16
"""Groups that may wait for resources in the cluster; other jobs wait here, so that a thousand cost it nothing."""


@dataclass(frozen=True)
class _Waiting:
    job: Job
    need: Need


@dataclass
class RayExecutor:
    """Runs jobs on the Ray cluster of this process, or on the one at `address`."""

    workspace: Workspace
    address: str | None = None
    name: str = "ray"
    _waiting: deque[_Waiting] = field(default_factory=deque)
    _free: list[WorkerGroup] = field(default_factory=list)
    """Groups that carry nothing: most of them wait for resources."""
    _carrying: dict[str, WorkerGroup] = field(default_factory=dict)
    """By the token of the job."""
    _begun: set[str] = field(default_factory=set)
    _ended: dict[str, JobState] = field(default_factory=dict)

    def __post_init__(self) -> None:
        connect(self.address)
        self._alive = ray.put(None)
        """Lost with this process, by which actors that carry nothing learn of it."""
        require_shared_workspace(self.workspace)

    def submit(self, jobs: Sequence[Job]) -> list[Handle]:
        """Ask for the resources of each job; they start as the cluster grants them. InputError for what never fits.

        A run that was carried out here before is waited for, as a cluster may lose nodes and get others.
        """
        waiting = [_Waiting(job, Need.of(job.spec.execution)) for job in jobs]
        for one in waiting:
            if one.job.run.status().attempt == 0:
                one.need.require_room(one.job.run)
        self._waiting.extend(waiting)
        self._hand_out()
        return [Handle(run=job.run, token=job.token, job=job.token) for job in jobs]

    def has_room(self, spec: RunSpec) -> bool:
        """Whether nothing waits, and the cluster has what such a run needs."""
        return not self._waiting and not self._free and Need.of(spec.execution).is_free

    def adopt(self, runs: Sequence[RunDirectory]) -> list[Handle]:
        """The jobs of these runs that outlived their controller. Its groups that carry nothing leave by themselves."""
        handles = []
        for group in WorkerGroup.find(self._prefix, {str(run.path): run for run in runs}):
            assert group.run is not None
            self._carrying[group.token] = group
            handles.append(Handle(run=group.run, token=group.token, job=group.token))
        # Of two groups of one run, one has its lease, and the other is about to learn that.
        return sorted(handles, key=lambda handle: not handle.run.status().is_held_by(handle.token))

    def poll(self, handles: Sequence[Handle]) -> list[JobState]:
        """The state of each job, from one look at all of them. A group that lost a member is ended."""
        references = [end for group in self._carrying.values() for end in group.ends]
        done = set(ray.wait(references, num_returns=len(references), timeout=0)[0]) if references else set()
        for group in list(self._carrying.values()):
            if group.look(done):
                self._end(group, JobState.LOST if group.lost else JobState.ENDED)
        self._hand_out()
        return [self._state(handle) for handle in handles]

    def rest(self, seconds: float) -> None:
        """Until a supervisor ends or a group has got its resources."""
        awaited = [end for group in self._carrying.values() for end in group.ends]
        awaited += [place for group in self._free for place in group.places]
        if awaited:
            ray.wait(awaited, timeout=seconds)
        else:
            time.sleep(seconds)

    def cancel(self, handles: Sequence[Handle], *, grace_seconds: float = ENDING_SECONDS) -> None:
        """Drop what waits, ask what runs to write a checkpoint, and kill what has not ended when the grace is over."""
        tokens = {handle.job for handle in handles}
        self._ended |= {one.job.token: JobState.ENDED for one in self._waiting if one.job.token in tokens}
        self._waiting = deque(one for one in self._waiting if one.job.token not in tokens)
        groups = [self._carrying[token] for token in tokens if token in self._carrying]
        for group in groups:
            group.stop()
        if ends := [end for group in groups for end in group.ends]:
            ray.wait(ends, num_returns=len(ends), timeout=grace_seconds)
        for group in groups:
            self._end(group, JobState.ENDED)
        self._hand_out()

    @property
    def _prefix(self) -> str:
        """By which the worker groups of a workspace are found again."""
        return f"{workspace_key(self.workspace)}/workers/"

    def _hand_out(self) -> None:
        """Give groups that have their resources to jobs, ask for some for the next ones, give back what is too much."""
        places = [place for group in self._free for place in group.places]
        there = set(ray.wait(places, num_returns=len(places), timeout=0)[0]) if places else set()
        asked: dict[Need, list[WorkerGroup]] = {}
        for group in self._free:
            assert group.need is not None
            granted = there.issuperset(group.places)
            if granted and (one := next((one for one in self._waiting if one.need == group.need), None)):
                self._waiting.remove(one)
                group.carry(one.job)
                self._carrying[one.job.token] = group
            else:
                asked.setdefault(group.need, []).append(group)
        soon = Counter(one.need for one in islice(self._waiting, ASKED_AT_ONCE))
        for need, groups in asked.items():
            for group in groups[soon[need] :]:
                group.give_back()
        self._free = [group for need, groups in asked.items() for group in groups[: soon[need]]]
        for need, count in soon.items():
            self._free += [
                WorkerGroup.request(need, self._prefix, self._alive) for _ in range(count - len(asked.get(need, [])))
            ]

    def _state(self, handle: Handle) -> JobState:
        token = handle.job
        if token in self._ended:
            return self._ended[token]
        if token not in self._begun and token in self._carrying and handle.run.status().is_held_by(handle.token):
            self._begun.add(token)
        return JobState.RUNNING if token in self._begun else JobState.WAITING

    def _end(self, group: WorkerGroup, state: JobState) -> None:
        """The job has ended; its group takes the next one if that needs the same."""
        assert group.run is not None
        del self._carrying[group.token]
        self._ended[group.token] = state
        group.run.meeting_file(group.token).unlink(missing_ok=True)
        if group.whole and state is JobState.ENDED and self._waiting and self._waiting[0].need == group.need:
            self._free.insert(0, group)
        else:
            group.give_back()
