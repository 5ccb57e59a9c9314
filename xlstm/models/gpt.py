"""GPT (Radford et al. 2019, Brown et al. 2020): pre-norm Transformer with learned positions, GELU and biases.

Per block: x + Attention(LayerNorm(x)), then x + MLP(LayerNorm(x)) of width 4 d: 12 d² + 13 d parameters. The embedding
is the head too; with 50304 tokens and 2048 positions that makes the 356M of the xLSTM paper's GPT-3 (Table 1).
"""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kernels.attention import attention
from xlstm.models.attention import KeysAndValues, Layout, Transformer
from xlstm.models.configs import GPTConfig

NORM_EPSILON = 1e-5


class GPT(Transformer):
    """Transformer that adds a learned vector per position to the embedding of the tokens."""

    positions: nn.Embedding
    elementwise: ClassVar[tuple[str, ...]] = ("positions.weight",)

    def __init__(self, config: GPTConfig) -> None:
        stem = {"positions": nn.Embedding(config.context_length, config.embedding_dim)}
        norm = nn.LayerNorm(config.embedding_dim, eps=NORM_EPSILON)
        super().__init__(config, (Block(config) for _ in range(config.num_blocks)), norm, stem=stem, tied=True)

    def locate(self, x: Tensor, layout: Layout) -> tuple[Tensor, tuple[()]]:
        """Positions are added to the stream. ValueError for a document longer than the positions the model has."""
        self._check_length(layout)
        return x + self.positions(layout.positions), ()

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
        batch, time, d = x.shape
        # (batch, 3 * heads, time, head_dim)
        projected = (
            self.query_key_value(self.attention_norm(x)).view(batch, time, 3 * self.num_heads, -1).transpose(1, 2)
        )
        query, key, value = projected.split(self.num_heads, dim=1)
        if past is not None:
            past = past.and_then(key, value)
            key, value = past.keys, past.values
        attended = attention(query, key, value, begins=layout.begins, mask=layout.mask)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, time, d))
        x = x + self.down(F.gelu(self.up(self.feedforward_norm(x)), approximate="tanh"))
        return x, (past if past is not None else KeysAndValues(key, value)) if keep else None
