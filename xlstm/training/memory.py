"""Bytes per device of a training step, by kind: a closed form, without building anything.

AdamW in float32 over sharded parameters; a block's parameters are gathered for its pass, those of embedding and head
for the whole of it; every micro-batch saves what its blocks need for their backward pass. What the allocator loses to
fragmentation, and what the device's own libraries take, is not in it.
"""

import dataclasses

from xlstm.accounting.cost import Saved, Sequence
from xlstm.accounting.families import costs, embedding_parameters, head, saved
from xlstm.run.spec import RunSpec

LOGITS_AT_ONCE = 2**24
"""Logits that the loss holds at a time on a CPU; on a GPU it holds up to 2^28, which is not counted here."""

LOGITS_COPIES = 2
"""Copies of them in float32: the logits and their logarithmic softmax, then that and its gradient."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device at the peak of a step."""

    parameters: int
    """Bytes of this device's share of the parameters, in float32."""
    gradients: int
    """Bytes of this device's share, in float32, for the blocks that have gradients at the peak."""
    optimizer: int
    """Bytes of this device's share of AdamW's two moments, in float32."""
    gathered: int
    """Bytes of whole parameters and gradients in the dtype of the computation, and of float32 sums over the ranks."""
    activations: int
    """Bytes saved for the backward pass, with the working memory of the loss."""

    @property
    def total(self) -> int:
        """All kinds together."""
        return sum(getattr(self, field.name) for field in dataclasses.fields(self))


def memory(spec: RunSpec) -> Memory:
    """Bytes per device of one run: its model, precision and context, under its sharding and checkpointing.

    The peak is one of three moments: the loss, when all activations are there; the backward pass of the last block,
    which comes first; and the end, when all gradients are there and those of embedding and head are summed over ranks.
    """
    physics, execution = spec.physics, spec.execution
    config = physics.model
    mixed = physics.precision == "bf16-mixed"
    itemsize = 2 if mixed else 4
    ranks = execution.ranks
    shards = execution.shards

    sequence = Sequence(physics.data.context_length, physics.data.context_length, True)
    blocks = [cost.parameters for cost in costs(config, sequence)]
    blocks.pop()  # the head's
    logits = head(config).parameters
    root = logits + embedding_parameters(config)
    share = -(-(sum(blocks) + root) // shards)

    micro = execution.micro_batch_sequences or physics.batch_sequences // ranks
    tokens = micro * physics.data.context_length
    accumulates = physics.batch_sequences > ranks * micro
    per_token, largest = _activations(saved(config, sequence), execution.activation_checkpointing, itemsize)
    loss = LOGITS_COPIES * 4 * min(LOGITS_AT_ONCE, tokens * config.vocab_size)

    wrapped = ranks > 1 or mixed  # one rank in float32 computes with the parameters themselves
    gathered, reduced = (itemsize, 4) if wrapped else (0, 0)
    whole = sum(blocks) + root
    # Sums of several passes: of all parameters, as they are summed over the ranks in the last pass alone.
    before = 4 * (whole if ranks > 1 else share) if accumulates else 0
    block = max(blocks)
    # The block's parameters and gradients, and the parameters of the next; those of all where a rank holds them whole.
    in_turn = (sum(blocks) if shards == 1 else 2 * block) + block
    moments = [
        (before, gathered * (root + sum(blocks) * (shards == 1)) + itemsize * logits, int(tokens * per_token) + loss),
        (
            before,
            gathered * (root + in_turn) + reduced * block + itemsize * logits,
            int(tokens * (per_token + largest)),
        ),
        (4 * share, (gathered + reduced) * root, 0),
    ]
    gradients, gathered, activations = max(moments, key=sum)
    return Memory(4 * share, gradients, 8 * share, gathered, activations)


def _activations(blocks: list[Saved], checkpointing: str, itemsize: int) -> tuple[float, float]:
    """Bytes per token saved until the backward pass, and what the largest recomputed block adds while it runs.

    A block that is recomputed saves its input alone.
    """
    recomputed = [block for index, block in enumerate(blocks) if checkpointing == "full" or index % 2 == 0]
    if checkpointing == "none":
        recomputed = []
    whole = sum(block.bytes_per_token(itemsize) for block in blocks)
    spared = sum(block.bytes_per_token(itemsize) - block.input * itemsize for block in recomputed)
    largest = max((block.bytes_per_token(itemsize) for block in recomputed), default=0.0)
    return whole - spared, largest
