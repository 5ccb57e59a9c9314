"""The block around the mixers of H3 and Hyena: x + Mixer(LayerNorm(x)), then x + MLP(LayerNorm(x)), with biases.

The MLP is GPT's, of width 4 d. Embedding and head are untied, as the xLSTM paper's counts have them.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlstm.models.dropout import Dropout
from xlstm.models.language_model import LanguageModel

NORM_EPSILON = 1e-5
INITIAL_STD = 0.02


class GELUBlocks(LanguageModel):
    """Blocks of a mixer, which a family gives as a function of its configuration, and GELU."""

    def __init__(self, config: Any, mixer: Callable[[Any], nn.Module]) -> None:
        blocks = (GELUBlock(config, mixer(config)) for _ in range(config.num_blocks))
        super().__init__(config, blocks, nn.LayerNorm(config.embedding_dim, eps=NORM_EPSILON))

    def apply_blocks(
        self, x: Tensor, state: Any, resets: Tensor | None, keep_state: bool, dropout: Dropout | None
    ) -> tuple[Tensor, Any]:
        """As in the base class; a mixer is told whether what it remembers will be asked for."""
        others = ((state[index] if state else None, resets, keep_state) for index in range(len(self.blocks)))
        x, states = self.run_blocks(x, others, keep_state, dropout)
        return x, tuple(states) if keep_state else None

    def initialize_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """Matrices N(0, 0.02²), those of the MLP into the residual stream over √(2 blocks); biases zero, norms one."""
        if parameter.ndim == 1:
            parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
        else:
            scale = (2 * self.config.num_blocks) ** -0.5 if name.endswith(".down.weight") else 1.0
            parameter.normal_(std=INITIAL_STD * scale, generator=generator)


class GELUBlock(nn.Module):
    """x + Mixer(norm(x)), then x + MLP(norm(x)); the state is the mixer's."""

    def __init__(self, config: Any, mixer: nn.Module) -> None:
        super().__init__()
        d = config.embedding_dim
        self.mixer_norm = nn.LayerNorm(d, eps=NORM_EPSILON)
        self.mixer = mixer
        self.feedforward_norm = nn.LayerNorm(d, eps=NORM_EPSILON)
        self.up = nn.Linear(d, 4 * d)
        self.down = nn.Linear(4 * d, d)

    def forward(self, x: Tensor, state: Any, resets: Tensor | None, keep: bool) -> tuple[Tensor, Any]:
        """`x` (batch, time, d) to the same shape, and what the mixer remembers, where it is to be kept."""
        mixed, after = self.mixer(self.mixer_norm(x), state, resets, keep)
        x = x + mixed
        return x + self.down(F.gelu(self.up(self.feedforward_norm(x)), approximate="tanh")), after
