"""A run's layout, built without a device: the model on `meta`, spread by FSDP over a gang that is not there.

`build_layout` does what a rank's trainer does up to the first step, under a fake process group of as many ranks as the
run has: what cannot be built is found on any machine, and what rank 0 holds is counted from its shards, not estimated.
What the blocks keep for their backward pass stays the closed form of `xlstm.accounting`, which is held to torch's own
saved tensors elsewhere.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from xlstm.accounting import memory
from xlstm.models import build
from xlstm.spec import RunSpec
from xlstm.training.gang import Gang
from xlstm.training.parallel import parallelize

_COPIES = 4
"""Of each rank's shards, float32: the parameters, their gradients and AdamW's two moments."""


@dataclass(frozen=True)
class Layout:
    """Bytes on rank 0, which holds the largest shards, at the peak of a step."""

    sharded: int
    """Its shards of parameters, gradients and moments."""
    gathered: int
    """Whole parameters and gradients of embedding and head, and of the two blocks that are gathered at a time."""
    activations: int

    @property
    def total(self) -> int:
        return self.sharded + self.gathered + self.activations


def build_layout(spec: RunSpec) -> Layout:
    """Build the layout of a run whose micro-batch is stated. Raises what building it on the real gang would raise.

    No process group may be there already: RuntimeError.
    """
    if dist.is_initialized():
        raise RuntimeError("a layout is built under a process group of its own, and there is one already")
    physics, execution = spec.physics, spec.execution
    with torch.device("meta"):
        model: nn.Module = build(physics.model)
    whole = {name: _gathered_bytes(module, spec) for name, module in model.named_modules() if _is_block(name)}
    root = _gathered_bytes(model, spec) - sum(whole.values())
    gang = Gang(rank=0, size=execution.ranks, local_rank=0, device=torch.device("cpu"))
    with _fake_gang(execution.ranks):
        parallelize(model, physics, execution.model_copy(update={"compile": False}), gang)
        sharded = sum(_local(parameter).numel() * 4 for parameter in model.parameters())
    wrapped = execution.ranks > 1 or physics.precision != "float32"
    return Layout(
        sharded=_COPIES * sharded,
        gathered=2 * (root + 2 * max(whole.values())) if wrapped else 0,
        activations=memory(spec).activations,
    )


def _is_block(name: str) -> bool:
    return name.startswith("blocks.") and name.count(".") == 1


def _gathered_bytes(module: nn.Module, spec: RunSpec) -> int:
    """Of a module's parameters in the dtype in which it computes."""
    precise = {
        id(parameter)
        for part in module.modules()
        if getattr(part, "keeps_float32", False)
        for parameter in part.parameters()
    }
    cast = 2 if spec.physics.precision == "bf16-mixed" else 4
    return sum(parameter.numel() * (4 if id(parameter) in precise else cast) for parameter in module.parameters())


def _local(parameter: torch.Tensor) -> torch.Tensor:
    local: torch.Tensor = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return local


@contextlib.contextmanager
def _fake_gang(ranks: int) -> Iterator[None]:
    """A process group of so many ranks, of which this process is the first and the others are not there."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()
