"""One rank of one attempt, from the specification to the verdict."""

import contextlib
import os
import signal
import sys
import traceback
from pathlib import Path

from kernels import cpu
from xlstm.data.sequences import open_data
from xlstm.distributed import World
from xlstm.evaluation.measure import measure
from xlstm.evaluation.passes import StoppedError
from xlstm.run.directory import Lease, RunDirectory
from xlstm.run.json_files import DamagedFileError
from xlstm.run.locks import LeaseLostError
from xlstm.run.outcome import leave_measured, leave_result
from xlstm.run.records import Launch, Result, State, Verdict, write_json
from xlstm.run.spec import RunSpec, shared_steps
from xlstm.training.checkpoints import (
    Checkpoint,
    Checkpointer,
    CheckpointError,
    CheckpointRecord,
    fork_checkpoint,
    latest_valid,
)
from xlstm.training.machine import keep_freed_memory
from xlstm.training.result import make_result, quality_codes
from xlstm.training.trainer import DivergedError, Trainer
from xlstm.training.watch import Watch, leave_failure, leave_verdict

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def run_attempt(directory: Path, number: int, token: str) -> int:
    """Train the run in `directory` and leave the attempt's verdict. Returns the process's exit code.

    0 where a verdict was left in an orderly way (COMPLETED, PREEMPTED, DIVERGED), 1 where something failed.
    """
    rank = int(os.environ.get("RANK", "0"))
    run = RunDirectory(directory)
    try:
        attempt = _Attempt(run, number, token)
        verdict = attempt.train()
    except LeaseLostError as error:
        print(error, file=sys.stderr)
        os._exit(1)  # another launcher writes to this run now: end at once, without a verdict
    except BaseException as error:
        traceback.print_exc()
        with contextlib.suppress(OSError, DamagedFileError):  # where nothing can be written, the log holds it
            leave_failure(run, number, rank, error, traceback.format_exc())
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(1)  # the other ranks may wait in a collective that never ends: do not wait for them
    if rank == 0:
        leave_verdict(run, number, verdict)
    attempt.close()
    return 0


class _Attempt:
    """What one attempt holds together: lease, world, watch, data, trainer and checkpoints."""

    def __init__(self, run: RunDirectory, number: int, token: str) -> None:
        self.run, self.number = run, number
        self.lease = Lease(run, token, number)
        spec = run.spec()
        launch = run.launch(number)
        if launch is None:
            raise FileNotFoundError(f"{run.launch_file(number)}: the launcher writes it, and it is missing")
        self.launch: Launch = launch
        self.spec: RunSpec = spec.model_copy(update={"execution": launch.execution})
        self.stop_signal: int | None = None
        for number_of_signal in _STOP_SIGNALS:
            signal.signal(number_of_signal, self._on_signal)
        self.world = World.init(self.spec.execution)
        if self.world.device.type == "cpu":
            keep_freed_memory()
        patience = self.spec.execution.watchdog_seconds
        self.watch = Watch(self.lease, self.world.rank, self.world.size, patience)
        self.watch.start()
        if self.world.is_main:
            self.lease.renew(State.RUNNING)
        self.data = open_data(self.spec.physics.data, self.run.workspace, self.spec.execution.data_paths)
        self.trainer = Trainer(run, self.spec, number, self.world, self.data, self.watch.heartbeat)
        if self.world.is_main:
            self._record_kernels()
        physics = self.spec.physics
        keep = {*launch.checkpoint_at, physics.steps}
        if physics.schedule.kind == "wsd":
            keep.add(physics.undecided_steps)  # a longer budget asked for later starts there
        self.checkpointer = Checkpointer(self.lease, self.world, self.spec.execution.keep_checkpoints, keep)
        self.saved_step: int | None = None
        self.began = 0
        self.checkpoint_at = keep

    def train(self) -> Verdict:
        """Start where the run stands, train, leave the result, and measure what is asked for. Returns the verdict."""
        self._find_start()
        self.began = self.trainer.step
        result = self.world.gather(self.run.result())[0]
        if result is None or not result.answers(self.spec) or self.began < self.spec.physics.steps:
            verdict = self._train()
            if verdict.state is not State.COMPLETED:
                return verdict
        return self._evaluate()

    def _train(self) -> Verdict:
        """Train to the last step, and leave the result. Returns the verdict on the training."""
        try:
            finished = self.trainer.train(self._at_boundary)
        except DivergedError as error:
            self.checkpointer.wait()
            return Verdict(state=State.DIVERGED, reason=str(error), step=error.step)
        step = self.trainer.step
        self._save()
        self.checkpointer.wait()
        self.world.sum(0.0)  # nobody leaves before the checkpoint is committed
        if not finished:
            return Verdict(state=State.PREEMPTED, reason=f"stopped by {self._stopper} after step {step}", step=step)
        if self.world.is_main:
            result = self._result()
            with self.lease.held():
                leave_result(self.run, self.spec, result)
        return Verdict(state=State.COMPLETED, step=step)

    def _evaluate(self) -> Verdict:
        """Make the evaluations that are missing, one after the other. Returns the verdict on the run."""
        step = self.trainer.step
        for evaluation in self.world.gather(self.run.unmeasured(self.spec))[0]:
            try:
                found = measure(self.trainer.model, evaluation, self.spec, self.run, self.world, self._stopped)
            except StoppedError:
                reason = f"stopped by {self._stopper} while {evaluation.name} was measured"
                return Verdict(state=State.PREEMPTED, reason=reason, step=step)
            if self.world.is_main:
                with self.lease.held():
                    leave_measured(self.run, self.spec, evaluation, found, self.number)
        self.world.sum(0.0)  # nobody leaves before the last file is written
        return Verdict(state=State.COMPLETED, step=step)

    def _stopped(self) -> bool:
        """Between two passes: beat, and agree whether to go on."""
        self.watch.heartbeat()
        return self._agreed()[0]

    def _agreed(self, failed: bool = False) -> tuple[bool, bool]:
        """Whether any rank was signalled to stop, and whether any `failed`. LeaseLostError where one lost its lease."""
        mine = (self.stop_signal is not None, self.watch.lease_lost.is_set(), failed)
        signalled, lost, failures = self.world.sum(*map(float, mine))
        if lost:
            raise LeaseLostError(f"{self.run.run_id}: the lease was taken by another launcher")
        return bool(signalled), bool(failures)

    @property
    def _stopper(self) -> str:
        return signal.Signals(self.stop_signal).name if self.stop_signal else "a signal to another rank"

    def close(self) -> None:
        """Part from the other ranks."""
        self.watch.stop()
        self.world.destroy()

    def _record_kernels(self) -> None:
        """Beside what was asked for, whether kernels for CPUs can run here: `auto` does without them where not."""
        device = self.world.device
        obstacle = cpu.missing() if device.type == "cpu" else f"the run is on {device}"
        record = {"asked": self.spec.execution.kernels, "for_cpus": obstacle or "can run"}
        write_json(self.run.kernels_file(self.number), record)

    def _on_signal(self, number: int, frame: object) -> None:
        self.stop_signal = number

    def _find_start(self) -> None:
        """Load the run's own latest checkpoint, else that of the trunk it forks from, else start anew."""
        checkpoint = latest_valid(self.run, self.world, self._report_corruption)
        if checkpoint is None and self.launch.fork is not None:
            trunk = self.run.workspace.run(self.launch.fork.run_id)
            checkpoint = fork_checkpoint(trunk, self.launch.fork.step, self.world)
        if checkpoint is not None:
            self._check_compatible(checkpoint)
            checkpoint.load(self.trainer.state)
            self.trainer.continue_from(checkpoint.record())
            self.saved_step = checkpoint.step if checkpoint.path.is_relative_to(self.run.path) else None
        if self.world.is_main and (checkpoint is not None or self.number > 1):
            self.run.append_metrics({"event": "resume", "attempt": self.number, "step": self.trainer.step})
        if self.world.is_main:
            self.run.change_evaluation(self.spec.evaluation_fingerprint, self.number)

    def _check_compatible(self, checkpoint: Checkpoint) -> None:
        """CheckpointError unless the checkpoint is of this run, or of one that is the same up to its step."""
        record, physics = checkpoint.record(), self.spec.physics
        if record.physics != physics and shared_steps(record.physics, physics) < record.step:
            raise CheckpointError(
                f"{checkpoint.path} is of {record.run_id}, which shares no {record.step} steps with this"
            )
        fingerprint = self.data.fingerprint
        if record.data_fingerprint != fingerprint:
            raise CheckpointError(
                f"{checkpoint.path} was trained on data {record.data_fingerprint}, prepared are {fingerprint} "
                f"in {self.data.path}"
            )

    def _at_boundary(self) -> bool:
        """Between two steps: save where it is time, and agree whether to go on."""
        trainer, every = self.trainer, self.spec.execution.checkpoint_every
        self.watch.progress(trainer.step)
        signalled, failures = self._agreed(self.checkpointer.failed())
        if failures:
            self.checkpointer.wait()  # raises on the rank that failed
        due = every is not None and trainer.step % every == 0 and trainer.step > 0
        if due or (trainer.step in self.checkpoint_at and trainer.step < self.spec.physics.steps):
            self._save()
        return not signalled or trainer.step == self.spec.physics.steps

    def _save(self) -> None:
        step = self.trainer.step
        if step == self.saved_step or step == 0:
            return
        self.saved_step = step
        record = CheckpointRecord(
            run_id=self.run.run_id,
            step=step,
            physics=self.spec.physics,
            data_fingerprint=self.data.fingerprint,
            ranks=self.world.size,
            micro_batch_sequences=self.trainer.micro,
        )
        self.checkpointer.save(self.trainer.state, record)

    def _report_corruption(self, corruption: str) -> None:
        print(f"damaged checkpoint: {corruption}; the one before is taken", file=sys.stderr)
        if self.world.is_main:
            self.run.append_metrics({"event": "damaged-checkpoint", "attempt": self.number, "reason": corruption})

    def _result(self) -> Result:
        validation = self.trainer.last_validation
        assert validation is not None
        earlier = self.run.result()
        if earlier is not None and self.began == earlier.steps:  # measured anew, not trained: what it cost stands
            quality = quality_codes(self.run, self.spec, self.data, validation)
            return earlier.model_copy(update={"validation": validation, "quality": quality})
        return make_result(self.run, self.spec, self.launch, self.data, validation)
