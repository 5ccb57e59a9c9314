"""Blocks of several families in turns, such as `gated-deltanet[3]+llama[1]`: three of the first, one of the second, …

Every block is that of its family, with its initial weights, its weight decay and its state. Embedding, head and their
initial weights are those of the first family; the last norm is an RMSNorm.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from xlstm.models.attention import Past, lay_out
from xlstm.models.configs import HybridConfig, LlamaConfig
from xlstm.models.dropout import Dropout
from xlstm.models.gated_deltanet import GatedDeltaNet, Mixer
from xlstm.models.gla import GLA
from xlstm.models.gla import Mixer as GLAMixer
from xlstm.models.language_model import LanguageModel
from xlstm.models.llama import Angles, Llama
from xlstm.models.llama import Block as LlamaBlock
from xlstm.models.mamba import Block as MambaBlock
from xlstm.models.mamba import Mamba
from xlstm.models.mamba2 import Block as Mamba2Block
from xlstm.models.mamba2 import Mamba2
from xlstm.models.mlstm_block import MLSTMBlock
from xlstm.models.norm import RMSNorm
from xlstm.models.swiglu_block import NORM_EPSILON, SwiGLUBlock
from xlstm.models.xlstm import XLSTM

_PARTS: dict[str, tuple[type[LanguageModel], Any]] = {
    "gated-deltanet": (GatedDeltaNet, lambda config: SwiGLUBlock(config, Mixer(config))),
    "gla": (GLA, lambda config: SwiGLUBlock(config, GLAMixer(config))),
    "llama": (Llama, LlamaBlock),
    "mamba": (Mamba, MambaBlock),
    "mamba2": (Mamba2, Mamba2Block),
    "xlstm": (XLSTM, MLSTMBlock),
}
"""The model of each family, and what makes a block of it."""


class HybridState(NamedTuple):
    """What the model remembers."""

    blocks: tuple[Any, ...]  # of each block that does not attend
    past: Past | None  # of those that do


class Hybrid(LanguageModel):
    """Blocks in the order of the configuration's pattern."""

    def __init__(self, config: HybridConfig) -> None:
        parts = config.parts()
        order = config.order()
        blocks = [_PARTS[parts[index].family][1](parts[index]) for index in order]
        super().__init__(config, blocks, RMSNorm(config.embedding_dim, eps=NORM_EPSILON))
        self._parts, self._order = parts, order
        self._owners = [_unbuilt(_PARTS[part.family][0], part) for part in parts]

    def apply_blocks(
        self, x: Tensor, state: HybridState | None, resets: Tensor | None, keep_state: bool, dropout: Dropout | None
    ) -> tuple[Tensor, HybridState | None]:
        """`x` (batch, time, d) after the last block, and what is remembered, None unless kept."""
        past = None if state is None else state.past
        attending = next((part for part in self._parts if isinstance(part, LlamaConfig)), None)
        layout = None if attending is None else lay_out(x, past, resets)
        angles = None if attending is None or layout is None else Angles(layout.positions, attending)
        attends = [isinstance(self._parts[part], LlamaConfig) for part in self._order]
        pasts = iter(() if past is None else past.blocks)
        recurrent = iter(() if state is None else state.blocks)
        others = (
            (layout, next(pasts, None), keep_state, angles) if attending else (next(recurrent, None), resets)
            for attending in attends
        )
        x, known = self.run_blocks(x, others, keep_state, dropout)
        if not keep_state:
            return x, None
        cache = [one for one, attending in zip(known, attends, strict=True) if attending]
        cells = tuple(one for one, attending in zip(known, attends, strict=True) if not attending)
        return x, HybridState(cells, None if layout is None else layout.past(cache))

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """As the family of the parameter's block says."""
        return self._owner(name).decays(name, parameter)

    def is_matrix(self, name: str, parameter: nn.Parameter) -> bool:
        """As the family of the parameter's block says."""
        return self._owner(name).is_matrix(name, parameter)

    def fans(self, name: str, shape: torch.Size) -> tuple[int, int] | None:
        """As the family of the parameter's block says."""
        return self._owner(name).fans(name, shape)

    def asks(self, name: str) -> bool:
        """As the family of the parameter's block says."""
        return self._owner(name).asks(name)

    def recurs(self, name: str) -> bool:
        """As the family of the parameter's block says."""
        return self._owner(name).recurs(name)

    def initialize_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """As the family of the parameter's block does; what stands outside blocks as the first family's."""
        self._owner(name).initialize_parameter(name, parameter, generator)

    def _owner(self, name: str) -> LanguageModel:
        in_block = name.startswith("blocks.")
        return self._owners[self._order[int(name.split(".")[1])] if in_block else 0]


def _unbuilt(model: type[LanguageModel], config: Any) -> LanguageModel:
    """A family's model without weights, which knows what its weights start as and which of them decay."""
    owner = model.__new__(model)
    object.__setattr__(owner, "config", config)
    return owner
