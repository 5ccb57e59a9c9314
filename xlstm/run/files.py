"""Names of everything that lies in a run's folder. Imports without torch."""

from dataclasses import dataclass
from pathlib import Path

from xlstm.run.spec import RunSpec

_COMPLETE = "COMPLETE"


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
        return self.path / "evaluations" / f"{spec.evaluation.name}-{spec.evaluation_fingerprint}.json"

    def meeting_file(self, token: str) -> Path:
        """In which the first of several nodes tells the others where the job with that token meets."""
        return self.path / f"meeting-{token}"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    def attempt(self, number: int) -> Path:
        """`attempts/<n>`: how it was launched and ended, what it ran on, and its logs."""
        return self.path / "attempts" / str(number)

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
        """Whether the checkpoint of a step was written whole."""
        return self.checkpoint_mark(step).exists()

    def checkpoint_steps(self) -> list[int]:
        """Steps whose checkpoints were written whole, the latest first."""
        names = [path.parent.name.removeprefix("step-") for path in self.checkpoints.glob(f"step-*/{_COMPLETE}")]
        return sorted((int(name) for name in names if name.isdigit()), reverse=True)
