"""`compile: true` compiles the blocks, and what comes out is what came out before."""

import shutil
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from xlstm.distributed import World
from xlstm.models import build
from xlstm.models.configs import LlamaConfig, ModelConfig, XLSTMConfig
from xlstm.run.spec import Data, Execution, Optimizer, Physics
from xlstm.training.optimization.parametrization import named_parameters
from xlstm.training.parallel import init_weights, make_mesh, parallelize

MODELS = [
    LlamaConfig(vocab_size=64, embedding_dim=16, num_blocks=1, num_heads=2),
    XLSTMConfig(vocab_size=64, embedding_dim=16, num_blocks=1, num_heads=2),
]


@pytest.fixture
def world() -> Iterator[World]:
    world = World.init(Execution(device="cpu", threads_per_rank=1))
    yield world
    world.destroy()


@pytest.mark.skipif(
    shutil.which("c++") is None, reason="torch compiles for CPUs with a C++ compiler, and there is none"
)
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.family)
def test_compiled_blocks_give_the_same_losses_and_gradients(world: World, model: ModelConfig) -> None:
    torch.compiler.reset()
    counters = torch._dynamo.utils.counters["stats"]
    counters.clear()
    plain, gradients = _losses_and_gradients(world, model, compiled=False)
    assert counters["unique_graphs"] == 0
    compiled, compiled_gradients = _losses_and_gradients(world, model, compiled=True)
    assert counters["unique_graphs"] == 1
    torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=1e-6)
    assert compiled_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(compiled_gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def _losses_and_gradients(world: World, config: ModelConfig, compiled: bool) -> tuple[Tensor, dict[str, Tensor]]:
    physics = Physics(
        model=config,
        data=Data(corpus="text", revision="sha256:0", context_length=8),
        tokens=64,
        batch_tokens=16,
        optimizer=Optimizer(learning_rate=1e-3),
    )
    model: nn.Module = build(config)
    execution = Execution(compile=compiled)
    parallelize(model, physics, execution, make_mesh(execution, world))
    init_weights(model, 0)
    tokens = torch.randint(64, (2, 9), generator=torch.Generator().manual_seed(0))
    losses = model(tokens[:, :-1], targets=tokens[:, 1:])[0]
    losses.sum().backward()
    return losses.detach(), {name: p.grad for name, p in named_parameters(model) if p.grad is not None}
