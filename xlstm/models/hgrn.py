"""HGRN (Qin et al. 2023, arXiv 2311.04823), the real form of it that is in use: gates over an element-wise recurrence.

Per block, with F = r256(8 d / 3): 4 d² + d + 3 d F + 2 d parameters, and d of the lower bounds, which stand outside the
blocks. The paper's own recurrence is complex. Embedding and head are untied.
"""

import torch
from torch import Tensor, nn

from kernels.bounded_gate import bounded_gate
from kernels.linear_recurrence import linear_recurrence
from kernels.swiglu import swiglu
from xlstm.models.bounded_gates import Bound, BoundedBlocks
from xlstm.models.linear_configs import HGRNConfig
from xlstm.models.norm import RMSNorm
from xlstm.models.swiglu_block import NORM_EPSILON, at_least_float32


class HGRN(BoundedBlocks):
    """Blocks of a gated linear recurrence and SwiGLU."""

    def __init__(self, config: HGRNConfig) -> None:
        super().__init__(config, Mixer)


class Mixer(nn.Module):
    """h_t = f_t h_{t-1} + (1 - f_t) silu(i_t), normed over all channels and gated."""

    def __init__(self, config: HGRNConfig) -> None:
        super().__init__()
        d = config.embedding_dim
        self.input = nn.Linear(d, d, bias=False)
        self.forget = nn.Linear(d, d, bias=False)
        self.gate = nn.Linear(d, d, bias=False)
        self.output_norm = RMSNorm(d, eps=NORM_EPSILON)
        self.out = nn.Linear(d, d, bias=False)

    def forward(self, x: Tensor, state: Tensor | None, resets: Tensor | None, bound: Bound) -> tuple[Tensor, Tensor]:
        """`x` (batch, time, d) to the same shape, and the state (batch, d)."""
        keep, rest = bounded_gate(at_least_float32(self.forget(x)), bound.value)
        entering = at_least_float32(self.input(x))
        with torch.autocast(x.device.type, enabled=False):  # what is let in may be little, and stays in float32
            entering = swiglu(entering, rest)
        h = linear_recurrence(entering, keep, initial_state=state, resets=resets)
        return self.out(swiglu(self.gate(x), self.output_norm(h).to(x.dtype))), h[:, -1]
