"""RetNet (Sun et al. 2023, arXiv 2307.08621): linear attention with rotary positions and a constant decay per head.

Per block, with F = r256(4 d / 3): 8 d² + 2 d / heads + 3 d F + 2 d parameters; the memory is the mLSTM's, without
normaliser and with gates that depend on nothing. No row is scaled: the norm by head removes any such factor, up to its
epsilon, for which the public forms disagree. Embedding and head are untied.
"""

import math

import torch
from torch import Tensor, nn

from kernels.mlstm import MLSTMState, mlstm
from kernels.rotary import rotary
from kernels.swiglu import swiglu
from xlstm.models.dropout import Dropout
from xlstm.models.history import Positioned, positions_of
from xlstm.models.linear_configs import RetNetConfig
from xlstm.models.llama import Angles
from xlstm.models.norm import RMSNorm
from xlstm.models.swiglu_block import NORM_EPSILON, SwiGLUBlocks

SLOWEST = 5
"""The first head forgets 2^-5 of its memory at each token, each further one half as much."""


class RetNet(SwiGLUBlocks):
    """Blocks of retention and SwiGLU."""

    def __init__(self, config: RetNetConfig) -> None:
        super().__init__(config, Mixer)

    def apply_blocks(
        self, x: Tensor, state: Positioned | None, resets: Tensor | None, keep_state: bool, dropout: Dropout | None
    ) -> tuple[Tensor, Positioned | None]:
        """`x` (batch, time, d) after the last block, and the state, None unless kept."""
        positions = positions_of(x, state.next_position if state else None, resets)
        alike = state is None and resets is None
        angles = Angles(torch.arange(x.shape[1], device=x.device) if alike else positions, self.config)
        x, cells = self.run_alike(x, state.blocks if state else None, keep_state, dropout, resets, angles)
        return x, Positioned(cells, positions[:, -1] + 1) if keep_state else None


class Mixer(nn.Module):
    """Retention, normed by head and gated."""

    def __init__(self, config: RetNetConfig) -> None:
        super().__init__()
        d, self.num_heads = config.embedding_dim, config.num_heads
        self.query = nn.Linear(d, d, bias=False)
        self.key = nn.Linear(d, d, bias=False)
        self.value = nn.Linear(d, 2 * d, bias=False)
        self.gate = nn.Linear(d, 2 * d, bias=False)
        self.head_norm = RMSNorm(2 * d // self.num_heads, eps=NORM_EPSILON)
        self.out = nn.Linear(2 * d, d, bias=False)
        # A sigmoid of log(2^n - 1) is 1 - 2^-n.
        self.forget = [math.log(2.0 ** (SLOWEST + head) - 1.0) for head in range(self.num_heads)]

    def forward(
        self, x: Tensor, state: MLSTMState | None, resets: Tensor | None, angles: Angles
    ) -> tuple[Tensor, MLSTMState]:
        """`x` (batch, time, d) to the same shape, and the memory afterwards."""
        query, key, value = (
            projection(x).unflatten(-1, (self.num_heads, -1)) for projection in (self.query, self.key, self.value)
        )
        query, key = rotary(query, key, angles.cos, angles.sin)
        dtype = torch.promote_types(x.dtype, torch.float32)
        forget = torch.tensor(self.forget, device=x.device, dtype=dtype)[None, :, None]
        forget = forget.expand(x.shape[0], -1, x.shape[1])
        query, key, value = (one.transpose(1, 2) for one in (query, key, value))
        h, state = mlstm(
            query, key, value, torch.zeros_like(forget), forget, initial_state=state, resets=resets, normalize=False
        )
        return self.out(swiglu(self.gate(x), self.head_norm(h.transpose(1, 2)).flatten(2).to(x.dtype))), state
