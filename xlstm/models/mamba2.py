"""Mamba-2 (Dao & Gu 2024, arXiv 2405.21060): a matrix memory per head between a convolution and a gated norm.

Per block, with D = 2 d channels, H = D / 64 heads and N = 128: x + Mixer(RMSNorm(x)); 6 d² + (2 N + H) d + 5 (D + 2 N)
+ 3 H + 3 d parameters. The heads share keys and queries. The memory is the mLSTM's without normaliser, whose gates are
exact: the logarithm of a step size, and the logit of a decay. Embedding and head are untied.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.mlstm import mlstm
from kernels.swiglu import swiglu
from xlstm.models.causal_conv import CausalConv, ConvolvedState
from xlstm.models.linear_configs import Mamba2Config
from xlstm.models.mamba import NORM_EPSILON, MambaBlocks
from xlstm.models.norm import RMSNorm

RATES = (1.0, 16.0)
"""Rates -A start uniformly within it."""


class Mamba2(MambaBlocks):
    """Blocks of convolution, memory and gated norm."""

    def __init__(self, config: Mamba2Config) -> None:
        super().__init__(config, Block)

    def initialize_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """Rates uniformly within RATES; all else as Mamba's."""
        if name.endswith(".log_rates"):
            parameter.uniform_(*RATES, generator=generator).log_()
        else:
            super().initialize_parameter(name, parameter, generator)


class Block(nn.Module):
    """x + Mixer(norm(x))."""

    keeps_float32: ClassVar[bool] = True
    """Rates, skip and the bias of step sizes stay float32 in mixed precision, as the authors keep them."""

    def __init__(self, config: Mamba2Config) -> None:
        super().__init__()
        d, inner, state_dim, self.num_heads = (
            config.embedding_dim, config.inner_dim, config.state_dim, config.num_heads,
        )  # fmt: skip
        self.sizes = (inner, inner + 2 * state_dim, self.num_heads)
        self.convolved_sizes = (inner, state_dim, state_dim)
        self.norm = RMSNorm(d, eps=NORM_EPSILON)
        self.up = nn.Linear(d, sum(self.sizes), bias=False)  # gate; values, keys and queries; step sizes
        self.conv = CausalConv(inner + 2 * state_dim)
        self.log_rates = nn.Parameter(torch.empty(self.num_heads))
        self.delta_bias = nn.Parameter(torch.empty(self.num_heads))
        self.skip = nn.Parameter(torch.empty(self.num_heads))
        self.gated_norm = RMSNorm(inner, eps=NORM_EPSILON)
        self.out = nn.Linear(inner, d, bias=False)

    def forward(self, x: Tensor, state: ConvolvedState | None, resets: Tensor | None) -> tuple[Tensor, ConvolvedState]:
        """`x` (batch, time, d) to the same shape; the memory is an `MLSTMState`."""
        gate, mixed, delta = self.up(self.norm(x)).split(self.sizes, dim=-1)
        mixed, past = self.conv(mixed, state.past if state else None, resets)
        values, keys, queries = mixed.split(self.convolved_sizes, dim=-1)
        values = values.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        queries = queries * queries.shape[-1] ** 0.5  # the mLSTM divides its keys by that
        keys, queries = (one[:, None].expand(-1, self.num_heads, -1, -1) for one in (keys, queries))
        write, keep = self._gates(delta)
        h, cell = mlstm(
            queries, keys, values, write, keep, initial_state=state.memory if state else None, resets=resets,
            normalize=False,
        )  # fmt: skip
        y = h + (self.skip[:, None, None] * values).to(h.dtype)
        normed = self.gated_norm(swiglu(gate, y.transpose(1, 2).flatten(2)))
        return x + self.out(normed.to(x.dtype)), ConvolvedState(past, cell)

    def _gates(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """The mLSTM's gates (batch, heads, time) of step sizes before softplus (batch, time, heads)."""
        dtype = torch.promote_types(delta.dtype, torch.float32)
        tiny = torch.finfo(dtype).tiny
        steps = F.softplus(delta.to(dtype) + self.delta_bias.to(dtype)).clamp_min(tiny)
        decay = (-torch.exp(self.log_rates.to(dtype)) * steps).clamp_max(-tiny)
        logit = decay - torch.log(-torch.expm1(decay))  # whose sigmoid is exp(decay)
        return steps.log().transpose(1, 2), logit.transpose(1, 2)
