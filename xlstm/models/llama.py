"""Llama (Touvron et al. 2023): pre-norm Transformer with rotary positions and SwiGLU, without biases.

Per block: x + Attention(RMSNorm(x)), then x + SwiGLU(RMSNorm(x)) of width 8/3 d rounded up to a multiple of 64:
4 d² + 3 d · r64(8d/3) + 2 d parameters. The vocabulary's embedding and the head are untied, as in the xLSTM paper.
"""

import math

import torch
from torch import Tensor, nn

from kernels.attention import attention
from kernels.rotary import rotary
from kernels.swiglu import swiglu
from xlstm.models.attention import Layout, Past, lay_out
from xlstm.models.configs import LlamaConfig
from xlstm.models.head import logits_or_losses
from xlstm.models.norm import RMSNorm

NORM_EPSILON = 1e-6
"""Of RMSNorm, as released with the first Llama."""

INITIAL_STD = 0.02
"""Of every matrix (GPT-2; Gu & Dao 2023 use it for their Transformer++ too)."""


class Llama(nn.Module):
    """Language model over `config.vocab_size` tokens. `blocks` are the units of sharding and checkpointing."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        self.norm = RMSNorm(config.embedding_dim, eps=NORM_EPSILON)
        self.head = nn.Linear(config.embedding_dim, config.vocab_size, bias=False)

    def forward(
        self,
        tokens: Tensor,
        state: Past | None = None,
        *,
        resets: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> tuple[Tensor, Past | None]:
        """Logits (batch, time, vocab), or each token's loss in nats (batch, time) where `targets` are given; and state.

        `state` is the past's keys and values. In training (gradients on, targets given, no state) none is kept, since
        it would hold every block's activations alive, and None is returned.
        """
        x = self.embedding(tokens)
        layout = lay_out(x, state, resets)
        keep = state is not None or targets is None or not torch.is_grad_enabled()
        angles = Angles(layout.positions, self.config)
        cache: list[tuple[Tensor, Tensor]] = []
        for index, block in enumerate(self.blocks):
            past = None if state is None else (state.keys[index], state.values[index])
            x, keys_and_values = block(x, angles, layout, past, keep)
            if keep:
                cache.append(keys_and_values)
        result = logits_or_losses(self.norm(x), self.head.weight, targets)
        return result, layout.past(cache) if keep else None

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Weight decay falls on the matrices, the token embedding excepted (xLSTM paper, Table 7's set-up)."""
        return parameter.ndim >= 2 and name != "embedding.weight"

    def initialize_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """N(0, 0.02²); projections into the residual stream scaled by 1/sqrt(2 · blocks) (GPT-2); norms one."""
        if parameter.ndim == 1:
            nn.init.ones_(parameter)
            return
        into_residual = name.endswith(("out.weight", "down.weight"))
        depth = math.sqrt(2 * self.config.num_blocks) if into_residual else 1.0
        nn.init.normal_(parameter, std=INITIAL_STD / depth, generator=generator)


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
        self, x: Tensor, angles: "Angles", layout: Layout, past: tuple[Tensor, Tensor] | None, keep: bool
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """`x` (batch, time, d) to the same shape; with the keys and values so far, where they are to be kept."""
        batch, time, d = x.shape
        normed = self.attention_norm(x)
        query, key, value = (
            projection(normed).unflatten(-1, (self.num_heads, -1)) for projection in (self.query, self.key, self.value)
        )
        query, key = rotary(query, key, angles.cos, angles.sin)
        query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
        if past is not None:
            key, value = torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)
        attended = attention(query, key, value, begins=layout.begins, mask=layout.mask)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, time, d))
        normed = self.feedforward_norm(x)
        x = x + self.down(swiglu(self.gate(normed), self.up(normed)))
        return x, (key, value) if keep else None


class Angles:
    """Cosine and sine of every position's angles, float32, ([batch,] time, head_dim/2): for all heads (Su 2021).

    No tuple or dataclass: FSDP casts the tensors of those to the precision of the computation, which tells no more than
    256 positions apart.
    """

    def __init__(self, positions: Tensor, config: LlamaConfig) -> None:
        """Of `positions` (time,) or (batch, time)."""
        head_dim = config.embedding_dim // config.num_heads
        exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
        angles = positions[..., None] * config.rope_theta**-exponents
        self.cos, self.sin = angles.cos(), angles.sin()
