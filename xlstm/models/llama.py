"""Llama (Touvron et al. 2023): pre-norm Transformer with rotary positions and SwiGLU, without biases.

Per block: x + Attention(RMSNorm(x)), then x + SwiGLU(RMSNorm(x)) of width 8/3 d rounded up to a multiple of 64:
4 d² + 3 d · r64(8d/3) + 2 d parameters. The vocabulary's embedding and the head are untied, as in the xLSTM paper.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from kernels.rotary import rotary
from kernels.swiglu import swiglu
from xlstm.models.attention import KeysAndValues, Layout, Transformer, attend
from xlstm.models.configs import LlamaConfig
from xlstm.models.linear_configs import RetNetConfig
from xlstm.models.norm import RMSNorm

NORM_EPSILON = 1e-6
"""The epsilon of RMSNorm, as released with the first Llama."""


class Llama(Transformer):
    """Transformer whose queries and keys are turned by their positions."""

    queries: ClassVar[tuple[str, ...]] = ("query.weight",)

    def __init__(self, config: LlamaConfig) -> None:
        norm = RMSNorm(config.embedding_dim, eps=NORM_EPSILON)
        super().__init__(config, (Block(config) for _ in range(config.num_blocks)), norm)

    def locate(self, x: Tensor, layout: Layout) -> tuple[Tensor, tuple["Angles"]]:
        """The stream as it is; every block turns queries and keys by the angles of their positions."""
        return x, (Angles(layout.positions, self.config),)


class Block(nn.Module):
    """x + Attention(norm(x)), then x + SwiGLU(norm(x))."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        d, width = config.embedding_dim, config.feedforward_dim
        self.num_heads = config.num_heads
        self.attention_norm = RMSNorm(d, eps=NORM_EPSILON)
        # Separate matrices: their gradients need not be put together, which costs more than fewer products save.
        self.query = nn.Linear(d, d, bias=False)
        self.key = nn.Linear(d, d, bias=False)
        self.value = nn.Linear(d, d, bias=False)
        self.out = nn.Linear(d, d, bias=False)
        self.feedforward_norm = RMSNorm(d, eps=NORM_EPSILON)
        self.gate = nn.Linear(d, width, bias=False)
        self.up = nn.Linear(d, width, bias=False)
        self.down = nn.Linear(width, d, bias=False)

    def forward(
        self, x: Tensor, layout: Layout, past: KeysAndValues | None, keep: bool, angles: "Angles"
    ) -> tuple[Tensor, KeysAndValues | None]:
        """`x` (batch, time, d) to the same shape; with the keys and values so far, where they are to be kept."""
        normed = self.attention_norm(x)
        query, key, value = (
            projection(normed).unflatten(-1, (self.num_heads, -1)) for projection in (self.query, self.key, self.value)
        )
        query, key = rotary(query, key, angles.cos, angles.sin)
        query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
        attended, seen = attend(query, key, value, layout, past)
        x = x + self.out(attended)
        normed = self.feedforward_norm(x)
        x = x + self.down(swiglu(self.gate(normed), self.up(normed)))
        return x, seen if keep else None


class Angles:
    """Cosine and sine of every position's angles, float32, ([batch,] time, head_dim/2): for all heads (Su 2021).

    No tuple or dataclass: FSDP casts the tensors of those to the precision of the computation, which tells no more than
    256 positions apart.
    """

    def __init__(self, positions: Tensor, config: LlamaConfig | RetNetConfig) -> None:
        """The angles of `positions` (time,) or (batch, time)."""
        head_dim = config.embedding_dim // config.num_heads
        exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
        angles = positions[..., None] * config.rope_theta**-exponents
        self.cos, self.sin = angles.cos(), angles.sin()
