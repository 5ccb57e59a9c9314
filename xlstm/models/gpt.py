"""GPT (Radford et al. 2019, Brown et al. 2020): pre-norm Transformer with learned positions, GELU and biases.

Per block: x + Attention(LayerNorm(x)), then x + MLP(LayerNorm(x)) of width 4 d: 12 d² + 13 d parameters. The embedding
is the head too; with 50304 tokens and 2048 positions that makes the 356M of the xLSTM paper's GPT-3 (Table 1).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.attention import attention
from xlstm.models.attention import Layout, Past, lay_out
from xlstm.models.configs import GPTConfig
from xlstm.models.head import logits_or_losses

NORM_EPSILON = 1e-5
INITIAL_STD = 0.02
"""Of every matrix (GPT-2)."""


class GPT(nn.Module):
    """Language model over `config.vocab_size` tokens. `blocks` are the units of sharding and checkpointing."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_dim)
        self.positions = nn.Embedding(config.context_length, config.embedding_dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(config.embedding_dim, eps=NORM_EPSILON)

    def forward(
        self,
        tokens: Tensor,
        state: Past | None = None,
        *,
        resets: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> tuple[Tensor, Past | None]:
        """Logits (batch, time, vocab), or each token's loss in nats (batch, time) where `targets` are given; and state.

        `state` is the past's keys and values, kept as in `Llama`. ValueError for a document longer than the positions
        the model has.
        """
        x = self.embedding(tokens)
        layout = lay_out(x, state, resets)
        self._check_length(layout)
        keep = state is not None or targets is None or not torch.is_grad_enabled()
        x = x + self.positions(layout.positions)
        cache: list[tuple[Tensor, Tensor]] = []
        for index, block in enumerate(self.blocks):
            past = None if state is None else (state.keys[index], state.values[index])
            x, keys_and_values = block(x, layout, past, keep)
            if keep:
                cache.append(keys_and_values)
        result = logits_or_losses(self.norm(x), self.embedding.weight, targets)
        return result, layout.past(cache) if keep else None

    def _check_length(self, layout: Layout) -> None:
        """Only where the whole past exceeds the positions are those of its documents looked at (a device's wait)."""
        limit = self.config.context_length
        if layout.num_keys > limit and int(layout.positions.max()) >= limit:
            raise ValueError(
                f"a document of {int(layout.positions.max()) + 1} tokens exceeds the {limit} positions of gpt"
            )

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Weight decay falls on the matrices, the embeddings of tokens and positions excepted."""
        return parameter.ndim >= 2 and name not in ("embedding.weight", "positions.weight")

    def initialize_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """N(0, 0.02²); projections into the residual stream scaled by 1/sqrt(2 · blocks); biases zero, norms one."""
        if parameter.ndim == 1:
            parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
            return
        into_residual = name.endswith(("out.weight", "down.weight"))
        depth = math.sqrt(2 * self.config.num_blocks) if into_residual else 1.0
        nn.init.normal_(parameter, std=INITIAL_STD / depth, generator=generator)


class Block(nn.Module):
    """x + Attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        d = config.embedding_dim
        self.num_heads = config.num_heads
        self.attention_norm = nn.LayerNorm(d, eps=NORM_EPSILON)
        self.query_key_value = nn.Linear(d, 3 * d)
        self.out = nn.Linear(d, d)
        self.feedforward_norm = nn.LayerNorm(d, eps=NORM_EPSILON)
        self.up = nn.Linear(d, 4 * d)
        self.down = nn.Linear(4 * d, d)

    def forward(
        self, x: Tensor, layout: Layout, past: tuple[Tensor, Tensor] | None, keep: bool
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """`x` (batch, time, d) to the same shape; with the keys and values so far, where they are to be kept."""
        batch, time, d = x.shape
        # (batch, 3 * heads, time, head_dim)
        projected = (
            self.query_key_value(self.attention_norm(x)).view(batch, time, 3 * self.num_heads, -1).transpose(1, 2)
        )
        query, key, value = projected.split(self.num_heads, dim=1)
        if past is not None:
            key, value = torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)
        attended = attention(query, key, value, begins=layout.begins, mask=layout.mask)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, time, d))
        x = x + self.down(F.gelu(self.up(self.feedforward_norm(x)), approximate="tanh"))
        return x, (key, value) if keep else None
