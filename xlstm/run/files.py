"""Names of everything that lies in a run's folder. Imports without torch."""

import re
from dataclasses import dataclass
from pathlib import Path

from xlstm.run.evaluations import Kind, fingerprint
from xlstm.run.spec import RunSpec

SET_ASIDE = ".damaged"
"""Ends the names of files that were set aside, because they were not what we wrote."""
_COMPLETE = "COMPLETE"
_NUMBER = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True)
class RunFiles:
    """Where one run keeps what: files of its own, a folder for each attempt, checkpoints and evaluations."""

    path: Path

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def spec_file(self) -> Path:
        return self.path / "spec.json"

    @property
    def status_file(self) -> Path:
        return self.path / "status.json"

    @property
    def status_lock(self) -> Path:
        """The file whose lock is held while the status is changed."""
        return self.path / "status.lock"

    @property
    def result_file(self) -> Path:
        """What the analysis reads; it is there once the run is trained."""
        return self.path / "result.json"

    @property
    def cancel_file(self) -> Path:
        """There while somebody asks for the end of the run."""
        return self.path / "cancel-requested"

    @property
    def supervisor_log(self) -> Path:
        """What the supervisors of all attempts print."""
        return self.path / "supervisor.log"

    @property
    def model_card_file(self) -> Path:
        return self.path / "model-card.md"

    @property
    def cursors(self) -> Path:
        """How far each tracking store has followed the run."""
        return self.path / "mlflow"

    def evaluation_file(self, spec: RunSpec) -> Path:
        """What the evaluation of `spec` measured on the trained run."""
        return self.evaluations / f"{spec.evaluation.name}-{spec.evaluation_fingerprint}.json"

    def measured_file(self, evaluation: Kind, spec: RunSpec) -> Path:
        """What another evaluation measured on the trained run."""
        return self.evaluations / f"{evaluation.name}-{fingerprint(evaluation, spec.physics.data)}.json"

    def measured_so_far_file(self, evaluation: Kind, spec: RunSpec) -> Path:
        """Sums of an evaluation that was begun; it goes when the evaluation is made."""
        return self.measured_file(evaluation, spec).with_suffix(".part")

    @property
    def evaluations(self) -> Path:
        """One file for each evaluation that was made of the trained run."""
        return self.path / "evaluations"

    @property
    def noise(self) -> Path:
        """Repeats of the trained run that tell what rounding alone does to its loss: a workspace for each."""
        return self.path / "noise"

    def meeting_file(self, token: str) -> Path:
        """In which the first of several nodes tells the others where the job with that token meets."""
        return self.path / f"meeting-{token}"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def attempts(self) -> Path:
        """One folder for each attempt."""
        return self.path / "attempts"

    def attempt(self, number: int) -> Path:
        """`attempts/<n>`: how it was launched and ended, what it ran on, and its logs."""
        return self.attempts / str(number)

    def attempt_numbers(self) -> list[int]:
        """Numbers of the attempts that left a folder, ascending."""
        return sorted(int(path.name) for path in self.attempts.glob("*") if _NUMBER.fullmatch(path.name))

    def launch_file(self, attempt: int) -> Path:
        return self.attempt(attempt) / "launch.json"

    def verdict_file(self, attempt: int) -> Path:
        return self.attempt(attempt) / "exit.json"

    def provenance_file(self, attempt: int) -> Path:
        """Versions, commit and machine of an attempt."""
        return self.attempt(attempt) / "provenance.json"

    def kernels_file(self, attempt: int) -> Path:
        """Which kernels an attempt asked for, and whether those for CPUs can run."""
        return self.attempt(attempt) / "kernels.json"

    def trace_file(self, attempt: int) -> Path:
        """What torch's profiler saw of an attempt's first rank, for chrome://tracing or ui.perfetto.dev."""
        return self.attempt(attempt) / "trace.json.gz"

    def rank_log(self, attempt: int, rank: int) -> Path:
        return self.attempt(attempt) / f"rank-{rank}.log"

    def torchrun_log(self, attempt: int, node: int) -> Path:
        return self.attempt(attempt) / f"torchrun-{node}.log"

    def heartbeat_file(self, attempt: int, rank: int) -> Path:
        """Where a rank's main thread stands; removed when the rank ends in an orderly way."""
        return self.attempt(attempt) / f"rank-{rank}.alive"

    def logs(self, attempt: int) -> list[Path]:
        """Log files of an attempt: those of the ranks, then those of torchrun."""
        directory = self.attempt(attempt)
        return [*sorted(directory.glob("rank-*.log")), *sorted(directory.glob("torchrun-*.log"))]

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """`checkpoints/step-…`: whole once its last file is written."""
        return self.checkpoints / f"step-{step:08d}"

    def checkpoint_aside(self, step: int, attempt: int) -> Path:
        """Where an attempt writes a checkpoint before it takes its place."""
        return self.checkpoints / f".step-{step:08d}.attempt-{attempt}"

    def checkpoints_aside(self) -> list[Path]:
        """Checkpoints that are being written, or were left half-written."""
        return list(self.checkpoints.glob(".step-*"))

    def checkpoint_mark(self, step: int) -> Path:
        """The last file that is written of a checkpoint: without it, there is none."""
        return self.checkpoint(step) / _COMPLETE

    def has_checkpoint(self, step: int) -> bool:
        """Whether the checkpoint of a step was written whole. A link is none: what it leads to is not the run's."""
        return self.checkpoint_mark(step).is_file() and not self.checkpoint(step).is_symlink()

    def checkpoint_steps(self) -> list[int]:
        """Steps whose checkpoints were written whole, the latest first."""
        steps = [_step(path.name.removeprefix("step-")) for path in self.checkpoints.glob("step-*")]
        return sorted((step for step in steps if step is not None and self.has_checkpoint(step)), reverse=True)

    def stray_checkpoints(self) -> list[Path]:
        """What lies among the checkpoints and is none: under another name, a file, or a link."""
        return sorted(path for path in self.checkpoints.glob("[!.]*") if _is_stray(path))

    def folders(self) -> list[Path]:
        """Every folder of the run, those of its attempts included, whether it is there or not."""
        attempts = [self.attempt(number) for number in self.attempt_numbers()]
        return [self.path, self.attempts, *attempts, self.evaluations, self.cursors, self.checkpoints, self.noise]

    def files(self) -> list[Path]:
        """Every file of the run but those of checkpoints and tracking, whether it is there or not."""
        own = [self.spec_file, self.status_file, self.status_lock, self.result_file, self.metrics_file]
        own += [self.cancel_file, self.supervisor_log, self.model_card_file]
        for number in self.attempt_numbers():
            own += [self.launch_file(number), self.verdict_file(number), self.provenance_file(number)]
            own += [self.kernels_file(number), self.trace_file(number), *self.logs(number)]
        return [*own, *sorted(self.evaluations.glob("*.json"))]


def _step(name: str) -> int | None:
    """The step that a checkpoint's name tells; None for a name that we do not give."""
    return int(name) if _NUMBER.fullmatch(name) and name == f"{int(name):08d}" else None


def _is_stray(path: Path) -> bool:
    if path.name.endswith(SET_ASIDE):
        return False
    prefix, _, step = path.name.partition("-")
    return prefix != "step" or _step(step) is None or path.is_symlink() or not path.is_dir()
