"""What a run takes of memory and disk, against the card it is planned for. A closed form; nothing is built.

On GPU the trainer takes the largest micro-batch that fits what is free; the plan finds the same one for the card that
the sweep states. Where none is stated, GPU runs are planned for `DEFAULT_CARD`, and the plan says so.
"""

from collections.abc import Collection, Hashable
from dataclasses import dataclass

from xlstm.accounting.cards import CARDS, Card
from xlstm.run.spec import RunSpec
from xlstm.training.memory import kind_of_device, memory
from xlstm.training.micro_batch import USABLE, micro_batch

DEFAULT_CARD = CARDS["H100-80GB"]
PROCESS_GIB, KEPT = 0.53, 1.5
"""What a trainer's process takes on CPU: libraries and compiled kernels, and the closed form times what its allocator
keeps of what was freed. Peaks of the quickstart's 18 runs are 0.52 GiB and 1.4 to 1.6 times the closed form, those of
models of 1.5M to 7M parameters 1.5 times; where activations are recomputed, up to 0.3 GiB more."""
BYTES_PER_PARAMETER = 12
"""Of a checkpoint: the parameter and two moments in float32."""


@dataclass(frozen=True)
class Capacity:
    """Memory of one rank at the micro-batch it is expected to take."""

    micro_batch_sequences: int
    memory_gib: float
    """Estimated peak per device, on CPU that of a rank's process; where not even one sequence fits, that of one."""
    usable_gib: float | None
    """Of the card's memory, without what fragmentation and libraries take; None on CPU."""

    @property
    def fits(self) -> bool | None:
        """Whether the run fits the card; None on CPU, where the machine's memory is not asked."""
        return None if self.usable_gib is None else self.memory_gib <= self.usable_gib


def card_of(spec: RunSpec, stated: str | None) -> Card | None:
    """The card a run is planned for; None on CPU."""
    if kind_of_device(spec) == "cpu":
        return None
    return CARDS[stated] if stated else DEFAULT_CARD


def layout_key(spec: RunSpec) -> Hashable:
    """What a rank's memory depends on, beside its card: the runs of a sweep have few layouts."""
    physics, execution = spec.physics, spec.execution
    return (
        *(physics.model, physics.data.context_length, physics.batch_sequences, physics.precision),
        *(execution.nodes, execution.devices, execution.sharding, execution.activation_checkpointing),
        *(execution.micro_batch_sequences, execution.runs_per_device),
    )


_known: dict[Hashable, Capacity] = {}


def capacity(spec: RunSpec, card: Card | None) -> Capacity:
    """What a run takes of a card, or of this machine where there is none."""
    key = (layout_key(spec), card)
    if key not in _known:
        _known[key] = _capacity(spec, card)
    return _known[key]


def _capacity(spec: RunSpec, card: Card | None) -> Capacity:
    memory_gib = None if card is None else card.memory_gib / spec.execution.runs_per_device
    available = None if memory_gib is None else int(memory_gib * 2**30)
    try:
        size = micro_batch(spec, available)
    except ValueError:
        size = 1
    execution = spec.execution.model_copy(update={"micro_batch_sequences": size})
    needed = memory(spec.model_copy(update={"execution": execution})).total / 2**30
    if memory_gib is None:
        return Capacity(size, PROCESS_GIB + KEPT * needed, None)
    return Capacity(size, needed, USABLE * memory_gib)


def checkpoint_steps(spec: RunSpec, start: int, checkpoint_at: Collection[int]) -> tuple[int, int]:
    """How many checkpoints a run that starts at a step writes, and how many of them stay."""
    physics, every = spec.physics, spec.execution.checkpoint_every
    kept = {physics.steps, *checkpoint_at}
    if physics.schedule.kind == "wsd":
        kept.add(physics.undecided_steps)
    kept = {step for step in kept if start < step <= physics.steps}
    regular = physics.steps // every - start // every if every else 0
    rolling = regular - sum(step % every == 0 for step in kept) if every else 0
    return rolling + len(kept), min(rolling, spec.execution.keep_checkpoints) + len(kept)


def checkpoint_gib(parameters: int) -> float:
    """Size of one checkpoint."""
    return parameters * BYTES_PER_PARAMETER / 2**30
