"""One attempt of one run on one node: lease, torchrun, heartbeat, verdict.

`python -m orchestrator.execution.supervisor RUN_DIRECTORY --token TOKEN …` is what every executor starts, once per
node. The first node's supervisor takes the lease and writes `launch.json`; the others wait for it and follow. One that
was forked with torch imported (`warm`) forks the only rank of its run in place of torchrun. What is started dies with
its supervisor, the supervisor with whoever started it. The verdict is read from the run directory, never from an exit
code: a clean preemption and a crash look the same to torchrun. Imports without torch.
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from orchestrator.execution import provenance
from orchestrator.execution.forks import Forked, fork
from xlstm.accounting.cards import count_gpus
from xlstm.run.directory import Lease, RunDirectory
from xlstm.run.executor import GRACE_SECONDS
from xlstm.run.json_files import DamagedFileError
from xlstm.run.locks import AlreadyCompleteError, CancelRequestedError, LeaseHeldError, LeaseLostError
from xlstm.run.processes import TOKEN_VARIABLE, die_with_parent, kill_tagged, redirect_output
from xlstm.run.records import Fork, Launch, State, Verdict, write_json
from xlstm.run.spec import Execution, RunSpec

HEARTBEAT_SECONDS = 10.0
ASKED_TO_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that ask for a checkpoint and the end. The trainers get them from here, and torchrun never: it raises out of
its handler, so that the second of two signals (schedulers signal every process of a job, and we forward) would end
it, and its trainers with it, before the checkpoint is written."""
JOIN_SECONDS = 300.0
"""How long the other nodes of a run wait for the first one's launch.json, and for its torchrun."""


@dataclass
class Supervisor:
    """Carries out one attempt on this node."""

    run: RunDirectory
    token: str
    executor: str
    whole_devices: bool = False
    """Whether the engine hands out no parts of a device."""
    node_rank: int = 0
    rendezvous: str = ""
    fork: Fork | None = None
    checkpoint_at: tuple[int, ...] = ()
    warm: bool = False
    """Whether this process has imported what a trainer needs, and forks it."""
    _trainer: subprocess.Popen[bytes] | Forked | None = None
    """torchrun, or the only rank."""
    _stopping: bool = False
    _asked: float | None = None

    def __call__(self) -> State:
        """Carry out the attempt; returns the state in which the run was left."""
        for number in ASKED_TO_STOP:
            signal.signal(number, self._stop)
        return self._lead() if self.node_rank == 0 else self._follow()

    def _lead(self) -> State:
        spec = self.run.spec()
        lease = self.run.acquire(self.token)
        launch = self._launch(spec, lease)
        write_json(self.run.launch_file(lease.attempt), launch.model_dump(mode="json"))
        write_json(self.run.provenance_file(lease.attempt), provenance.collect(), private=True)
        lease.renew(State.RUNNING)
        code = self._train(launch, lease)
        verdict = self.run.verdict(lease.attempt)
        if verdict is None:
            verdict = self._verdict_from_outside(launch, code)
            write_json(self.run.verdict_file(lease.attempt), verdict.model_dump(mode="json"))
        lease.release(verdict.state, verdict.reason)
        return verdict.state

    def _follow(self) -> State:
        deadline = time.monotonic() + JOIN_SECONDS
        # The first node's: one of another token is of an earlier attempt.
        while (launch := self.run.launch(self.run.status().attempt)) is None or launch.token != self.token:
            if time.monotonic() > deadline:
                sys.exit(f"{self.run.run_id}: the first node did not write launch.json within {JOIN_SECONDS:.0f} s")
            time.sleep(0.2)
        self._train(launch, None)
        verdict = self.run.verdict(launch.attempt)
        return verdict.state if verdict else State.RUNNING

    def _launch(self, spec: RunSpec, lease: Lease) -> Launch:
        return Launch(
            run_id=self.run.run_id,
            attempt=lease.attempt,
            token=self.token,
            executor=self.executor,
            execution=resolve(spec.execution, self.run.latest_launch(), whole=self.whole_devices),
            host=socket.gethostname(),
            rendezvous=self.rendezvous,
            started=time.time(),
            monotonic=time.monotonic(),
            fork=self.fork,
            checkpoint_at=self.checkpoint_at,
        )

    def _train(self, launch: Launch, lease: Lease | None) -> int:
        """Run torchrun, or the only rank, to its end, renewing the lease; returns its exit code."""
        log = self.run.torchrun_log(launch.attempt, self.node_rank)
        environment = os.environ | {
            TOKEN_VARIABLE: self.token,
            "OMP_NUM_THREADS": str(launch.execution.threads_per_rank or 1),
            "PYTHONUNBUFFERED": "1",
            "PYTHONSAFEPATH": "1",  # as `-P` for the supervisor
        }
        # A thread that waits for another gives its core away: where a neighbour has taken the other's, it would spin
        # for as long as the core is left to it. Nothing that is computed changes.
        environment.setdefault("OMP_WAIT_POLICY", "passive")
        if launch.execution.device == "cuda":
            environment.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # or pieces would lie idle
        if launch.execution.nodes == 1 and ":" in _loopback():
            environment.setdefault("GLOO_SOCKET_IFNAME", "lo")  # it would look for 127.0.0.1, which is not there
        supervisor = os.getpid()
        if self.warm:
            self._trainer = fork(lambda: self._be_trainer(launch, environment, supervisor))
            return self._wait(lease)
        with open(log, "ab") as output:
            self._trainer = subprocess.Popen(
                self._command(launch),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                preexec_fn=lambda: _leave_signals_to(supervisor),
            )
            try:
                return self._wait(lease)
            finally:
                # A worker that torchrun lost would hold its device for ever.
                kill_tagged(self.token)

    def _be_trainer(self, launch: Launch, environment: dict[str, str], supervisor: int) -> int:
        """What torchrun would start, in a process forked from this one."""
        from xlstm.training.attempt import run_attempt

        _leave_signals_to(supervisor)
        os.environ.update(environment)
        redirect_output(self.run.rank_log(launch.attempt, rank=0))
        return run_attempt(self.run.path, launch.attempt, self.token)

    def _wait(self, lease: Lease | None) -> int:
        assert self._trainer is not None
        beat = time.monotonic()
        while True:
            try:
                return self._trainer.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                if self._stopping:
                    self._ask_trainers_to_stop()
                if lease is None or time.monotonic() - beat < HEARTBEAT_SECONDS:
                    continue
            beat = time.monotonic()
            try:
                lease.renew()
            except (LeaseLostError, DamagedFileError):
                self._trainer.kill()
                raise
            except OSError as error:  # a full disk may have room again at the next beat
                print(f"the lease was not renewed: {error}", file=sys.stderr, flush=True)

    def _command(self, launch: Launch) -> list[str]:
        execution = launch.execution
        if execution.nodes == 1:
            # Port 0: torchrun picks a free one, so nothing can clash and nothing stale can answer. The name of this
            # machine, which torchrun would have its ranks meet under, is not needed and may be known to nobody.
            here = _loopback()
            endpoint = f"[{here}]:0" if ":" in here else f"{here}:0"
            meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--local-addr", here]
        else:
            meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", launch.rendezvous]
            conf = f"is_host={int(self.node_rank == 0)},read_timeout={JOIN_SECONDS:.0f}"
            meeting += ["--rdzv-conf", conf]
        return [
            *(sys.executable, "-m", "torch.distributed.run", *meeting, "--rdzv-id", launch.token),
            *("--nnodes", str(execution.nodes), "--nproc-per-node", str(execution.devices)),
            *("--max-restarts", "0", "--monitor-interval", "0.2"),
            # One that nobody sends: see ASKED_TO_STOP.
            *("--signals-to-handle", "SIGQUIT"),
            *("-m", "xlstm.training", str(self.run.path), "--attempt", str(launch.attempt), "--token", self.token),
        ]

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        self._stopping = True

    def _ask_trainers_to_stop(self) -> None:
        """Again and again, as one that has just started does not listen yet; SIGKILL when the grace is over."""
        import psutil  # takes long to import, and most attempts are never asked

        assert self._trainer is not None
        now = time.monotonic()
        self._asked = self._asked or now
        if now - self._asked > GRACE_SECONDS:
            self._trainer.kill()
        if self.warm:
            self._trainer.send_signal(signal.SIGTERM)
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            for trainer in psutil.Process(self._trainer.pid).children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    trainer.terminate()

    def _verdict_from_outside(self, launch: Launch, code: int) -> Verdict:
        """A trainer that was killed leaves no verdict: say what can be known from outside."""
        died = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        state = State.PREEMPTED if self._stopping else State.FAILED
        who, log = "torchrun", self.run.torchrun_log(launch.attempt, self.node_rank)
        if self.warm:
            who, log = "it", self.run.rank_log(launch.attempt, 0)
        reason = f"the trainer left no verdict; {who} {died}; see {log}"
        return Verdict(state=state, reason=reason, time=time.time(), seconds=launch.elapsed())


def _loopback() -> str:
    """This machine's address to itself: 127.0.0.1, or ::1 where it has IPv6 alone."""
    with socket.socket(socket.AF_INET) as probe:
        try:
            probe.bind(("127.0.0.1", 0))
        except OSError:
            return "::1"
    return "127.0.0.1"


def _leave_signals_to(supervisor: int) -> None:
    """After a fork: die with the supervisor, and leave the signals that ask to stop to it."""
    die_with_parent(supervisor)
    for number in ASKED_TO_STOP:
        signal.signal(number, signal.SIG_IGN)


def resolve(execution: Execution, earlier: Launch | None, *, whole: bool = False) -> Execution:
    """Fill in what the sweep left open: from the earlier attempt, so that a resumed run keeps its arithmetic.

    A GPU is shared unless devices are handed out `whole`, and cores never.

    Without one, the device is CUDA where this node has one, and a rank on CPU computes with one thread: the result then
    does not depend on how many cores the machine has.
    """
    if execution.device == "auto":
        device = earlier.execution.device if earlier else ("cuda" if count_gpus() else "cpu")
        execution = execution.model_copy(update={"device": device})
    if execution.threads_per_rank is None:
        threads = earlier.execution.threads_per_rank if earlier else 1
        execution = execution.model_copy(update={"threads_per_rank": threads})
    if execution.device == "cpu" or whole:
        execution = execution.model_copy(update={"runs_per_device": 1})
    return execution


def main(*, warm: bool = False) -> int:
    """Carry out the attempt of the command line. Returns 0 where it completed or was preempted."""
    parser = argparse.ArgumentParser(description="Carry out one attempt of one run on this node.")
    parser.add_argument("run_directory", type=Path)
    parser.add_argument("--token", default=uuid.uuid4().hex)
    parser.add_argument("--executor", default="local")
    parser.add_argument("--whole-devices", action="store_true", help="the engine hands out no parts of a device")
    parser.add_argument("--node-rank", type=int, default=0)
    parser.add_argument("--rendezvous", default="", help="host:port on the first node, for a run of several nodes")
    parser.add_argument("--fork-run", default="", help="run whose checkpoint this one starts from")
    parser.add_argument("--fork-step", type=int, default=0)
    parser.add_argument("--checkpoint-at", type=int, nargs="*", default=[], help="steps at which other runs fork off")
    parser.add_argument("--parent", type=int, default=None, help="process id to die with")
    options = parser.parse_args()
    if options.parent is not None:
        die_with_parent(options.parent)
    supervisor = Supervisor(
        run=RunDirectory(options.run_directory.absolute()),
        token=options.token,
        executor=options.executor,
        whole_devices=options.whole_devices,
        node_rank=options.node_rank,
        rendezvous=options.rendezvous,
        fork=Fork(run_id=options.fork_run, step=options.fork_step) if options.fork_run else None,
        checkpoint_at=tuple(options.checkpoint_at),
        warm=warm,
    )
    try:
        state = supervisor()
    except (AlreadyCompleteError, CancelRequestedError, DamagedFileError, LeaseHeldError, LeaseLostError) as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(f"{options.run_directory}: {error}")
    return 0 if state in (State.COMPLETED, State.PREEMPTED) else 1


if __name__ == "__main__":
    sys.exit(main())
