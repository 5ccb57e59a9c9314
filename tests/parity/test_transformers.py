"""A model saved by us is loaded by `transformers`, and gives there the same logits, gradients and greedy tokens."""

from pathlib import Path

import pytest
import torch
from peers import needs_peers, relative_error, run_peer
from torch import Tensor, nn

from xlstm.export.transformers import load, save, to_transformers
from xlstm.models import build
from xlstm.models.configs import GPTConfig, LlamaConfig, MambaConfig, ModelConfig, RWKV4Config
from xlstm.models.initialization import initialize
from xlstm.models.linear_configs import Mamba2Config

TOLERANCE = 1e-5
"""Of the Frobenius norm, relative: about a hundred roundings of float32."""

CONFIGS: dict[str, ModelConfig] = {
    "llama": LlamaConfig(vocab_size=61, embedding_dim=64, num_blocks=3, num_heads=4, rope_theta=5000.0),
    "gpt": GPTConfig(vocab_size=61, embedding_dim=64, num_blocks=3, num_heads=4, context_length=256),
    "mamba": MambaConfig(vocab_size=61, embedding_dim=64, num_blocks=3),
    "mamba2": Mamba2Config(vocab_size=61, embedding_dim=64, num_blocks=3, state_dim=16, head_dim=16),
    "rwkv4": RWKV4Config(vocab_size=61, embedding_dim=64, num_blocks=3),
}


def greedy(model: nn.Module, prompt: Tensor, count: int) -> Tensor:
    """The most probable continuation, token by token, from the state."""
    with torch.no_grad():
        logits, state = model(prompt)
        tokens = [logits[:, -1:].argmax(-1)]
        for _ in range(count - 1):
            logits, state = model(tokens[-1], state)
            tokens.append(logits[:, -1:].argmax(-1))
    return torch.cat(tokens, dim=1)


@needs_peers
@pytest.mark.serial
@pytest.mark.parametrize("length", [3, 67, 256])
@pytest.mark.parametrize("family", CONFIGS)
def test_transformers_agrees(family: str, length: int, tmp_path: Path) -> None:
    config = CONFIGS[family]
    model = build(config)
    initialize(model, seed=length)
    generator = torch.Generator().manual_seed(length)
    with torch.no_grad():  # away from initial values, so that every weight matters
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    tokens = torch.randint(config.vocab_size, (2, length), generator=generator)
    coefficients = torch.randn(2, length, config.vocab_size, generator=generator)
    prompt = torch.randint(config.vocab_size, (2, 9), generator=generator)
    save(model, config, tmp_path / "ours")

    theirs = run_peer(
        "transformers",
        {"model": str(tmp_path / "ours"), "new_tokens": 24, "save_to": str(tmp_path / "theirs")},
        {"tokens": tokens, "coefficients": coefficients, "prompt": prompt},
    )

    logits, _ = model(tokens)
    (logits * coefficients).sum().backward()
    gradients = to_transformers(config, {name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    errors = {name: relative_error(value, theirs[f"gradient.{name}"]) for name, value in gradients.items()}
    errors["logits"] = relative_error(logits, theirs["logits"])
    assert len(errors) == len(theirs) - 1
    assert {name: error for name, error in errors.items() if error > TOLERANCE} == {}
    assert torch.equal(greedy(model, prompt, 24), theirs["continuation"])

    again, config_again = load(tmp_path / "theirs")
    assert config_again == config
    for (name, ours), back in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, back), name
