"""What rounding alone does to the loss of a run: the same training, repeated on sums that are rounded otherwise.

A repeat lies in a workspace of its own within the run's folder, so that nothing of the run is touched by it. Imports
without torch.
"""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.spec import Execution, RunSpec

THREADS, KERNELS, MICRO_BATCH = "threads", "kernels", "micro-batch"
REPEATS = (THREADS, KERNELS, MICRO_BATCH)
"""Names of the repeats, by what is another in each."""


@dataclass(frozen=True)
class Noise:
    """Losses of one training, measured alike."""

    run_id: str
    loss: float
    """The run's own, in nats per token."""
    repeats: Mapping[str, float]
    """Those of its repeats, by name."""

    @property
    def floor(self) -> float:
        """Standard deviation of the logarithm of the loss, over the run and its repeats."""
        return statistics.stdev(map(math.log, (self.loss, *self.repeats.values())))


def repeat_of(run: RunDirectory, name: str) -> RunDirectory:
    """The directory of a run's repeat."""
    return Workspace(run.noise / name).run(run.run_id)


def executions(spec: RunSpec, execution: Execution) -> dict[str, Execution]:
    """How each repeat of a run is carried out whose own execution was this one.

    Where a rank passes one sequence only, so that there is no other micro-batch, threads and kernels both are others.
    """
    per_rank = spec.physics.batch_sequences // execution.ranks
    micro = execution.micro_batch_sequences or per_rank
    smaller = [size for size in range(micro - 1, 0, -1) if per_rank % size == 0]
    threads: dict[str, object] = {"threads_per_rank": 1 if (execution.threads_per_rank or 1) > 1 else 2}
    kernels: dict[str, object] = {"kernels": "auto" if execution.kernels in ("torch", "reference") else "torch"}
    other: dict[str, object] = {"micro_batch_sequences": (smaller or [per_rank])[0]}
    changes = {THREADS: threads, KERNELS: kernels, MICRO_BATCH: other if per_rank > 1 else threads | kernels}
    at_the_end: dict[str, object] = {"checkpoint_every": None, "validate_every": None}
    return {name: execution.model_copy(update=at_the_end | change) for name, change in changes.items()}


def measured(run: RunDirectory) -> Noise | None:
    """The run's loss beside those of its repeats on the same text, measured by the same evaluation.

    None where there is none.
    """
    own = run.known_result() if run.noise.is_dir() else None
    if own is None:
        return None
    found = {name: repeat_of(run, name).known_result() for name in REPEATS}
    compared = {
        name: result.validation.loss
        for name, result in found.items()
        if result is not None
        and (result.validation.evaluation, result.data_fingerprint) == (own.validation.evaluation, own.data_fingerprint)
    }
    losses = (own.validation.loss, *compared.values())
    return Noise(run.run_id, own.validation.loss, compared) if compared and min(losses) > 0 else None
