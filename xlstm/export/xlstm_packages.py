"""Weights of other packages' models, in and out.

- NX-AI's package `xlstm` (xLSTMLMModel): `from_nxai`, `to_nxai`. There, a norm's stored weight is what is added to
  one; the sLSTM layer applies its member `fgate` to the input gate and `igate` to the forget gate; and the recurrent
  matrices are laid out by backend: (head, gate and out, in) for `vanilla`, (head, in, gate and out) for `cuda`.

`transformers`' xLSTM (xLSTMForCausalLM) is our xlstm-large, and one of the folders of `xlstm.export.transformers`.

Values are tensors of any device and dtype; nothing is read from or written to disk here.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from xlstm.models.configs import XLSTMConfig

_NXAI_OUTSIDE = {
    "embedding.weight": "token_embedding.weight",
    "norm.weight": "xlstm_block_stack.post_blocks_norm.weight",
    "head.weight": "lm_head.weight",
}
_NXAI_MLSTM = {
    "norm.weight": "xlstm_norm.weight",
    "up.weight": "xlstm.proj_up.weight",
    "conv.weight": "xlstm.conv1d.conv.weight",
    "conv.bias": "xlstm.conv1d.conv.bias",
    "query.weight": "xlstm.q_proj.weight",
    "key.weight": "xlstm.k_proj.weight",
    "value.weight": "xlstm.v_proj.weight",
    "input_gate.weight": "xlstm.mlstm_cell.igate.weight",
    "input_gate.bias": "xlstm.mlstm_cell.igate.bias",
    "forget_gate.weight": "xlstm.mlstm_cell.fgate.weight",
    "forget_gate.bias": "xlstm.mlstm_cell.fgate.bias",
    "head_norm.weight": "xlstm.mlstm_cell.outnorm.weight",
    "skip": "xlstm.learnable_skip",
    "down.weight": "xlstm.proj_down.weight",
}
_NXAI_SLSTM = {
    "norm.weight": "xlstm_norm.weight",
    "conv.weight": "xlstm.conv1d.conv.weight",
    "conv.bias": "xlstm.conv1d.conv.bias",
    "head_norm.weight": "xlstm.group_norm.weight",
    "feedforward_norm.weight": "ffn_norm.weight",
    "gate_and_up.weight": "ffn.proj_up.weight",
    "down.weight": "ffn.proj_down.weight",
}
_NXAI_GATES = ("fgate", "igate", "zgate", "ogate")
"""The members that feed our gates: input, forget, cell input, output."""
_NXAI_NORM = "norm.weight"
_NXAI_RECURRENT, _NXAI_BIAS = "slstm_cell._recurrent_kernel_", "slstm_cell._bias_"


def to_nxai(config: XLSTMConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of NX-AI's model (backend `vanilla`) with the weights of ours."""
    theirs = nxai_layout(config, weights)
    return {name: value - 1.0 if name.endswith(_NXAI_NORM) else value for name, value in theirs.items()}


def from_nxai(config: XLSTMConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of our model with the weights of NX-AI's, of either backend.

    ValueError naming the weights that are missing or that a model of this configuration does not have.
    """
    names = _nxai_names(config)
    expected = set(names.values())
    for block in config.slstm_at:
        members = (*(f"{gate}.weight" for gate in _NXAI_GATES), _NXAI_RECURRENT, _NXAI_BIAS)
        expected |= {_nxai_prefix(block) + member for member in members}
    given = {name for name in weights if not name.endswith("causal_mask")}  # a buffer of theirs
    if given != expected:
        missing, foreign = sorted(expected - given), sorted(given - expected)
        raise ValueError(f"not the weights of this configuration: missing {missing[:5]}, unknown {foreign[:5]}")
    ours = {}
    for name, their_name in names.items():
        value = weights[their_name] + 1.0 if their_name.endswith(_NXAI_NORM) else weights[their_name]
        ours[name] = value[:, 0] if name.endswith("conv.weight") else value
    for block in config.slstm_at:
        cell = f"blocks.{block}."
        ours |= {cell + name: value for name, value in _nxai_cell(config, block, weights).items()}
    return ours


def nxai_layout(config: XLSTMConfig, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values of our parameters, such as gradients, under NX-AI's names and shapes (backend `vanilla`)."""
    theirs = {}
    for name, their_name in _nxai_names(config).items():
        value = values[name]
        theirs[their_name] = value[:, None] if name.endswith("conv.weight") else value
    for block in config.slstm_at:
        prefix = _nxai_prefix(block)
        for gate, weight in zip(_NXAI_GATES, values[f"blocks.{block}.weight"], strict=True):
            theirs[f"{prefix}{gate}.weight"] = weight.transpose(1, 2)  # (heads, out, in)
        recurrent = values[f"blocks.{block}.recurrent"]  # (gate, heads, in, out)
        theirs[f"{prefix}{_NXAI_RECURRENT}"] = recurrent.permute(1, 0, 3, 2).flatten(1, 2)
        theirs[f"{prefix}{_NXAI_BIAS}"] = values[f"blocks.{block}.bias"].flatten()
    return theirs


def _nxai_cell(config: XLSTMConfig, block: int, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gate and recurrent matrices and biases of one sLSTM block, in our layout."""
    heads, head_dim = config.num_heads, config.embedding_dim // config.num_heads
    prefix = _nxai_prefix(block)
    gates = torch.stack([weights[f"{prefix}{gate}.weight"] for gate in _NXAI_GATES])  # (gate, heads, out, in)
    recurrent, bias = weights[f"{prefix}{_NXAI_RECURRENT}"], weights[f"{prefix}{_NXAI_BIAS}"]
    if recurrent.shape == (heads, 4 * head_dim, head_dim):  # vanilla
        recurrent = recurrent.unflatten(1, (4, head_dim)).permute(1, 0, 3, 2)
        bias = bias.reshape(4, heads, head_dim)
    else:  # cuda
        recurrent = recurrent.unflatten(2, (4, head_dim)).permute(2, 0, 1, 3)
        bias = bias.reshape(heads, 4, head_dim).transpose(0, 1)
    return {"weight": gates.transpose(2, 3), "recurrent": recurrent, "bias": bias}


def _nxai_names(config: XLSTMConfig) -> dict[str, str]:
    """Our names to theirs, of all parameters but those of the sLSTM cells."""
    names = dict(_NXAI_OUTSIDE)
    for block in range(config.num_blocks):
        inside = _NXAI_SLSTM if block in config.slstm_at else _NXAI_MLSTM
        names |= {
            f"blocks.{block}.{name}": f"xlstm_block_stack.blocks.{block}.{theirs}" for name, theirs in inside.items()
        }
    return names


def _nxai_prefix(block: int) -> str:
    return f"xlstm_block_stack.blocks.{block}.xlstm."
