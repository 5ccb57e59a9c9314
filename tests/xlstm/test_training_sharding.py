"""A layout built under ranks that are not there holds what real ones would hold."""

import pytest
import torch
import torch.distributed as dist

from xlstm.accounting import parameters
from xlstm.models import build
from xlstm.models.configs import ModelConfig
from xlstm.models.sizes import config_for
from xlstm.run.spec import Data, Execution, Optimizer, Physics, RunSpec
from xlstm.training.memory import memory
from xlstm.training.parallel import build_layout


def spec(model: ModelConfig, **execution: object) -> RunSpec:
    data = Data(corpus="named", revision="r", tokenizer="gpt2", context_length=256)
    physics = Physics(
        model=model,
        data=data,
        tokens=2**20,
        batch_tokens=2**15,
        optimizer=Optimizer(learning_rate=1e-3),
        precision="bf16-mixed",
    )
    return RunSpec(physics=physics, execution=Execution(micro_batch_sequences=1, **execution))


def largest_shards(model: ModelConfig, shards: int) -> int:
    """Elements on the first rank: a parameter is cut by rows into chunks of equal length, the last perhaps shorter.

    One with fewer rows than ranks is cut evenly along another dimension, where the ranks divide one.
    """
    with torch.device("meta"):
        parameters = list(build(model).parameters())
    total = 0
    for parameter in parameters:
        divides = any(size % shards == 0 for size in parameter.shape)
        rows = -(-parameter.shape[0] // shards) * parameter[0].numel()
        total += parameter.numel() // shards if parameter.shape[0] < shards and divides else rows
    return total


@pytest.mark.parametrize(
    ("execution", "shards"),
    [
        ({"nodes": 4, "devices": 8}, 32),
        ({"nodes": 4, "devices": 8, "sharding": "hsdp"}, 8),
        ({"nodes": 4, "devices": 8, "sharding": "none"}, 1),
        ({"devices": 8, "activation_checkpointing": "full"}, 8),
        ({"devices": 1}, 1),
    ],
)
@pytest.mark.parametrize("family", ["xlstm[7:1]", "mamba"])
def test_each_rank_holds_its_shards_of_parameters_gradients_and_two_moments(
    family: str, execution: dict[str, object], shards: int
) -> None:
    run = spec(config_for(family, "125M", 50304), **execution)
    layout = build_layout(run)
    assert layout.sharded == 16 * largest_shards(run.physics.model, shards)
    assert not dist.is_initialized()


@pytest.mark.parametrize("family", ["xlstm[7:1]", "xlstm[1:0]", "llama", "mamba", "rwkv4"])
def test_the_largest_models_are_spread_evenly_over_32_ranks(family: str) -> None:
    run = spec(config_for(family, "2.7B", 50304), nodes=4, devices=8)
    layout = build_layout(run)
    assert layout.even == 16 * -(-parameters(run.physics.model).total // 32)
    assert layout.padding < 0.01 * layout.even


def test_a_matrix_that_muon_moves_has_one_state_in_the_layout_and_in_the_closed_form() -> None:
    adamw = spec(config_for("xlstm[7:1]", "125M", 50304), devices=4)
    physics = adamw.physics.model_copy(update={"optimizer": Optimizer(name="muon", learning_rate=1e-3)})
    muon = adamw.with_physics(physics)
    spared = memory(adamw).optimizer - memory(muon).optimizer
    assert spared == build_layout(adamw).even - build_layout(muon).even
    assert 0.9 < spared / parameters(physics.model).non_embedding < 1  # four bytes, over four ranks
