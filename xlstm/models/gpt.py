"""GPT (Radford et al. 2019, Brown et al. 2020): pre-norm Transformer with learned positions, GELU and biases.

Per block: x + Attention(LayerNorm(x)), then x + MLP(LayerNorm(x)) of width 4 d: 12 d² + 13 d parameters. The embedding
is the head too; with 50304 tokens and 2048 positions that makes the 356M of the xLSTM paper's GPT-3 (Table 1).
"""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from xlstm.models.attention import KeysAndValues, Layout, Transformer, attend
from xlstm.models.configs import GPTConfig
from xlstm.models.history import check_room

NORM_EPSILON = 1e-5


class GPT(Transformer):
    """Transformer that adds a learned vector per position to the embedding of the tokens."""

    positions: nn.Embedding
    elementwise: ClassVar[tuple[str, ...]] = ("positions.weight",)
    undecayed: ClassVar[tuple[str, ...]] = ("positions.weight",)

    def __init__(self, config: GPTConfig) -> None:
        stem = {"positions": nn.Embedding(config.context_length, config.embedding_dim)}
        norm = nn.LayerNorm(config.embedding_dim, eps=NORM_EPSILON)
        super().__init__(config, (Block(config) for _ in range(config.num_blocks)), norm, stem=stem, tied=True)

    def locate(self, x: Tensor, layout: Layout) -> tuple[Tensor, tuple[()]]:
        """Positions are added to the stream. ValueError for a document longer than the positions the model has."""
        check_room(layout.positions, layout.num_keys, self.config.context_length, "gpt")
        return x + self.positions(layout.positions), ()


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
        self, x: Tensor, layout: Layout, past: KeysAndValues | None, keep: bool
    ) -> tuple[Tensor, KeysAndValues | None]:
        """`x` (batch, time, d) to the same shape; with the keys and values so far, where they are to be kept."""
        projected = self.query_key_value(self.attention_norm(x)).unflatten(-1, (3 * self.num_heads, -1))
        query, key, value = projected.transpose(1, 2).split(self.num_heads, dim=1)
        attended, seen = attend(query, key, value, layout, past)
        x = x + self.out(attended)
        x = x + self.down(F.gelu(self.up(self.feedforward_norm(x)), approximate="tanh"))
        return x, seen if keep else None
