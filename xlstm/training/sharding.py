"""A run's layout, built without a device: the model on `meta`, spread by FSDP over a gang that is not there.

`build_layout` does what a rank's trainer does up to the first step, under a fake process group of as many ranks as the
run has: what cannot be built is found on any machine, and what rank 0 holds is counted from its shards. Parameters
whose rows do not divide by the ranks are padded, which the closed form of `xlstm.accounting` does not know.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from xlstm.models import build
from xlstm.run.spec import RunSpec
from xlstm.training.gang import Gang
from xlstm.training.parallel import make_mesh, parallelize

_BYTES = 16
"""Per element, float32: the parameter, its gradient and AdamW's two moments."""


@dataclass(frozen=True)
class Layout:
    """Bytes of parameters, gradients and moments on rank 0, which holds the largest shards."""

    sharded: int
    even: int
    """What they were if everything could be divided evenly, as the closed form takes it."""

    @property
    def padding(self) -> int:
        """What the closed form misses."""
        return self.sharded - self.even


def build_layout(spec: RunSpec) -> Layout:
    """Build the layout of a run. Raises what building it on the real gang would raise.

    No process group may be there already: RuntimeError.
    """
    if dist.is_initialized():
        raise RuntimeError("a layout is built under a process group of its own, and there is one already")
    physics, execution = spec.physics, spec.execution
    with torch.device("meta"):
        model: nn.Module = build(physics.model)
    gang = Gang(rank=0, size=execution.ranks, local_rank=0, device=torch.device("cpu"))
    with _fake_gang(execution.ranks):
        mesh = make_mesh(execution, gang)
        parallelize(model, physics, execution.model_copy(update={"compile": False}), mesh)
        sharded = sum(_local(parameter).numel() for parameter in model.parameters())
        shards = {"fsdp": execution.ranks, "hsdp": execution.devices, "none": 1}[execution.sharding]
        even = -(-sum(parameter.numel() for parameter in model.parameters()) // shards)
    return Layout(_BYTES * sharded, _BYTES * even)


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
