"""What mixed precision casts, and what it leaves in float32."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from xlstm.distributed import World
from xlstm.models import build, hgrn2, llama, mamba, rwkv4
from xlstm.models.configs import LlamaConfig, MambaConfig, ModelConfig, RWKV4Config
from xlstm.models.linear_configs import HGRN2Config
from xlstm.run.spec import Data, Execution, Optimizer, Physics
from xlstm.training.parallel import init_weights, make_mesh, parallelize


@pytest.fixture
def world() -> Iterator[World]:
    world = World.init(Execution(device="cpu", threads_per_rank=1))
    yield world
    world.destroy()


def parallel(config: ModelConfig, checkpointing: str, world: World) -> nn.Module:
    """The model with its first weights, under FSDP in mixed precision."""
    physics = Physics(
        model=config,
        data=Data(corpus="text", revision="sha256:0", context_length=8),
        tokens=64,
        batch_tokens=16,
        optimizer=Optimizer(learning_rate=1e-3),
        precision="bf16-mixed",
    )
    with torch.device("meta"):
        model = build(config)
    execution = Execution(activation_checkpointing=checkpointing)  # type: ignore[arg-type]
    parallelize(model, physics, execution, make_mesh(execution, world))
    model.to_empty(device="cpu")
    init_weights(model, 0)
    return model


def test_mixed_precision_leaves_rotary_angles_in_float32(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 neighbouring positions beyond the 256th would have one angle."""
    config = LlamaConfig(vocab_size=64, embedding_dim=16, num_blocks=2, num_heads=2)
    model = parallel(config, "none", world)
    seen = []
    original = llama.rotary

    def watched(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        seen.append((query, cos))
        return original(query, key, cos, sin)

    monkeypatch.setattr(llama, "rotary", watched)
    tokens = torch.randint(64, (1, 8), generator=torch.Generator().manual_seed(0))
    model(tokens, targets=tokens)[0].sum().backward()
    angles = torch.arange(8)[:, None] * 10000.0 ** (-torch.arange(4) / 4)
    assert len(seen) == 2
    for query, cos in seen:
        assert query.dtype == torch.bfloat16
        torch.testing.assert_close(cos, angles.cos())


def test_mixed_precision_leaves_the_bounds_that_blocks_share_in_float32(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = parallel(HGRN2Config(vocab_size=64, embedding_dim=16, num_blocks=3, head_dim=8), "full", world)
    seen = []
    original = hgrn2.bounded_gate

    def watched(logits: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
        seen.append((logits.dtype, bound))
        return original(logits, bound)

    monkeypatch.setattr(hgrn2, "bounded_gate", watched)
    tokens = torch.randint(64, (1, 8), generator=torch.Generator().manual_seed(0))
    model(tokens, targets=tokens)[0].sum().backward()
    for block in range(3):
        dtype, bound = seen[block]
        assert dtype == torch.float32
        torch.testing.assert_close(bound, torch.full((16,), block / 3), rtol=1e-6, atol=0)
    gradient = next(p.grad for name, p in model.named_parameters() if "lower_bounds" in name)
    assert gradient is not None
    assert gradient.dtype == torch.float32


@pytest.mark.parametrize(
    ("config", "module", "operator", "decay", "checkpointing"),
    [
        (MambaConfig(vocab_size=64, embedding_dim=16, num_blocks=2), mamba, "selective_scan", "log_rates", "none"),
        (MambaConfig(vocab_size=64, embedding_dim=16, num_blocks=2), mamba, "selective_scan", "log_rates", "full"),
        (RWKV4Config(vocab_size=64, embedding_dim=16, num_blocks=2), rwkv4, "wkv", "decay", "none"),
    ],
    ids=["mamba", "mamba-checkpointed", "rwkv4"],
)
def test_mixed_precision_leaves_decays_in_float32_and_casts_the_matrices(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    config: ModelConfig,
    module: object,
    operator: str,
    decay: str,
    checkpointing: str,
) -> None:
    model = parallel(config, checkpointing, world)
    stored = {name: p.detach().full_tensor().clone() for name, p in model.named_parameters()}  # type: ignore[operator]
    assert {value.dtype for value in stored.values()} == {torch.float32}
    seen: list[tuple[Tensor, Tensor]] = []
    original = getattr(module, operator)

    def watched(*arguments: Tensor, **options: object) -> object:
        seen.append((arguments[2], arguments[0]))
        return original(*arguments, **options)

    monkeypatch.setattr(module, operator, watched)
    tokens = torch.randint(64, (2, 8), generator=torch.Generator().manual_seed(0))
    loss = model(tokens, targets=tokens)[0]
    loss.sum().backward()
    decays = next(value for name, value in stored.items() if name.startswith("blocks.0.") and name.endswith(decay))
    used, inputs = seen[0]
    assert torch.equal(used, -torch.exp(decays)), "not the stored float32 values"
    assert not torch.equal(used, -torch.exp(decays.bfloat16().float())), "representable in bfloat16: shows nothing"
    assert inputs.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None and gradient.dtype == torch.float32 for gradient in gradients.values())
