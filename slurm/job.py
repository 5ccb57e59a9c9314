"""What a job does: attempt after attempt of its run, until the run, or its part of it, is done.

`python -m slurm.job batch.json` runs in the job's batch step, on its first node. Each attempt is one srun, whose tasks,
one per node, become supervisors. Then the run directory is read, and decides:

- done: the job ends well, and what waits for it may start;
- preempted, or stopped ahead of the time limit: the job asks Slurm to requeue it, and goes on where it stopped;
- failed: another attempt in this allocation;
- diverged, or set aside (`xlstm.run.executor`): the job ends badly.

Whoever ends the job itself (scancel, `scontrol requeue`, a partition that preempts, a dead node) has Slurm decide
whether it comes back, so then nothing is asked for. Only a job at its time limit is requeued from here.
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from orchestrator.execution.command import arguments, free_port
from slurm import commands
from slurm.batches import Batch, Contents, Part, job_number
from slurm.commands import SlurmError
from slurm.shipping import shipped
from xlstm.run.directory import RunDirectory
from xlstm.run.executor import ENDING_SECONDS, Job, judge_from_outside, submission_of, why_set_aside
from xlstm.run.records import LEASE_EXPIRY_SECONDS, State, Status

REMEDY = "give a job more `time`, checkpoint more often (`checkpoint_every`), or signal earlier (`signal_seconds`)"
"""What can be done about attempts that end before they leave a checkpoint."""
REQUEUE_SECONDS = 300.0
"""How long a controller that does not answer is asked again to requeue the job."""
VISIBLE_SECONDS = 30.0
"""What a shared file system may take to show here what another node has written."""


@dataclass
class SlurmJob:
    """One job of a batch, inside its allocation."""

    run: RunDirectory
    part: Part
    contents: Contents
    number: str
    restart: int
    _terminated: bool = False
    _cancelled: bool = False
    _never_began: list[str] = field(default_factory=list)

    def __call__(self) -> int:
        """Carry out the run or its part. Returns the job's exit code: 0 where its checkpoint, or the run, is there."""
        signal.signal(signal.SIGTERM, self._on_end)
        # Sent by hand to all of the job; the supervisors act on it. Not ignored: srun would inherit that.
        signal.signal(signal.SIGUSR2, lambda number, frame: None)
        if (why := self._nothing_to_fork_from()) is not None:
            self.run.set_state(State.CANCELLED, why)
            self._say(why)
            return 1
        for attempt in range(sys.maxsize):
            if self._is_done():
                return 0
            if why := self._hopeless():
                return self._give_up(why)
            token = f"{self.part.token}.{self.restart}.{attempt}"
            self._train(token)
            if self._is_done():
                return 0
            if self._terminated:
                if self._cancelled:
                    self.run.set_state(State.CANCELLED, f"job {self.number} was cancelled in Slurm")
                return 1
            if (code := self._after(token)) is not None:
                return code
        raise AssertionError("unreachable")

    def _nothing_to_fork_from(self) -> str | None:
        """Why a fork cannot begin, or None.

        Slurm forgets a waiting job of an array that somebody cancels, and then starts what was to wait for it.
        """
        fork = self.part.fork
        if fork is None or self.run.checkpoint_steps():
            return None
        trunk = self.run.workspace.run(fork.run_id)
        deadline = time.monotonic() + VISIBLE_SECONDS
        while not trunk.has_checkpoint(fork.step):
            if self._terminated or time.monotonic() > deadline:
                return f"starts from step {fork.step} of {fork.run_id}, whose job left the queue before that"
            time.sleep(1.0)
        return None

    def _train(self, token: str) -> None:
        """One attempt on all nodes."""
        nodes, cpus = self.contents.nodes, self.contents.cpus_per_task
        endpoint = f"{first_node()}:{free_port()}"
        job = Job(self.run, self.run.spec(), token, self.part.fork, self.part.checkpoint_at)
        told = [endpoint, *arguments(job, "slurm", whole_devices=True)]
        layout = [f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", f"--cpus-per-task={cpus}"]
        ending = ["--kill-on-bad-exit=0", f"--wait={ENDING_SECONDS:.0f}", "--unbuffered"]
        python = [*self.contents.container, self.contents.python or sys.executable]
        command = ["srun", *layout, *ending, *self.contents.srun, *python, "-m", "slurm.task", *told]
        self._say(f"attempt {token}, meeting at {endpoint}")
        self._wait(subprocess.Popen(command, stdin=subprocess.DEVNULL))

    def _wait(self, srun: subprocess.Popen[bytes]) -> None:
        cut = ending = False
        while srun.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                srun.wait(timeout=0.5)
            if self._terminated and not ending:
                self._end_with_slurm()
                ending = True
            until = self.part.until
            if until is not None and not cut and self.run.has_checkpoint(until):
                self._say(f"step {until} is saved, from which other runs start; the next job of the chain goes on")
                srun.send_signal(signal.SIGUSR2)
                cut = True

    def _is_done(self) -> bool:
        if self.part.until is not None and self.run.has_checkpoint(self.part.until):
            if self.run.status().state is State.PREEMPTED:
                self.run.set_state(State.QUEUED, f"saved step {self.part.until}; the next job of its chain goes on")
            return True
        return self.run.is_complete(self.run.spec())

    def _after(self, token: str) -> int | None:
        """Decide, from the run directory, what the end of an attempt means. None: try again here."""
        status = self.run.status()
        launch = self.run.launch(status.attempt)
        if launch is None or launch.token != token:
            if status.lease is not None and self.run.is_held():
                return self._wait_for_the_lease(status)
            self._never_began.append(f"the supervisor ended before it began; see the log of job {self.number}")
            return None
        if status.state is State.PREEMPTED:
            return self._give_up(why) if (why := self._hopeless()) else self._requeue()
        if status.state is State.DIVERGED:
            self._say(f"diverged: {status.reason}")
            return 1
        if status.state is not State.FAILED:
            # Whoever was to write the verdict is gone: killed between two lines.
            judge_from_outside(self.run, State.FAILED, "the supervisor ended without a verdict")
        self._say(f"failed: {self.run.status().reason}")
        return None

    def _hopeless(self) -> str | None:
        """Why no further attempt is made, or None; what is counted are the attempts of all jobs of the chain."""
        return why_set_aside(self.run, submission_of(self.part.token), self._never_began, REMEDY)

    def _wait_for_the_lease(self, status: Status) -> int | None:
        """Another launcher seems to live. A dead node's lease expires; one that is renewed is left to its holder."""
        assert status.lease is not None
        holder = status.lease
        self._say(f"held by process {holder.pid} on {holder.host}; waiting whether it lives")
        deadline = time.monotonic() + 1.5 * LEASE_EXPIRY_SECONDS
        while time.monotonic() < deadline and not self._terminated:
            if not self.run.is_held():
                return None
            time.sleep(1.0)
        if self._terminated:
            self._end_with_slurm()
            return 1
        self._say("it lives; this job leaves the run to it")
        return 1

    def _end_with_slurm(self) -> None:
        """Slurm is ending the job, and sends SIGKILL after its KillWait. Find out why, and come back if so."""
        try:
            job = commands.job_fields(self.number)
        except SlurmError:
            return  # the controller is away; on its return it knows why this job ended
        if int(job.get("Restarts", "0")) > self.restart:
            self._say("Slurm has requeued this job")
        elif job.get("Reason") == "TimeLimit" or job.get("JobState") in ("RUNNING", "PREEMPTED"):
            if self._hopeless() is None:
                self._requeue()
        else:
            self._cancelled = True

    def _requeue(self) -> int:
        """Wait in Slurm's queue again, under the same number. Slurm then ends this job; returns its exit code."""
        deadline = time.monotonic() + REQUEUE_SECONDS
        while True:
            try:
                if commands.job_fields(self.number).get("Requeue") == "0":
                    self.run.set_state(State.CANCELLED, "cancelled; its last checkpoint is kept")
                    return 1
                commands.requeue(self.number)
                break
            except SlurmError as error:
                self._say(f"not requeued yet: {error}")
                if time.monotonic() > deadline:
                    reason = f"{self.run.status().reason}; Slurm did not requeue the job: {error}"
                    self.run.set_state(State.PREEMPTED, reason)
                    return 1
                time.sleep(5.0)
        self._say("requeued")
        while not self._terminated:
            time.sleep(0.2)
        return 1

    def _give_up(self, why: str) -> int:
        self.run.set_state(State.FAILED, why)
        self._say(why)
        return 1

    def _on_end(self, number: int, _frame: FrameType | None) -> None:
        """Slurm has sent the same to the supervisors; they ask for a checkpoint as long as they may."""
        self._terminated = True

    def _say(self, what: str) -> None:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        print(f"{stamp} job {self.number} {self.run.run_id}: {what}", flush=True)


def first_node() -> str:
    """The name of this node if it can be resolved, else the address at which Slurm reaches it."""
    name = os.environ.get("SLURMD_NODENAME", socket.gethostname())
    return name if resolves(name) else commands.node_address(name)


def resolves(name: str) -> bool:
    """Whether the name of a machine leads to an address here."""
    try:
        socket.getaddrinfo(name, None)
    except socket.gaierror:
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description="Carry out one job of a batch, inside its allocation.")
    parser.add_argument("batch", type=Path)
    batch = Batch(parser.parse_args().batch.absolute().parent)
    contents = batch.contents()
    index = int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))
    array = os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ["SLURM_JOB_ID"]
    part = contents.parts[index]
    job = SlurmJob(
        run=batch.run(part),
        part=part,
        contents=contents,
        number=job_number(array, index, len(contents.parts)),
        restart=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
    )
    with shipped(job.run, batch.sweep, batch.workspace.tracking_uri):
        return job()


if __name__ == "__main__":
    sys.exit(main())
