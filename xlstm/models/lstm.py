"""The LSTM ladder from which the xLSTM paper climbs (arXiv 2405.04517, Table 2).

- `vanilla`: a stack of LSTM layers, 8 d² + 8 d parameters each.
- `residual`: x + LSTM(LayerNorm(x)), d more.
- `up-projection`: and x + MLP(LayerNorm(x)) of width 4 d behind it, 8 d² + d more.

At 350M (24 x 1536; 48 x 1024; 24 x 1024) that makes the paper's 607.8M, 506.1M and 505.9M.
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.lstm import LSTMState, lstm
from xlstm.models.configs import LSTMConfig
from xlstm.models.language_model import LanguageModel

NORM_EPSILON = 1e-5


class LSTM(LanguageModel):
    """The stack of a variant of the ladder."""

    drawn_by_width: ClassVar[tuple[str, ...]] = ("bias_input", "bias_hidden")

    def __init__(self, config: LSTMConfig) -> None:
        vanilla = config.variant == "vanilla"
        norm = nn.Identity() if vanilla else nn.LayerNorm(config.embedding_dim, eps=NORM_EPSILON, bias=False)
        super().__init__(config, (Block(config) for _ in range(config.num_blocks)), norm)

    def initialize_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """The LSTM as PyTorch starts it, uniform within 1/sqrt(d); the rest as in xLSTM, whose ladder it is."""
        d = self.config.embedding_dim
        if "norm" in name:
            parameter.fill_(1.0)
        elif ".lstm." in name:
            bound = 1.0 / math.sqrt(d)
            parameter.uniform_(-bound, bound, generator=generator)
        elif name.endswith("down.weight"):
            parameter.normal_(std=2.0 / (self.config.num_blocks * math.sqrt(d)), generator=generator)
        else:
            parameter.normal_(std=math.sqrt(2.0 / (5.0 * d)), generator=generator)


class Block(nn.Module):
    """One rung of the ladder: an LSTM layer, with or without residual, norm and feed-forward layer."""

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__()
        d = config.embedding_dim
        self.variant = config.variant
        self.lstm = Layer(d)
        if config.variant != "vanilla":
            self.lstm_norm = nn.LayerNorm(d, eps=NORM_EPSILON, bias=False)
        if config.variant == "up-projection":
            self.feedforward_norm = nn.LayerNorm(d, eps=NORM_EPSILON, bias=False)
            self.up = nn.Linear(d, 4 * d, bias=False)
            self.down = nn.Linear(4 * d, d, bias=False)

    def forward(self, x: Tensor, state: LSTMState | None, resets: Tensor | None) -> tuple[Tensor, LSTMState]:
        """`x` (batch, time, d) to the same shape, with what the block remembers afterwards."""
        if self.variant == "vanilla":
            return self.lstm(x, state, resets)
        y, state = self.lstm(self.lstm_norm(x), state, resets)
        x = x + y
        if self.variant == "up-projection":
            x = x + self.down(F.gelu(self.up(self.feedforward_norm(x))))
        return x, state


class Layer(nn.Module):
    """The parameters of one LSTM layer, in the layout of `torch.nn.LSTM`."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.weight_input = nn.Parameter(torch.empty(4 * d, d))
        self.weight_hidden = nn.Parameter(torch.empty(4 * d, d))
        self.bias_input = nn.Parameter(torch.empty(4 * d))
        self.bias_hidden = nn.Parameter(torch.empty(4 * d))

    def forward(self, x: Tensor, state: LSTMState | None, resets: Tensor | None) -> tuple[Tensor, LSTMState]:
        """`x` (batch, time, d) to the same shape, and the state afterwards."""
        weights = (self.weight_input, self.weight_hidden, self.bias_input, self.bias_hidden)
        return lstm(x, *weights, initial_state=state, resets=resets)
