"""The block around the mixers of H3 and Hyena: x + Mixer(LayerNorm(x)), then x + MLP(LayerNorm(x)), with biases.

The MLP is GPT's, of width 4 d. Embedding and head are untied, as the xLSTM paper's counts have them.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlstm.models.dropout import Dropout
from xlstm.models.initialization import INITIAL_STD, initialize_normal
from xlstm.models.language_model import LanguageModel

NORM_EPSILON = 1e-5


class GELUBlocks(LanguageModel):
    """Blocks of a mixer, which a family gives as a function of its configuration, and GELU."""

    def __init__(self, config: Any, mixer: Callable[[Any], nn.Module]) -> None:
        blocks = (GELUBlock(config, mixer(config)) for _ in range(config.num_blocks))
        super().__init__(config, blocks, nn.LayerNorm(config.embedding_dim, eps=NORM_EPSILON))

    def apply_blocks(
        self, x: Tensor, state: Any, resets: Tensor | None, keep_state: bool, dropout: Dropout | None
    ) -> tuple[Tensor, Any]:
        """As in the base class; a mixer is told whether what it remembers will be asked for."""
        return self.run_alike(x, state, keep_state, dropout, resets, keep_state)

    def initialize_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """Matrices N(0, 0.02²), those of the MLP into the residual stream over √(2 blocks); biases zero, norms one."""
        scale = (2 * self.config.num_blocks) ** -0.5 if name.endswith(".down.weight") else 1.0
        initialize_normal(name, parameter, generator, INITIAL_STD * scale)


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
