"""Gated linear attention (Yang et al. 2024, arXiv 2312.06635): a matrix memory whose key channels decay by the token.

Per block, with heads of d / 8 key and d / 4 value channels at four of them, and F = r256(8 d / 3):
4 d² + 24.5 d + d / heads + 3 d F + 2 d parameters. Embedding and head are untied.
"""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kernels.gated_linear_attention import gated_linear_attention
from kernels.swiglu import swiglu
from xlstm.models.linear_configs import GLAConfig
from xlstm.models.norm import RMSNorm
from xlstm.models.swiglu_block import NORM_EPSILON, SwiGLUBlocks, at_least_float32

DECAY_TEMPERATURE = 16.0
"""What the logarithm of the decay's sigmoid is divided by: decays start at 0.958, a memory of 23 tokens."""


class GLA(SwiGLUBlocks):
    """Blocks of gated linear attention and SwiGLU."""

    queries: ClassVar[tuple[str, ...]] = ("query.weight",)

    def __init__(self, config: GLAConfig) -> None:
        super().__init__(config, Mixer)


class Mixer(nn.Module):
    """Linear attention with decays of low rank, normed by head and gated."""

    def __init__(self, config: GLAConfig) -> None:
        super().__init__()
        d, keys, self.num_heads = config.embedding_dim, config.key_dim, config.num_heads
        self.query = nn.Linear(d, keys, bias=False)
        self.key = nn.Linear(d, keys, bias=False)
        self.value = nn.Linear(d, d, bias=False)
        self.gate = nn.Linear(d, d, bias=False)
        self.decay_in = nn.Linear(d, config.decay_rank, bias=False)
        self.decay_out = nn.Linear(config.decay_rank, keys)
        self.head_norm = RMSNorm(d // self.num_heads, eps=NORM_EPSILON)
        self.out = nn.Linear(d, d, bias=False)

    def forward(self, x: Tensor, state: Tensor | None, resets: Tensor | None) -> tuple[Tensor, Tensor]:
        """`x` (batch, time, d) to the same shape, and the memory (batch, heads, key_dim, value_dim)."""
        decay = F.logsigmoid(at_least_float32(self.decay_out(self.decay_in(x)))) / DECAY_TEMPERATURE
        query, key, value, decay = (
            one.unflatten(-1, (self.num_heads, -1)) for one in (self.query(x), self.key(x), self.value(x), decay)
        )
        query = query * query.shape[-1] ** -0.5
        o, state = gated_linear_attention(query, key, value, decay, initial_state=state, resets=resets)
        return self.out(swiglu(self.gate(x), self.head_norm(o).flatten(2).to(x.dtype))), state
