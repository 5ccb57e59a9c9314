"""The post-up-projection sLSTM block (Beck et al. 2024, figure 10): x + sLSTM(norm(x)), then x + GatedMLP(norm(x)).

2 d² + 12 d + 3 d r64(1.3 d) parameters, r64 rounding up to a multiple of 64. The input and forget gate see the
convolved input, the cell input and the output gate the plain one; all four maps, and the recurrent ones, are
block-diagonal by head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.slstm import slstm
from xlstm.models.causal_conv import CausalConv, ConvolvedState
from xlstm.models.configs import XLSTMConfig
from xlstm.models.mlstm_block import NORM_EPSILON, HeadNorm


class SLSTMBlock(nn.Module):
    """One residual block with an sLSTM cell, and one with a gated feed-forward layer."""

    def __init__(self, config: XLSTMConfig) -> None:
        super().__init__()
        d, heads = config.embedding_dim, config.num_heads
        width = config.slstm_feedforward_dim
        self.norm = nn.LayerNorm(d, eps=NORM_EPSILON, bias=False)
        self.conv = CausalConv(d) if config.slstm_has_convolution else None
        self.gradient_clip = config.recurrent_gradient_clip
        # Gates in the order input, forget, cell input, output; weights are diagonal blocks, in times weight gives out.
        blocks = heads if config.slstm_gates == "headwise" else 1
        self.weight = nn.Parameter(torch.empty(4, blocks, d // blocks, d // blocks))
        self.recurrent = nn.Parameter(torch.empty(4, heads, d // heads, d // heads))
        self.bias = nn.Parameter(torch.empty(4, heads, d // heads))
        self.head_norm = HeadNorm(d)
        self.feedforward_norm = nn.LayerNorm(d, eps=NORM_EPSILON, bias=False)
        self.gate_and_up = nn.Linear(d, 2 * width, bias=False)
        self.down = nn.Linear(width, d, bias=False)

    def forward(
        self, x: Tensor, state: ConvolvedState | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, ConvolvedState]:
        """`x` (batch, time, d) to the same shape, and the state after its last token; its memory is an `SLSTMState`."""
        h, after = self.cell(self.norm(x), state, resets)
        x = x + h
        gate, up = self.gate_and_up(self.feedforward_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.gelu(gate) * up), after

    def cell(self, plain: Tensor, state: ConvolvedState | None, resets: Tensor | None) -> tuple[Tensor, ConvolvedState]:
        """The sLSTM layer alone: convolution, gates, recurrence and norm of each head, on the block's normed input."""
        convolved, past = plain, None
        if self.conv is not None:
            convolved, past = self.conv(plain, state.past if state else None, resets)
        blocks, heads = self.weight.shape[1], self.bias.shape[1]
        inputs = torch.stack((convolved, plain)).unflatten(-1, (blocks, -1))  # (2, batch, time, blocks, in)
        gates = torch.einsum("sbthi,sghio->btsgho", inputs, self.weight.unflatten(0, (2, 2)))
        gates = gates.flatten(-2).unflatten(-1, (heads, -1)).flatten(2, 3)  # (batch, time, 4, heads, head_dim)
        h, after = slstm(
            gates + self.bias,
            self.recurrent,
            initial_state=state.memory if state else None,
            resets=resets,
            gradient_clip=self.gradient_clip,
        )
        return self.head_norm(h), ConvolvedState(past, after)
