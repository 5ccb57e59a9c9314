"""The Slurm engine: everything is handed over at once, and from then on Slurm and the jobs themselves carry it out.

Retries, requeueing and the dependencies of forks happen inside the cluster, so nothing of ours stays alive. All jobs of
a sweep carry one name, by which one squeue finds them.
"""

import contextlib
import hashlib
import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

from slurm import commands
from slurm.batches import Batch, Contents, Part, batches_of, job_number
from slurm.chains import Link, links
from slurm.commands import NoAccountingError, QueuedJob, SlurmError
from slurm.script import script
from slurm.site import Site, SiteError
from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.executor import ENDING_SECONDS, Handle, Job, JobState
from xlstm.run.locks import locked
from xlstm.run.records import State
from xlstm.run.spec import RunSpec

_WAITING = "waiting for Slurm"
SEARCH_SECONDS = 30.0
"""How long a job is looked for in the queue after sbatch failed: it may have been accepted all the same."""


@dataclass(frozen=True)
class _Shape:
    """What jobs of one array have in common."""

    nodes: int
    gpus: int
    site: str
    after: tuple[str, int] | None


@dataclass(frozen=True)
class _Placed:
    """One job that was handed over: its part of a run and Slurm's number, None where that never reached us."""

    part: Part
    number: str | None

    @property
    def submission(self) -> str:
        """Token that the controller gave the run, which all jobs of its chain share."""
        return self.part.token.rpartition(".")[0]


@dataclass
class SlurmExecutor:
    """Hands the runs of one sweep to Slurm, and finds them again from any process on the login node."""

    workspace: Workspace
    sweep: str
    site: Site | None = None
    name: str = "slurm"

    @property
    def job_name(self) -> str:
        """Name of all jobs of this sweep in this workspace."""
        place = hashlib.sha256(str(self.workspace.root.absolute()).encode()).hexdigest()[:6]
        return f"scaling-{re.sub(r'[^A-Za-z0-9._-]', '-', self.sweep)}-{place}"

    def ask(self) -> None:
        """Learn what a submission needs to know of the site. SlurmError where Slurm does not answer."""
        _ = self._has_gpus, self._longest_array

    def submit(self, jobs: Sequence[Job]) -> list[Handle]:
        """Hand all jobs over, forks with their dependencies, and return; their runs are QUEUED.

        A run that already has jobs in the queue is not submitted again: its handle is that of those jobs. ValueError
        for a fork whose checkpoint nobody will leave, SiteError for settings that are not valid; nothing is submitted
        then, and nothing changed. SlurmError where Slurm does not answer or refuses; what was submitted until then is
        in the queue, and the other runs stand as they did.
        """
        _refuse_what_slurm_rewrites(self.workspace.root.absolute())
        site = self.site or Site.load(self.workspace)
        sites = {id(job): site.for_run(job.spec.execution.slurm) for job in jobs}
        lock = self.workspace.sweep(self.sweep).slurm_lock
        lock.parent.mkdir(parents=True, exist_ok=True)
        with locked(lock):  # the next submission of this sweep finds the jobs of this one
            alive = self.alive()
            handles = self._submit([job for job in jobs if job.run.run_id not in alive], sites)
        return [(alive | handles)[job.run.run_id] for job in jobs]

    def has_room(self, spec: RunSpec) -> bool:
        """Always: whatever is handed over waits in Slurm's queue."""
        return True

    def alive(self) -> dict[str, Handle]:
        """Runs of this sweep whose jobs are waiting or running."""
        handles = self.handles()
        shown = self._shown() if handles else {}
        states = [_state_of(_found(shown, handle)) for handle in handles]
        return {h.run.run_id: h for h, state in zip(handles, states, strict=True) if state is not JobState.ENDED}

    def _submit(self, jobs: Sequence[Job], sites: Mapping[int, Site]) -> dict[str, Handle]:
        promised = self._promised()
        planned = links(jobs, promised)
        arrays = list(self._arrays(planned, sites))  # asks Slurm what it has, before anything is written
        before = {job.token: job.run.status() for job in jobs}
        for job in jobs:
            if not job.run.is_held():
                job.run.set_state(State.QUEUED, _WAITING)
        numbers: dict[str, str] = {}
        for shape, group in arrays:
            batch = self._write(group, shape, f"afterok:{promised[shape.after]}" if shape.after else None)
            try:
                array = self._sbatch(batch)
            except SlurmError as error:
                for job in jobs:
                    if f"{job.token}.0" not in numbers and not job.run.is_held():
                        stood = before[job.token]
                        why = stood.reason if stood.state.ended else f"not submitted: {error}"
                        job.run.set_state(stood.state if stood.state.ended else State.PLANNED, why)
                raise
            batch.set_number(array)
            for index, link in enumerate(group):
                number = numbers[link.part.token] = job_number(array, index, len(group))
                if link.part.until is not None:
                    promised[link.part.run_id, link.part.until] = number
        return {job.run.run_id: self._handle(job, numbers) for job in jobs}

    def adopt(self, runs: Sequence[RunDirectory]) -> list[Handle]:
        """Jobs of these runs that wait or run, whoever handed them over."""
        wanted = {run.run_id for run in runs}
        return [handle for run_id, handle in self.alive().items() if run_id in wanted]

    def poll(self, handles: Sequence[Handle]) -> list[JobState]:
        """The state of each job, with one squeue; as the run directories have it where the controller is away."""
        try:
            shown = self._shown()
        except SlurmError:
            return [_state_from_files(handle.run) for handle in handles]
        return [_state_of(_found(shown, handle)) for handle in handles]

    def rest(self, seconds: float) -> None:
        """Slurm tells nobody that a job has ended."""
        time.sleep(seconds)

    def cancel(self, handles: Sequence[Handle], *, grace_seconds: float = ENDING_SECONDS) -> None:
        """End the jobs: what waits leaves the queue, what runs writes a checkpoint or is ended after the grace."""
        if not handles:
            return
        wanted = {number for handle in handles for number in numbers_of(handle)}
        shown = self._left(wanted)
        running = [job.number for job in shown if job.is_running]
        commands.leave_queue([job.number for job in shown if not job.is_running])
        if running:
            commands.forbid_requeue(running)
            commands.scancel(running, signal="TERM")
            self._wait_for_end(set(running), grace_seconds)
        if still := [job.number for job in self._left(wanted)]:
            commands.scancel(still)
            self._wait_for_end(set(still), grace_seconds)
        for handle in handles:
            if not handle.run.status().state.ended:
                handle.run.set_state(State.CANCELLED, "cancelled")

    def handles(self) -> list[Handle]:
        """The latest submission of every run of this sweep, found again from the files; one query for lost numbers."""
        latest: dict[str, dict[str, list[str]]] = {}
        for placed in self._placed():
            submissions = latest.setdefault(placed.part.run_id, {})
            submissions.setdefault(placed.submission, []).append(placed.number or "")
        found = []
        for run_id, submissions in latest.items():
            token, numbers = next(reversed(submissions.items()))
            found.append(Handle(self.workspace.run(run_id), token, ",".join(filter(None, numbers))))
        return found

    def reconcile(self) -> None:
        """Write into the run directories what Slurm alone knows: jobs cancelled, killed, or vanished.

        Every reading verb calls this first. Verdicts that are there are not touched.
        """
        unsettled = [handle for handle in self.handles() if not handle.run.status().state.ended]
        if not unsettled:
            return
        try:
            shown = self._shown()
        except SlurmError:
            return  # nothing can be told while the controller is away
        ended = [h for h in unsettled if _state_of(_found(shown, h)) is JobState.ENDED]
        missing = [number for handle in ended for number in numbers_of(handle) if number not in shown]
        if missing:
            with contextlib.suppress(NoAccountingError):
                shown |= {job.number: job for job in commands.sacct(missing)}
        for handle in ended:
            self._settle(handle, _found(shown, handle))
        for run, status, jobs in ((h.run, h.run.status(), _found(shown, h)) for h in unsettled):
            obstacle = next((job.obstacle for job in jobs if job is not None and job.obstacle), "")
            told = f"{_WAITING}: {obstacle}" if obstacle else _WAITING
            if status.state is State.QUEUED and status.reason.startswith(_WAITING) and status.reason != told:
                run.queue(told)

    def _settle(self, handle: Handle, jobs: Sequence[QueuedJob | None]) -> None:
        """Give a run whose jobs have all ended, and which has no verdict, its state."""
        if handle.run.is_held() or handle.run.status().state.ended:
            return
        job = next((job for job in jobs if job is not None and job.state != "COMPLETED"), None)
        if why := self._waited_in_vain(handle):
            handle.run.set_state(State.CANCELLED, why)
        elif job is None:
            self._settle_without_trace(handle)
        elif job.state == "CANCELLED":
            who = f" {job.reason}" if job.reason.startswith("by ") else ""
            handle.run.set_state(State.CANCELLED, f"job {job.number} was cancelled in Slurm{who}")
        elif job.state == "TIMEOUT":
            why = "reached its time limit before its checkpoint was written; set a larger `signal_seconds`"
            handle.run.set_state(State.PREEMPTED, f"job {job.number} {why}")
        else:
            handle.run.set_state(State.FAILED, f"job {job.number} ended in Slurm as {job.state} without a verdict")

    def _settle_without_trace(self, handle: Handle) -> None:
        """Slurm remembers nothing of a waiting job of an array that was cancelled, nor, for long, of any other."""
        launch = handle.run.launch(handle.run.status().attempt)
        name = f"job {handle.job}" if handle.job else "its job"
        if launch is None or not launch.token.startswith(handle.token):
            handle.run.set_state(State.CANCELLED, f"{name} left Slurm's queue before it began")
        else:
            handle.run.set_state(State.FAILED, f"{name} is gone from Slurm without a verdict")

    def _waited_in_vain(self, handle: Handle) -> str | None:
        """Why the checkpoint that a fork was to start from can no longer come, or None."""
        fork = next((placed.part.fork for placed in self._placed() if placed.submission == handle.token), None)
        if fork is None or self.workspace.run(fork.run_id).has_checkpoint(fork.step):
            return None
        trunk = self.workspace.run(fork.run_id).status()
        if not trunk.state.ended:
            return None
        return (
            f"starts from step {fork.step} of {fork.run_id}, which can no longer come: that run is {trunk.state} "
            f"({trunk.reason})"
        )

    def _placed(self) -> Iterator[_Placed]:
        """Every job ever handed over for this sweep, oldest first; lost numbers are looked for once."""
        unknown: dict[str, str] | None = None
        for batch in batches_of(self.workspace, self.sweep):
            contents, number = batch.contents(), batch.number()
            if number is None:
                unknown = _arrays_by_comment(self.job_name) if unknown is None else unknown
                if number := unknown.get(batch.id):
                    batch.set_number(number)
            for index, part in enumerate(contents.parts):
                name = job_number(number, index, len(contents.parts)) if number else None
                yield _Placed(part, name)

    def _promised(self) -> dict[tuple[str, int], str]:
        """Checkpoints that jobs still in the queue will leave, and which job."""
        chained = {
            p.number: (p.part.run_id, p.part.until) for p in self._placed() if p.number and p.part.until is not None
        }
        if not chained:
            return {}
        alive = (job.number for job in commands.squeue(self.job_name) if not job.has_ended)
        return {checkpoint: number for number in alive if (checkpoint := chained.get(number)) is not None}

    def _arrays(self, planned: Sequence[Link], sites: Mapping[int, Site]) -> Iterator[tuple[_Shape, list[Link]]]:
        """Jobs of one shape and one dependency together, in order, no array longer than the site allows."""
        groups: dict[_Shape, list[Link]] = {}
        for link in planned:
            execution, site = link.job.spec.execution, sites[id(link.job)]
            on_cpu = execution.device == "cpu" or (execution.device == "auto" and not self._has_gpus)
            gpus = 0 if on_cpu else execution.devices
            cpus = site.cpus_per_task or execution.devices * (execution.threads_per_rank or 1)
            wanted = site.model_copy(update={"cpus_per_task": cpus}).model_dump_json()
            groups.setdefault(_Shape(execution.nodes, gpus, wanted, link.after), []).append(link)
        for shape, group in groups.items():
            for start in range(0, len(group), self._longest_array):
                yield shape, group[start : start + self._longest_array]

    def _write(self, group: Sequence[Link], shape: _Shape, dependency: str | None) -> Batch:
        """The folder of one array: its runs and its script, before sbatch is called."""
        # To the microsecond: the batches of two submissions of one second are told apart by it.
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        batch = Batch(self.workspace.sweep(self.sweep).slurm / f"{stamp}-{uuid.uuid4().hex[:8]}")
        site = Site.model_validate_json(shape.site)
        assert site.cpus_per_task is not None
        contents = Contents(
            parts=tuple(link.part for link in group),
            nodes=shape.nodes,
            cpus_per_task=site.cpus_per_task,
            container=tuple(site.container),
            python=site.task_python,
            srun=tuple(site.srun),
        )
        batch.write(contents)
        text = script(
            batch.folder,
            site,
            name=self.job_name,
            comment=batch.id,
            nodes=shape.nodes,
            gpus=shape.gpus,
            parts=len(group),
            dependency=dependency,
        )
        batch.script.write_text(text)
        return batch

    def _sbatch(self, batch: Batch) -> str:
        """Submit a batch once: where sbatch fails, the job may be in the queue all the same.

        A batch that Slurm says it does not have is removed: it was never handed over.
        """
        try:
            return commands.sbatch(batch.script)
        except SlurmError:
            deadline = time.monotonic() + SEARCH_SECONDS
            while True:
                with contextlib.suppress(SlurmError):
                    if number := _arrays_by_comment(self.job_name).get(batch.id):
                        return number
                    batch.remove()
                    break
                if time.monotonic() > deadline:
                    break
                time.sleep(1.0)
            raise

    def _handle(self, job: Job, numbers: Mapping[str, str]) -> Handle:
        """All jobs of the run's chain, in order."""
        own = [number for token, number in numbers.items() if token.rpartition(".")[0] == job.token]
        return Handle(run=job.run, token=job.token, job=",".join(own))

    def _wait_for_end(self, numbers: set[str], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not self._left(numbers):
                return
            time.sleep(0.5)

    def _shown(self) -> dict[str, QueuedJob]:
        """What Slurm still shows of this sweep, by number."""
        return {job.number: job for job in commands.squeue(self.job_name)}

    def _left(self, numbers: set[str]) -> list[QueuedJob]:
        """Those of some jobs that have not ended."""
        return [job for job in self._shown().values() if job.number in numbers and not job.has_ended]

    @cached_property
    def _longest_array(self) -> int:
        return max(int(commands.configuration().get("MaxArraySize", "1001")) - 1, 1)

    @cached_property
    def _has_gpus(self) -> bool:
        return commands.has_gpus()


def _refuse_what_slurm_rewrites(root: Path) -> None:
    """Slurm expands % in the path of a log and drops backslashes, and then cannot open it."""
    if found := [character for character in "%\\" if character in str(root)]:
        raise SiteError(f"workspace {root}: Slurm cannot write logs below a path that holds {found[0]}; move it")


def numbers_of(handle: Handle) -> list[str]:
    """Slurm's numbers of the jobs of a run's chain."""
    return [number for number in handle.job.split(",") if number]


def _found(shown: Mapping[str, QueuedJob], handle: Handle) -> list[QueuedJob | None]:
    """The jobs of a chain as Slurm shows them; an array that never started may be shown as one job."""
    return [shown.get(number) or shown.get(number.partition("_")[0]) for number in numbers_of(handle)]


def _state_of(jobs: Sequence[QueuedJob | None]) -> JobState:
    """The state of a chain of jobs, None for those that Slurm no longer shows."""
    shown = [job for job in jobs if job is not None]
    if any(job.is_running for job in shown):
        return JobState.RUNNING
    if any(not job.has_ended for job in shown):
        return JobState.WAITING
    return JobState.ENDED


def _state_from_files(run: RunDirectory) -> JobState:
    if run.is_held():
        return JobState.RUNNING
    return JobState.ENDED if run.status().state.ended else JobState.WAITING


def _arrays_by_comment(name: str) -> dict[str, str]:
    """Slurm's numbers of the arrays of a sweep, by the batch they carry."""
    return {job.comment: job.number.partition("_")[0] for job in commands.squeue(name)}
