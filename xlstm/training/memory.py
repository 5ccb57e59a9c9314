"""Bytes per device of a training step, by kind: a closed form, without building anything.

The optimizer's states in float32 over sharded parameters; a block's parameters are gathered for its pass, those of
embedding and head for the whole of it; every micro-batch saves what its blocks need for their backward pass. What the
allocator loses to fragmentation, and what the device's own libraries take, is not in it.
"""

import dataclasses

from xlstm.accounting.cards import count_gpus
from xlstm.accounting.cost import Sequence, total
from xlstm.accounting.families import costs, embedding, head, saved
from xlstm.run.spec import RunSpec

LOGITS_AT_ONCE = 2**24
"""Logits that the loss holds at a time on a CPU."""

LOGITS_COPIES = 2
"""Copies of them in float32: the logits and their logarithmic softmax, then that and its gradient."""

GPU_LOGITS_BYTES, GPU_LOGITS_ROWS = 2**29, 256
"""On a GPU: bytes of logits, in the computation's dtype, and the number that their rows are a multiple of."""


def kind_of_device(spec: RunSpec) -> str:
    """`cuda` or `cpu`, with `auto` decided by what this machine has."""
    device = spec.execution.device
    if device == "auto":
        return "cuda" if count_gpus() else "cpu"
    return device


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device at the peak of a step."""

    parameters: int
    """Bytes of this device's share of the parameters, in float32."""
    gradients: int
    """Bytes of this device's share, in float32, for the blocks that have gradients at the peak."""
    optimizer: int
    """Bytes of this device's share of AdamW's two moments, or of Muon's one for matrices, in float32."""
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
    inner = costs(config, sequence)
    blocks = [cost.parameters for cost in inner]
    blocks.pop()  # the head's
    logits = head(config).parameters
    root = logits + embedding(config).parameters
    share = -(-(sum(blocks) + root) // shards)
    spared = total(inner).matrices // shards if physics.optimizer.name == "muon" else 0

    micro = execution.micro_batch_sequences or physics.batch_sequences // ranks
    tokens = micro * physics.data.context_length
    accumulates = physics.batch_sequences > ranks * micro
    on_gpu = kind_of_device(spec) == "cuda"
    kept = [(block.bytes_per_token(itemsize, on_gpu), block.input * itemsize) for block in saved(config)]
    per_token, largest = _activations(kept, execution.activation_checkpointing)
    loss = _loss(tokens, config.num_outputs or config.vocab_size, logits, itemsize, on_gpu)

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
    return Memory(4 * share, gradients, 8 * share - 4 * spared, gathered, activations)


def _activations(blocks: list[tuple[float, float]], checkpointing: str) -> tuple[float, float]:
    """Bytes per token saved until the backward pass, and what the largest recomputed block adds while it runs.

    Of each block what it saves, and its input, which is all that one saves that is recomputed.
    """
    recomputed = [block for index, block in enumerate(blocks) if checkpointing == "full" or index % 2 == 0]
    if checkpointing == "none":
        recomputed = []
    whole = sum(kept for kept, _ in blocks)
    spared = sum(kept - own for kept, own in recomputed)
    return whole - spared, max((kept for kept, _ in recomputed), default=0.0)


def _loss(tokens: int, vocab: int, head: int, itemsize: int, on_gpu: bool) -> int:
    """Bytes of the loss beside its inputs; `head` are the parameters of the map to the logits.

    On a GPU the gradient takes the logits' place. Those of a batch that is one chunk are kept, and copied for it; else
    the head's gradient is summed over chunks in float32, each sum beside the one before.
    """
    if not on_gpu:
        return LOGITS_COPIES * 4 * min(LOGITS_AT_ONCE, tokens * vocab)
    rows = max(1, GPU_LOGITS_BYTES // itemsize // vocab // GPU_LOGITS_ROWS) * GPU_LOGITS_ROWS
    if tokens <= rows:
        return 2 * itemsize * tokens * vocab
    return itemsize * rows * vocab + 2 * 4 * head
