"""Gated DeltaNet (Yang et al. 2024, arXiv 2412.06464): a memory that decays and replaces what it holds under a key.

Per block, with A = 3 d / 4 key and B = 3 d / 2 value channels, H heads, F = r256(8 d / 3): 2 d A + 3 d B + 2 d H + 2 H
+ 4 (2 A + B) + B / H + 3 d F + 2 d parameters. Embedding and head are untied.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.delta_rule import delta_rule
from kernels.swiglu import swiglu
from xlstm.models.causal_conv import CausalConv, ConvolvedState
from xlstm.models.linear_configs import GatedDeltaNetConfig
from xlstm.models.mamba import initialize_steps
from xlstm.models.norm import RMSNorm
from xlstm.models.swiglu_block import NORM_EPSILON, SwiGLUBlocks, at_least_float32

LARGEST_RATE = 16.0
"""Rates of the decay start uniformly between 0 and this."""


class GatedDeltaNet(SwiGLUBlocks):
    """Blocks of the gated delta rule and SwiGLU."""

    def __init__(self, config: GatedDeltaNetConfig) -> None:
        super().__init__(config, Mixer)

    def initialize_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """The authors' rates and step sizes, torch's own convolution, and all else N(0, 0.02²)."""
        if name.endswith("log_rates"):
            tiny = torch.finfo(parameter.dtype).tiny
            parameter.uniform_(0.0, LARGEST_RATE, generator=generator).clamp_min_(tiny).log_()
        elif name.endswith("delta_bias"):
            initialize_steps(parameter, generator)
        elif name.endswith("conv.weight"):
            parameter.uniform_(-0.5, 0.5, generator=generator)
        else:
            super().initialize_parameter(name, parameter, generator)


class Mixer(nn.Module):
    """The delta rule after a decay per head, of convolved queries, keys and values; normed by head and gated."""

    keeps_float32: ClassVar[bool] = True
    """Rates and the bias of step sizes stay float32 in mixed precision: decays compound their rounding."""

    def __init__(self, config: GatedDeltaNetConfig) -> None:
        super().__init__()
        d, keys, values, self.num_heads = config.embedding_dim, config.key_dim, config.value_dim, config.num_heads
        self.sizes = (keys, keys, values)
        self.query = nn.Linear(d, keys, bias=False)
        self.key = nn.Linear(d, keys, bias=False)
        self.value = nn.Linear(d, values, bias=False)
        self.gate = nn.Linear(d, values, bias=False)
        self.delta = nn.Linear(d, self.num_heads, bias=False)
        self.step = nn.Linear(d, self.num_heads, bias=False)
        self.conv = CausalConv(2 * keys + values, bias=False)
        self.log_rates = nn.Parameter(torch.empty(self.num_heads))
        self.delta_bias = nn.Parameter(torch.empty(self.num_heads))
        self.head_norm = RMSNorm(values // self.num_heads, eps=NORM_EPSILON)
        self.out = nn.Linear(values, d, bias=False)

    def forward(self, x: Tensor, state: ConvolvedState | None, resets: Tensor | None) -> tuple[Tensor, ConvolvedState]:
        """`x` (batch, time, d) to the same shape; the memory is (batch, heads, key_dim, value_dim)."""
        together = torch.cat((self.query(x), self.key(x), self.value(x)), dim=-1)
        convolved, past = self.conv(together, state.past if state else None, resets)
        query, key, value = (one.unflatten(-1, (self.num_heads, -1)) for one in convolved.split(self.sizes, dim=-1))
        query, key = _unit(query) * query.shape[-1] ** -0.5, _unit(key)
        rates, bias = at_least_float32(self.log_rates).exp(), at_least_float32(self.delta_bias)
        decay = (-rates * F.softplus(at_least_float32(self.delta(x)) + bias))[..., None]
        step = torch.sigmoid(at_least_float32(self.step(x)))[..., None]
        written = (step * key).to(x.dtype)
        o, memory = delta_rule(
            query.to(x.dtype), written, value, (-decay.exp() * key).to(x.dtype), written, decay.expand(key.shape),
            initial_state=state.memory if state else None, resets=resets,
        )  # fmt: skip
        return self.out(swiglu(self.gate(x), self.head_norm(o).flatten(2).to(x.dtype))), ConvolvedState(past, memory)


def _unit(x: Tensor) -> Tensor:
    """Each head of length one, but for what keeps an empty one finite; float32 at least."""
    x = at_least_float32(x)
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)
