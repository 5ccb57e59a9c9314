"""How a model is spread over ranks: FSDP2 meshes, mixed precision, activation checkpointing, compilation.

The model knows nothing of this file: `model.blocks` is all it needs.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn

from xlstm.distributed import World
from xlstm.models import build
from xlstm.models.initialization import initial_value
from xlstm.run.spec import Execution, Physics, RunSpec
from xlstm.training.optimization.parametrization import STANDARD, Factors, plain_name

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import Shard


def make_mesh(execution: Execution, world: World) -> "DeviceMesh":
    """The run's ranks, by what they shard and what they replicate."""
    from torch.distributed.device_mesh import init_device_mesh

    per_shard = execution.shards
    if per_shard == world.size:
        return init_device_mesh(world.device.type, (world.size,), mesh_dim_names=("shard",))
    shape = (world.size // per_shard, per_shard)
    return init_device_mesh(world.device.type, shape, mesh_dim_names=("replicate", "shard"))


def parallelize(model: nn.Module, physics: Physics, execution: Execution, mesh: "DeviceMesh") -> None:
    """Prepare a model, in place, for training on the mesh. Gradients come out summed over the ranks, not averaged."""
    if execution.activation_checkpointing != "none":
        _checkpoint_activations(model, execution.activation_checkpointing)
    if execution.compile:
        for block in model.blocks:  # type: ignore[union-attr]
            block.compile()
    if mesh.size() > 1 or physics.precision != "float32":  # one rank in float32 has nothing to shard or to cast
        _shard(model, physics, mesh)


def _shard(model: nn.Module, physics: Physics, mesh: "DeviceMesh") -> None:
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
    from torch.distributed.fsdp import fully_shard as shard_by_row

    fully_shard = partial(shard_by_row, shard_placement_fn=partial(_placement, shards=mesh["shard"].size()))
    parameters = torch.bfloat16 if physics.precision == "bf16-mixed" else None
    policy = MixedPrecisionPolicy(param_dtype=parameters, reduce_dtype=torch.float32)
    # What one rank holds whole is gathered once a step, as a copy in the dtype of the computation.
    again = mesh["shard"].size() > 1
    for block in model.blocks:  # type: ignore[union-attr]
        precise = {module for module in block.modules() if getattr(module, "keeps_float32", False)}
        if parameters is not None and precise:
            # One group of all that is cast; what is left to the block's own group stays as it is stored.
            cast = [m for m in block.modules() if m not in precise and any(True for _ in m.parameters(recurse=False))]
            fully_shard(cast, mesh=mesh, mp_policy=policy, reshard_after_forward=again)
            own = MixedPrecisionPolicy(reduce_dtype=torch.float32)
            fully_shard(block, mesh=mesh, mp_policy=own, reshard_after_forward=again)
        else:
            fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=again)
    for module in model.children():
        if getattr(module, "keeps_float32", False):  # what blocks share and sums compound
            fully_shard(module, mesh=mesh, mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32))
    # The root's own parameters (embedding, head) are needed first and last: gathering them twice does not pay.
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def reshard(model: nn.Module) -> None:
    """Free what was gathered of a model's parameters, wherever it is sharded."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _placement(parameter: nn.Parameter, shards: int) -> "Shard | None":
    """Rows, as ever, where there is one for each rank; else the first dimension that the ranks divide, if there is one.

    The four gates of an sLSTM lie in its first dimension: by rows, all but four ranks would hold nothing of them.
    """
    from torch.distributed.tensor import Shard

    if parameter.shape[0] >= shards:
        return None
    return next((Shard(index) for index, size in enumerate(parameter.shape) if size % shards == 0), None)


def _checkpoint_activations(model: nn.Module, mode: str) -> None:
    # Torch has the wrapper of a whole module under a private path alone.
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    blocks = model.blocks
    assert isinstance(blocks, nn.ModuleList)
    for index, block in enumerate(blocks):
        if mode == "full" or index % 2 == 0:  # selective: every other block
            blocks[index] = checkpoint_wrapper(block)


def init_weights(model: nn.Module, seed: int, factors: Mapping[str, Factors] = STANDARD) -> None:
    """Give every parameter its initial value, each rank its shards: one whole parameter at a time is in memory."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            value = initial_value(model, plain_name(name), parameter.shape, seed)  # type: ignore[arg-type]
            if plain_name(name) in factors:
                value = factors[plain_name(name)].initial(value)
            if hasattr(parameter, "to_local"):
                from torch.distributed.tensor import DTensor, distribute_tensor

                assert isinstance(parameter, DTensor)
                # Every rank has the same value: without a source rank each takes its part and nothing is sent.
                placed = value.to(parameter.device)
                value = distribute_tensor(placed, parameter.device_mesh, parameter.placements, src_data_rank=None)
            parameter.copy_(value)


_BYTES_TRAINED = 16
"""Bytes per element in float32: the parameter, its gradient and AdamW's two moments; Muon spares one of them."""


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
    """A run's layout, built without a device: the model on `meta`, spread by FSDP over ranks that are not there.

    It does what a rank's trainer does up to the first step, under a fake process group: what cannot be built is found
    on any machine, with the error that the real one would raise, and what rank 0 holds is counted from its shards.
    Parameters whose rows do not divide by the ranks are padded, unknown to the closed form of `xlstm.accounting`.

    No process group may be there already: RuntimeError.
    """
    if dist.is_initialized():
        raise RuntimeError("a layout is built under a process group of its own, and there is one already")
    physics, execution = spec.physics, spec.execution
    with torch.device("meta"):
        model: nn.Module = build(physics.model)
    world = World(rank=0, size=execution.ranks, device=torch.device("cpu"))
    with _fake_world(execution.ranks):
        mesh = make_mesh(execution, world)
        parallelize(model, physics, execution.model_copy(update={"compile": False}), mesh)
        sharded = sum(local_shard(parameter).numel() for parameter in model.parameters())
        even = -(-sum(parameter.numel() for parameter in model.parameters()) // execution.shards)
        by_muon = [
            parameter
            for name, parameter in model.named_parameters()
            if physics.optimizer.name == "muon" and model.is_matrix(plain_name(name), parameter)  # type: ignore[operator]
        ]
        spared = sum(local_shard(parameter).numel() for parameter in by_muon)
        spared_evenly = sum(parameter.numel() for parameter in by_muon) // execution.shards
    return Layout(_BYTES_TRAINED * sharded - 4 * spared, _BYTES_TRAINED * even - 4 * spared_evenly)


def local_shard(parameter: torch.Tensor) -> torch.Tensor:
    """This rank's part of a tensor that is spread over ranks; any other as it is."""
    local: torch.Tensor = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return local


@contextlib.contextmanager
def _fake_world(ranks: int) -> Iterator[None]:
    """A process group of so many ranks, of which this process is the first and the others are not there."""
    # A private path of torch: importing it registers the backend "fake", whose collectives move nothing.
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()
