"""Mamba (Gu & Dao 2023, arXiv 2312.00752): selective state spaces between a convolution and a gate.

Per block, with D = 2 d channels: x + Mixer(RMSNorm(x)); 6.25 d² + 111 d parameters where d is a multiple of 16. The
embedding and the head are untied, as the xLSTM paper's counts say (the authors' own models tie them).
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.selective_scan import selective_scan
from xlstm.models.causal_conv import CausalConv, ConvolvedState
from xlstm.models.configs import MambaConfig
from xlstm.models.language_model import LanguageModel
from xlstm.models.norm import RMSNorm
from xlstm.models.swiglu_block import at_least_float32

NORM_EPSILON = 1e-5

DELTA_RANGE = (1e-3, 1e-1)
"""Step sizes start log-uniformly within it; none below DELTA_FLOOR."""
DELTA_FLOOR = 1e-4


class MambaBlocks(LanguageModel):
    """Blocks of a mixer, as Mamba and Mamba-2 start them."""

    elementwise: ClassVar[tuple[str, ...]] = ("log_rates",)
    undecayed: ClassVar[tuple[str, ...]] = ("log_rates",)
    """A, as in the authors' code."""

    def __init__(self, config: Any, block: Callable[[Any], nn.Module]) -> None:
        norm = RMSNorm(config.embedding_dim, eps=NORM_EPSILON)
        super().__init__(config, (block(config) for _ in range(config.num_blocks)), norm)

    def initialize_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """The authors' initial values of all but the rates: see the comments for each kind of parameter."""
        leaf = name.removeprefix("blocks.").partition(".")[2] if name.startswith("blocks.") else name
        if leaf == "skip" or leaf.endswith("norm.weight"):
            parameter.fill_(1.0)
        elif leaf in ("delta.bias", "delta_bias"):
            initialize_steps(parameter, generator)
        elif leaf in ("embedding.weight", "head.weight"):
            parameter.normal_(std=0.02, generator=generator)
        elif leaf.startswith("conv."):
            # torch's own for a convolution of four taps per channel: uniform within 1 / sqrt(4).
            parameter.uniform_(-0.5, 0.5, generator=generator)
        else:
            # torch's own for linear maps; into the residual stream, scaled as in GPT-2 with one sum per block.
            bound = 1.0 / math.sqrt(parameter.shape[1])
            if leaf == "out.weight":
                bound /= math.sqrt(self.config.num_blocks)
            parameter.uniform_(-bound, bound, generator=generator)


def initialize_steps(parameter: Tensor, generator: torch.Generator) -> None:
    """The inverse of softplus, at step sizes drawn log-uniformly."""
    low, high = (math.log(bound) for bound in DELTA_RANGE)
    step = parameter.uniform_(low, high, generator=generator).exp().clamp_min(DELTA_FLOOR)
    parameter.copy_(step + torch.log(-torch.expm1(-step)))


class Mamba(MambaBlocks):
    """Blocks of convolution and selective scan."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__(config, Block)

    def initialize_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """S4D-Real for the rates: A_n = -(n + 1) in every channel."""
        if name.endswith(".log_rates"):
            parameter.copy_(torch.arange(1, parameter.shape[1] + 1).log().expand_as(parameter))
        else:
            super().initialize_parameter(name, parameter, generator)


class Block(nn.Module):
    """x + Mixer(norm(x)): convolution and selective scan of one half, gated by the other."""

    keeps_float32: ClassVar[bool] = True
    """Rates and skip stay float32 in mixed precision, as the authors keep A and D: a scan compounds their rounding."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        d, inner, state_dim = config.embedding_dim, config.inner_dim, config.state_dim
        self.sizes = (config.delta_rank, state_dim, state_dim)
        self.norm = RMSNorm(d, eps=NORM_EPSILON)
        self.up = nn.Linear(d, 2 * inner, bias=False)
        self.conv = CausalConv(inner)
        self.select = nn.Linear(inner, sum(self.sizes), bias=False)
        self.delta = nn.Linear(config.delta_rank, inner)
        self.log_rates = nn.Parameter(torch.empty(inner, state_dim))
        self.skip = nn.Parameter(torch.empty(inner))
        self.out = nn.Linear(inner, d, bias=False)

    def forward(self, x: Tensor, state: ConvolvedState | None, resets: Tensor | None) -> tuple[Tensor, ConvolvedState]:
        """`x` (batch, time, d) to the same shape; the scan remembers (batch, channels, state_dim)."""
        u, gate = self.up(self.norm(x)).chunk(2, dim=-1)
        u, past = self.conv(u, state.past if state else None, resets)
        low_rank, B, C = self.select(u).split(self.sizes, dim=-1)
        # Step sizes and rates in float32 at least: a scan multiplies their rounding errors over the sequence.
        delta = F.softplus(at_least_float32(self.delta(low_rank)))
        rates = -torch.exp(at_least_float32(self.log_rates))
        y, scan = selective_scan(u, delta, rates, B, C, initial_state=state.memory if state else None, resets=resets)
        y = (y + u * self.skip) * F.silu(gate)
        return x + self.out(y.to(x.dtype)), ConvolvedState(past, scan)
