"""The pre-up-projection mLSTM block (Beck et al. 2024, figure 11): x + down(mLSTM(up(norm(x)))).

With d the embedding dimension and D = 2d: 6 d² + 87 d + 8 parameters at four heads. Details follow the authors'
published models where the paper is silent: the output gate is SiLU of the second half of the up-projection, queries and
keys see the convolved input and values the plain one, and projections to them are block-diagonal in blocks of four.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.block_diagonal import block_diagonal
from kernels.gated_head_norm import gated_head_norm
from kernels.mlstm import mlstm
from kernels.mlstm_inputs import mlstm_inputs
from xlstm.models.causal_conv import CausalConv, ConvolvedState
from xlstm.models.configs import XLSTMConfig
from xlstm.models.gates import OPEN, Gate, forget_bias, joined, separated

NORM_EPSILON = 1e-5
DENOMINATOR_EPSILON = 1e-6
PROJECTION_FACTOR = 2
BLOCK_SIZE = 4
"""Channels of each block of the block-diagonal projections to queries, keys and values."""


class BlockDiagonal(nn.Module):
    """A linear map whose matrix is block-diagonal: channels in groups of four, each with a 4x4 matrix of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels // BLOCK_SIZE, BLOCK_SIZE, BLOCK_SIZE))  # (block, out, in)

    def forward(self, x: Tensor) -> Tensor:
        """(…, channels) to the same shape."""
        return block_diagonal(x, self.weight)


class MLSTMBlock(nn.Module):
    """One residual block with an mLSTM cell of `num_heads` heads."""

    def __init__(self, config: XLSTMConfig) -> None:
        super().__init__()
        d = config.embedding_dim
        inner = PROJECTION_FACTOR * d
        self.config = config
        self.norm = nn.LayerNorm(d, eps=NORM_EPSILON, bias=False)
        self.up = nn.Linear(d, 2 * inner, bias=False)
        self.conv = CausalConv(inner) if config.convolution else None
        self.query = BlockDiagonal(inner)
        self.key = BlockDiagonal(inner)
        self.value = BlockDiagonal(inner)
        self.input_gate, self.forget_gate = mlstm_gates(3 * inner, config)
        self.head_norm = HeadNorm(inner)
        self.skip = nn.Parameter(torch.empty(inner)) if config.learnable_skip else None
        self.down = nn.Linear(inner, d, bias=False)

    def forward(
        self, x: Tensor, state: ConvolvedState | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, ConvolvedState]:
        """`x` (batch, time, d) to the same shape, and the state after its last token; its memory is an `MLSTMState`."""
        inner, gate = self.up(self.norm(x)).chunk(2, dim=-1)
        convolved, past = inner, None
        if self.conv is not None:
            convolved, past = self.conv(inner, state.past if state else None, resets)
        gates, together = (self.input_gate, self.forget_gate), None
        seeing = joined(gates)
        if seeing is None:
            query, key, value = self.query(convolved), self.key(convolved), self.value(inner)
        else:
            maps = self.query.weight, self.key.weight, self.value.weight
            query, key, value, together = mlstm_inputs(convolved, inner, *maps, *seeing)
        input_gate, forget_gate = separated(gates, query, together)
        h, cell = mlstm(
            by_head(query, self.config.num_heads),
            by_head(key, self.config.num_heads),
            by_head(value, self.config.num_heads),
            input_gate,
            forget_gate,
            initial_state=state.memory if state else None,
            resets=resets,
            input_gate=self.config.input_gate_activation,
            normalize=self.config.normalizer,
            eps=DENOMINATOR_EPSILON,
        )
        h = gated_head_norm(
            h.transpose(1, 2),
            self.head_norm.weight,
            gate,
            skipped=None if self.skip is None else convolved,
            skip=self.skip,
            eps=NORM_EPSILON,
        )
        return x + self.down(h), ConvolvedState(past, cell)


def mlstm_gates(channels: int, config: XLSTMConfig) -> tuple[Gate, Gate]:
    """Input and forget gate of an mLSTM cell, from `channels` inputs."""
    heads = config.num_heads
    forget = [OPEN] * heads if config.forget_gate == "none" else forget_bias(heads)
    return Gate(channels, config.input_gate, [0.0] * heads), Gate(channels, config.forget_gate, forget)


def by_head(x: Tensor, num_heads: int) -> Tensor:
    """(batch, time, channels) to (batch, heads, time, head_dim)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


class HeadNorm(nn.Module):
    """LayerNorm over each head's channels by itself; one weight per channel, no bias."""

    def __init__(self, channels: int, epsilon: float = NORM_EPSILON) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.empty(channels))

    def forward(self, h: Tensor) -> Tensor:
        """(batch, time, heads, head_dim) to (batch, time, heads * head_dim)."""
        normed = F.layer_norm(h, h.shape[-1:], eps=self.epsilon)
        return normed.flatten(-2) * self.weight
