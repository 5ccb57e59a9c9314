"""A small model of every family and of every variant that is a model of its own, for tests that hold for all."""

from typing import Any

from xlstm.models.configs import ModelConfig
from xlstm.models.sizes import config_for

DIMENSIONS: dict[str, dict[str, Any]] = {
    "xlstm[1:1]": {"num_heads": 2},
    "xlstm-large": {"num_heads": 2},
    "llama": {"num_heads": 2},
    "gpt": {"num_heads": 2, "context_length": 64},
    "mamba": {},
    "rwkv4": {},
    "gla": {"num_heads": 2},
    "hgrn2": {"head_dim": 8},
    "rwkv5": {"head_dim": 8},
    "rwkv6": {"head_dim": 8, "mix_rank": 4, "decay_rank": 4},
    "hgrn": {},
    "retnet": {"head_dim": 8},
    "mamba2": {"head_dim": 8, "state_dim": 8},
    "gated-deltanet": {"num_heads": 2},
    "rwkv7": {"head_dim": 8},
    "h3": {"state_dim": 8},
    "hyena": {"context_length": 64, "num_features": 5, "filter_dim": 8},
    "gated-deltanet[1]+llama[1]": {"num_heads": [2, 2]},
    "lstm": {},
    "lstm[residual]": {},
    "lstm[vanilla]": {},
}
"""What a family's configuration asks for beside width and depth."""


def small(family: str, *, vocab_size: int, embedding_dim: int, num_blocks: int = 2, **ends: Any) -> ModelConfig:
    """The configuration of a small model of a family, such as `xlstm[1:1]` or `llama`; `ends` as `config_for`."""
    dimensions = {"embedding_dim": embedding_dim, "num_blocks": num_blocks} | DIMENSIONS[family]
    return config_for(family, dimensions, vocab_size, **ends)
