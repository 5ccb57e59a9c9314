"""The model families, one file each. This module imports without torch; `build` imports what it needs.

Every model is a plain `nn.Module` that knows nothing of devices and parallelism:

- `model(tokens, state=None, *, resets=None, targets=None, z_loss=0.0)` returns (logits, state), or with targets
  (loss of every token in nats, state); see `LanguageModel`.
- `model.blocks` is the list of blocks: the unit of sharding, checkpointing and compilation.
- `model.decays(name, parameter)` says whether a parameter takes weight decay, `model.recurs(name)` whether it is one of
  the recurrent weights that may have one of their own.
- a submodule with `keeps_float32 = True` has its own parameters left in float32 by mixed precision.
- `model.initialize_parameter(name, parameter, generator)` fills one parameter; see `initialization`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from xlstm.models.configs import ModelConfig

if TYPE_CHECKING:
    from torch import nn

IGNORED = -100
"""The target of a position that is not counted: its loss is 0."""

_CLASSES = {
    "xlstm": ("xlstm.models.xlstm", "XLSTM"),
    "xlstm-large": ("xlstm.models.xlstm_large", "XLSTMLarge"),
    "llama": ("xlstm.models.llama", "Llama"),
    "gpt": ("xlstm.models.gpt", "GPT"),
    "mamba": ("xlstm.models.mamba", "Mamba"),
    "rwkv4": ("xlstm.models.rwkv4", "RWKV4"),
    "lstm": ("xlstm.models.lstm", "LSTM"),
    "gla": ("xlstm.models.gla", "GLA"),
    "hgrn2": ("xlstm.models.hgrn2", "HGRN2"),
    "rwkv5": ("xlstm.models.rwkv5", "RWKV5"),
    "rwkv6": ("xlstm.models.rwkv6", "RWKV6"),
    "hgrn": ("xlstm.models.hgrn", "HGRN"),
    "retnet": ("xlstm.models.retnet", "RetNet"),
    "mamba2": ("xlstm.models.mamba2", "Mamba2"),
    "gated-deltanet": ("xlstm.models.gated_deltanet", "GatedDeltaNet"),
    "rwkv7": ("xlstm.models.rwkv7", "RWKV7"),
    "h3": ("xlstm.models.h3", "H3"),
    "hyena": ("xlstm.models.hyena", "Hyena"),
    "hybrid": ("xlstm.models.hybrid", "Hybrid"),
}
"""Where the class of each family lives."""


def build(config: ModelConfig) -> "nn.Module":
    """The model of a configuration, its parameters yet to be initialised; builds on the meta device too."""
    module, name = _CLASSES[config.family]
    model: nn.Module = getattr(import_module(module), name)(config)
    return model
