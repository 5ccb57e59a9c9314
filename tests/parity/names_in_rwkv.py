"""Weights under the names of RWKV's author, which his package `rwkv` runs: RWKV-5, 6 and 7."""

import re
from collections.abc import Mapping

from torch import Tensor

from xlstm.models.configs import ModelConfig
from xlstm.models.rwkv6 import ORDER
from xlstm.models.rwkv7 import SHIFTS

_LETTERS = {
    "receptance": "r", "decay": "w", "key": "k", "value": "v", "gate": "g", "removal": "a",
}  # fmt: skip
_VECTORS_OF_7 = {
    "decay": "w0", "removal": "a0", "value_share": "v0", "removal_key": "k_k", "written_key": "k_a",
}  # fmt: skip
_LOW_RANKS_OF_7 = {"added_decay": "w", "added_removal": "a", "added_share": "v", "gate": "g"}
_OUTSIDE = {
    "embedding.weight": "emb.weight", "head.weight": "head.weight", "norm.weight": "ln_out.weight",
    "norm.bias": "ln_out.bias", "embedding_norm.weight": "blocks.0.ln0.weight",
    "embedding_norm.bias": "blocks.0.ln0.bias",
}  # fmt: skip
_NORMS = {"time_norm": "ln1", "channel_norm": "ln2", "time_mix.head_norm": "att.ln_x"}


def _broadcast(tensor: Tensor) -> Tensor:
    """Vectors are (1, 1, channels) there."""
    return tensor.reshape(1, 1, -1)


def _of_the_token_before(tensor: Tensor) -> Tensor:
    return _broadcast(1 - tensor)


def to_rwkv(config: ModelConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights by the author's names, in his shapes."""
    renamed = {}
    for name, value in weights.items():
        found = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        if found is None:
            renamed[_OUTSIDE[name]] = value
            continue
        for theirs, tensor in _in_block(config.family, found[2], value).items():
            renamed[f"blocks.{found[1]}.{theirs}"] = tensor.contiguous()
    return renamed


def _in_block(family: str, leaf: str, value: Tensor) -> dict[str, Tensor]:
    module, _, kind = leaf.rpartition(".")
    if module in _NORMS:
        return {f"{_NORMS[module]}.{kind}": value}
    part, _, rest = leaf.partition(".")
    side = "att" if part == "time_mix" else "ffn"
    if kind == "weight":  # a linear map
        name = rest.removesuffix(".weight")
        return {f"{side}.{'output' if name == 'out' else name}.weight": value}
    if family == "rwkv7":
        return _of_7(side, rest, value)
    if rest == "bonus":
        return {"att.time_faaaa": value}
    if rest == "decay":
        return {"att.time_decay": value if family == "rwkv5" else _broadcast(value)}
    if rest.startswith("shift_"):
        letter = _LETTERS[rest.removeprefix("shift_")]
        if family == "rwkv5":
            return {f"{side}.time_mix_{letter}": _broadcast(value)}
        return {f"{side}.time_maa_{letter}": _of_the_token_before(value)}
    if rest == "mixing.base":
        return {f"att.time_maa_{_LETTERS[name]}": _broadcast(row) for name, row in zip(ORDER, value, strict=True)}
    whole = {
        "mixing.first_base": ("time_maa_x", _broadcast(value)), "mixing.enter": ("time_maa_w1", value),
        "mixing.leave": ("time_maa_w2", value), "added_decay.enter": ("time_decay_w1", value),
        "added_decay.leave": ("time_decay_w2", value),
    }  # fmt: skip
    theirs, tensor = whole[rest]
    return {f"att.{theirs}": tensor}


def _of_7(side: str, rest: str, value: Tensor) -> dict[str, Tensor]:
    if rest == "shift":
        return {"ffn.x_k": _of_the_token_before(value)}
    if rest == "shifts":
        return {f"att.x_{_LETTERS[name]}": _of_the_token_before(row) for name, row in zip(SHIFTS, value, strict=True)}
    if rest == "bonus":
        return {"att.r_k": value}
    if rest in _VECTORS_OF_7:
        return {f"att.{_VECTORS_OF_7[rest]}": _broadcast(value)}
    module, _, kind = rest.partition(".")
    return {f"{side}.{_LOW_RANKS_OF_7[module]}{1 if kind == 'enter' else 2}": value}
