"""This machine: a queue over its devices, one supervisor process per running job.

A job of R ranks takes R GPUs, or, on CPU, R times its threads of the cores; a part of a GPU where its run says that
several share one. Jobs start in the order submitted; while one waits for more than is free, later ones may overtake it,
but take no more slots in all than it asks for itself: devices do not idle, and a large job is not starved by small
ones. Jobs for GPUs and jobs for cores never wait for each other. Everything dies with this process.

Runs of one rank with one thread are forked from a server that has imported torch already; all others are started anew.
"""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from orchestrator.execution.command import arguments, command
from orchestrator.execution.forks import Forked
from orchestrator.execution.warm import COLD_START_VARIABLE, WarmStart, can_be_forked
from xlstm.accounting.cards import count_gpus
from xlstm.run.directory import RunDirectory
from xlstm.run.executor import ENDING_SECONDS, Handle, Job, JobState
from xlstm.run.processes import kill_tagged, start_bound, usable_cores
from xlstm.run.spec import Execution, RunSpec


@dataclass
class _Need:
    """So many slots of one kind, and what is taken of each: all of it, or the part of a GPU that is shared."""

    kind: Literal["gpu", "core"]
    count: int
    share: Fraction = Fraction(1)

    @property
    def total(self) -> Fraction:
        return self.count * self.share


@dataclass
class _Running:
    process: subprocess.Popen[bytes] | Forked
    end: int
    """Descriptor that is readable when the process has ended."""
    need: _Need
    slots: tuple[int, ...]


@dataclass
class _Waiting:
    job: Job
    need: _Need
    overtaken: Fraction = Fraction(0)
    """Slots of later jobs that have started before it."""

    def lets_past(self, need: _Need) -> bool:
        return need.kind != self.need.kind or self.overtaken + need.total <= self.need.total

    def note_overtaking(self, need: _Need) -> None:
        if need.kind == self.need.kind:
            self.overtaken += need.total


@dataclass
class LocalExecutor:
    """Runs jobs on this machine's GPUs; on its cores where it has none, and those that ask for the CPU."""

    name: str = "local"
    gpus: int = field(default_factory=count_gpus)
    cores: int = field(default_factory=usable_cores)
    _queue: list[_Waiting] = field(default_factory=list)
    _running: dict[str, _Running] = field(default_factory=dict)
    _ended: set[str] = field(default_factory=set)
    _free: dict[str, dict[int, Fraction]] = field(default_factory=dict)
    """The part of each GPU and of each core that nobody has."""
    _warm: WarmStart | None = None

    def __post_init__(self) -> None:
        slots = {"gpu": self.gpus, "core": self.cores}
        self._free = {kind: dict.fromkeys(range(count), Fraction(1)) for kind, count in slots.items()}

    def submit(self, jobs: Sequence[Job]) -> list[Handle]:
        """Queue the jobs. ValueError for one that this machine can never hold."""
        for job in jobs:
            if job.spec.execution.nodes > 1:
                raise ValueError(f"{job.run.run_id} asks for {job.spec.execution.nodes} nodes; this machine is one")
            need = self._need(job.spec.execution)
            if need.kind == "gpu" and need.count > self.gpus:
                raise ValueError(f"{job.run.run_id} asks for {need.count} GPUs; this machine has {self.gpus}")
        self._queue += [_Waiting(job, self._need(job.spec.execution)) for job in jobs]
        self._start_what_fits()
        return [Handle(run=job.run, token=job.token, job=job.token) for job in jobs]

    def has_room(self, spec: RunSpec) -> bool:
        """Whether nothing waits, and slots are free for such a run."""
        return not self._queue and self._room(self._need(spec.execution)) is not None

    def adopt(self, runs: Sequence[RunDirectory]) -> list[Handle]:
        """None: what this machine carries dies with the process that submitted it."""
        return []

    def poll(self, handles: Sequence[Handle]) -> list[JobState]:
        """The state of each job; starts what fits into the slots that became free."""
        ended = [token for token, running in self._running.items() if running.process.poll() is not None]
        for token in ended:
            running = self._running.pop(token)
            os.close(running.end)
            for slot in running.slots:
                self._free[running.need.kind][slot] += running.need.share
            self._ended.add(token)
        if ended:
            self._start_what_fits()
        return [self._state(handle.job) for handle in handles]

    def rest(self, seconds: float) -> None:
        """Until a supervisor ends."""
        select.select([running.end for running in self._running.values()], [], [], seconds)

    def cancel(self, handles: Sequence[Handle], *, grace_seconds: float = ENDING_SECONDS) -> None:
        """Drop what waits, ask what runs to write a checkpoint, and kill what has not ended when the grace is over."""
        tokens = {handle.job for handle in handles}
        self._ended |= {waiting.job.token for waiting in self._queue if waiting.job.token in tokens}
        self._queue = [waiting for waiting in self._queue if waiting.job.token not in tokens]
        ending = {token: running for token, running in self._running.items() if token in tokens}
        for running in ending.values():
            running.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + grace_seconds
        for token, running in ending.items():
            try:
                running.process.wait(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                running.process.kill()
                running.process.wait()
                kill_tagged(token)
        self.poll(handles)
        self._start_what_fits()  # what was dropped lets others past

    def _state(self, token: str) -> JobState:
        if token in self._running:
            return JobState.RUNNING
        if token in self._ended:
            return JobState.ENDED
        return JobState.WAITING

    def _need(self, execution: Execution) -> _Need:
        """GPUs where there are any and the run takes them, else cores. A job wider than the cores takes them all."""
        if self.gpus and execution.device != "cpu":
            return _Need("gpu", execution.ranks, Fraction(1, execution.runs_per_device))
        return _Need("core", min(execution.ranks * (execution.threads_per_rank or 1), self.cores))

    def _room(self, need: _Need) -> tuple[int, ...] | None:
        """Slots that can give what is needed, those that are shared already first; None where there are too few."""
        wide = sorted((free, slot) for slot, free in self._free[need.kind].items() if free >= need.share)
        return tuple(sorted(slot for _, slot in wide[: need.count])) if len(wide) >= need.count else None

    def _start_what_fits(self) -> None:
        ahead: list[_Waiting] = []
        for position, waiting in enumerate(self._queue):
            if not any(free for slots in self._free.values() for free in slots.values()):
                ahead += self._queue[position:]
                break
            need = waiting.need
            slots = self._room(need)
            if slots is None or not all(one.lets_past(need) for one in ahead):
                ahead.append(waiting)
                continue
            try:
                process = self._start(waiting.job, slots)
            except FileNotFoundError:  # the run's folder was deleted while it waited
                self._ended.add(waiting.job.token)
                continue
            for one in ahead:
                one.note_overtaking(need)
            for slot in slots:
                self._free[need.kind][slot] -= need.share
            end = os.dup(process.fileno()) if isinstance(process, Forked) else os.pidfd_open(process.pid)
            self._running[waiting.job.token] = _Running(process, end, need, slots)
        self._queue = ahead

    def _start(self, job: Job, slots: tuple[int, ...]) -> subprocess.Popen[bytes] | Forked:
        environment = dict(os.environ)
        if self.gpus:
            given = slots if self._need(job.spec.execution).kind == "gpu" else ()
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(_visible_gpus(self.gpus)[slot] for slot in given)
        if can_be_forked(job.spec.execution) and not environment.get(COLD_START_VARIABLE):
            self._warm = self._warm or WarmStart()
            try:
                return self._warm.supervise(arguments(job, self.name), environment, job.run.supervisor_log)
            except (ConnectionError, TimeoutError) as error:
                print(f"{error}; {job.run.run_id} is started without it", file=sys.stderr)
                self._warm.close()
                self._warm = None
        # Ctrl-C reaches the controller alone, which then asks for checkpoints.
        return start_bound(command(arguments(job, self.name), parent=os.getpid()), job.run.supervisor_log, environment)


def _visible_gpus(count: int) -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(index) for index in range(count)]
