"""How many sequences a rank passes forward at a time: estimated for a plan, measured where it trains.

Imports without torch.
"""

from collections.abc import Callable
from dataclasses import dataclass

from xlstm.run.spec import RunSpec
from xlstm.training.memory import memory

USABLE = 0.85
"""Share of a device's free memory to plan with: the estimate knows neither fragmentation nor the device's libraries."""


def micro_batch(spec: RunSpec, free_bytes: int | None) -> int:
    """Sequences per rank and pass: what the launch states, else all of the rank's, else what the estimate lets in.

    `free_bytes` is None on CPU, where memory is not what binds. The result divides the rank's share of the batch.
    ValueError where not even one sequence fits.
    """
    per_rank = spec.physics.batch_sequences // spec.execution.ranks
    stated = spec.execution.micro_batch_sequences
    if stated is not None or free_bytes is None:
        return stated or per_rank
    for size in _divisors(per_rank):
        if memory(_with(spec, size)).total <= USABLE * free_bytes:
            return size
    needed = memory(_with(spec, 1)).total / 2**30
    raise ValueError(
        f"one sequence needs about {needed:.1f} GiB, the device has {free_bytes / 2**30:.1f} GiB free: "
        "set activation_checkpointing: full, or more devices"
    )


SPARE = 0.08
"""Part of the memory that a measured micro-batch leaves: allocators do not find room for every last byte."""


@dataclass(frozen=True)
class Probe:
    """Bytes that a rank holds at the peak of a forward and backward pass, measured: `first`, and `more` a sequence."""

    first: int
    more: int
    available: int

    @classmethod
    def measure(cls, peak: Callable[[int], int], held: int, available: int, per_rank: int) -> "Probe":
        """Measure one and two sequences; `peak(n)` passes n, `held` are the bytes before, gradients not among them.

        Two are passed only where they must fit: activations at most double. Else each is taken to need what the first
        did.
        """
        first = peak(1)
        upper = 2 * first - held
        return cls(first, (peak(2) if per_rank > 1 and upper <= available else upper) - first, available)

    def choose(self, per_rank: int, before: int | None = None) -> int:
        """Sequences of each pass: the largest divisor of `per_rank` that leaves SPARE of the memory.

        `before`, the choice of an earlier attempt, is taken again where it fits at all, so that sums are rounded alike.
        """

        def fits(size: int, share: float) -> bool:
            return self.first + (size - 1) * self.more <= share * self.available

        if before is not None and per_rank % before == 0 and fits(before, 1.0):
            return before
        return next((size for size in _divisors(per_rank) if fits(size, 1 - SPARE)), 1)


def _divisors(number: int) -> list[int]:
    """From the largest to 1."""
    return [size for size in range(number, 0, -1) if number % size == 0]


def _with(spec: RunSpec, size: int) -> RunSpec:
    return spec.model_copy(update={"execution": spec.execution.model_copy(update={"micro_batch_sequences": size})})
