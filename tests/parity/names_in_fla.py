"""Weights under the names of flash-linear-attention, whose models GLA, HGRN, HGRN2, RetNet and Gated DeltaNet are.

`to_fla` renames; a model there is built with the dimensions that `fla_configuration` says.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from xlstm.models.configs import ModelConfig

_OUTSIDE = {
    "embedding.weight": "model.embeddings.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
    "lower_bounds.shares": "model.lower_bounds",
}
_BLOCK = {
    "mixer_norm.weight": "attn_norm.weight",
    "feedforward_norm.weight": "mlp_norm.weight",
    "gate.weight": "mlp.gate_proj.weight",
    "up.weight": "mlp.up_proj.weight",
    "down.weight": "mlp.down_proj.weight",
}
_QKV = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "gate": "g_proj", "out": "o_proj"}
_MIXERS = {
    "gla": _QKV | {"decay_in": "gk_proj.0", "decay_out": "gk_proj.1", "head_norm": "g_norm"},
    "hgrn": {"input": "i_proj", "forget": "f_proj", "gate": "g_proj", "output_norm": "g_norm", "out": "o_proj"},
    "hgrn2": {"query": "q_proj", "forget": "f_proj", "value": "i_proj", "output_norm": "g_norm", "out": "o_proj"},
    "retnet": _QKV | {"head_norm": "g_norm"},
    "gated-deltanet": _QKV
    | {"delta": "a_proj", "step": "b_proj", "head_norm": "o_norm", "log_rates": "A_log", "delta_bias": "dt_bias"},
}
_CONVOLUTIONS = ("q_conv1d", "k_conv1d", "v_conv1d")
"""What the one convolution of Gated DeltaNet is there, by the channels of queries, keys and values."""


def fla_configuration(config: ModelConfig) -> dict[str, Any]:
    """Fields of the configuration there."""
    common = {
        "hidden_size": config.embedding_dim, "num_hidden_layers": config.num_blocks, "vocab_size": config.vocab_size,
        "norm_eps": 1e-6, "tie_word_embeddings": False, "fuse_norm": False,
    }  # fmt: skip
    own: dict[str, Any] = {}
    if config.family in ("gla", "retnet", "gated-deltanet"):
        own = {"num_heads": config.num_heads}
    if config.family == "hgrn2":
        own = {"expand_ratio": config.head_dim}
    if config.family == "gated-deltanet":
        own |= {"head_dim": config.key_dim // config.num_heads, "expand_v": 2}
    return common | own


def to_fla(config: ModelConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights, or their gradients, by the names there."""
    names, renamed = _names(config), {}
    for name, value in weights.items():
        theirs = names(name)
        if theirs.endswith("attn.conv.weight"):
            sizes = (config.key_dim, config.key_dim, config.value_dim)  # type: ignore[union-attr]
            for convolution, part in zip(_CONVOLUTIONS, value.split(sizes), strict=True):
                renamed[theirs.replace("conv.", f"{convolution}.")] = part[:, None]
        else:
            renamed[theirs] = value
    return renamed


def _names(config: ModelConfig) -> Any:
    """The function from our name of a weight to theirs."""
    mixer = _MIXERS[config.family]

    def theirs(name: str) -> str:
        if name in _OUTSIDE:
            return _OUTSIDE[name]
        found = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        assert found is not None, name
        index, leaf = found.groups()
        if leaf in _BLOCK:
            return f"model.layers.{index}.{_BLOCK[leaf]}"
        part, _, kind = leaf.removeprefix("mixer.").partition(".")
        return f"model.layers.{index}.attn.{mixer.get(part, part)}{'.' * bool(kind)}{kind}"

    return theirs
