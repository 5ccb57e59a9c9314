"""The post-up-projection mLSTM block, an ablation of the paper: x + mLSTM(norm(x)), then x + MLP(norm(x)).

The cell works at the model's width, with dense projections and a sigmoid output gate; the feed-forward layer is four
times as wide, with squared ReLU. 13 d² + 11 d + 8 parameters at four heads (the paper's 430.4M at 24 blocks of 1024).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.mlstm import MLSTMState, mlstm
from xlstm.models.configs import XLSTMConfig
from xlstm.models.mlstm_block import DENOMINATOR_EPSILON, NORM_EPSILON, HeadNorm, by_head, mlstm_gates

FEEDFORWARD_FACTOR = 4


class MLSTMPostUpBlock(nn.Module):
    """One residual block with an mLSTM cell, and one with a feed-forward layer."""

    def __init__(self, config: XLSTMConfig) -> None:
        super().__init__()
        d = config.embedding_dim
        self.config = config
        self.norm = nn.LayerNorm(d, eps=NORM_EPSILON, bias=False)
        self.query_key_value = nn.Linear(d, 3 * d, bias=False)
        self.output_gate = nn.Linear(d, d, bias=False)
        self.input_gate, self.forget_gate = mlstm_gates(d, config)
        self.head_norm = HeadNorm(d)
        self.out = nn.Linear(d, d, bias=False)
        self.feedforward_norm = nn.LayerNorm(d, eps=NORM_EPSILON, bias=False)
        self.up = nn.Linear(d, FEEDFORWARD_FACTOR * d, bias=False)
        self.down = nn.Linear(FEEDFORWARD_FACTOR * d, d, bias=False)

    def forward(
        self, x: Tensor, state: MLSTMState | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, MLSTMState]:
        """`x` (batch, time, d) to the same shape, and the state after its last token."""
        inputs = self.norm(x)
        query, key, value = (by_head(part, self.config.num_heads) for part in self.query_key_value(inputs).chunk(3, -1))
        h, after = mlstm(
            query,
            key,
            value,
            self.input_gate(inputs),
            self.forget_gate(inputs),
            initial_state=state,
            resets=resets,
            input_gate=self.config.input_gate_activation,
            normalize=self.config.normalizer,
            eps=DENOMINATOR_EPSILON,
        )
        x = x + self.out(torch.sigmoid(self.output_gate(inputs)) * self.head_norm(h.transpose(1, 2)))
        return x + self.down(F.relu(self.up(self.feedforward_norm(x))).square()), after
