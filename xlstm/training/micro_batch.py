"""How many sequences a rank passes forward at a time. Imports without torch."""

from xlstm.accounting.memory import memory
from xlstm.spec import RunSpec

USABLE = 0.85
"""Of a device's free memory: the estimate knows neither fragmentation nor what the device's libraries take."""


def micro_batch(spec: RunSpec, free_bytes: int | None) -> int:
    """Sequences per rank and pass: what the launch states, else all of the rank's, else what the estimate lets in.

    `free_bytes` is None on CPU, where memory is not what binds. The result divides the rank's share of the batch.
    ValueError where not even one sequence fits.
    """
    per_rank = spec.physics.batch_sequences // spec.execution.ranks
    stated = spec.execution.micro_batch_sequences
    if stated is not None or free_bytes is None:
        return stated or per_rank
    for size in (size for size in range(per_rank, 0, -1) if per_rank % size == 0):
        if memory(_with(spec, size)).total <= USABLE * free_bytes:
            return size
    needed = memory(_with(spec, 1)).total / 2**30
    raise ValueError(
        f"one sequence needs about {needed:.1f} GiB, the device has {free_bytes / 2**30:.1f} GiB free: "
        "set activation_checkpointing: full, or more devices"
    )


def _with(spec: RunSpec, size: int) -> RunSpec:
    return spec.model_copy(update={"execution": spec.execution.model_copy(update={"micro_batch_sequences": size})})
