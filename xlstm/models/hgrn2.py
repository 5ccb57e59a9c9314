"""HGRN2 (Qin et al. 2024, arXiv 2404.07904): linear attention whose keys are what its bounded forget gates let in.

Per block, with F = r256(8 d / 3): 4 d² + d + 3 d F + 2 d parameters, and d of the lower bounds, which stand outside the
blocks. Embedding and head are untied.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from kernels.bounded_gate import bounded_gate
from kernels.gated_linear_attention import gated_linear_attention
from xlstm.models.bounded_gates import Bound, BoundedBlocks
from xlstm.models.linear_configs import HGRN2Config
from xlstm.models.norm import RMSNorm
from xlstm.models.swiglu_block import at_least_float32

OUTPUT_NORM_EPSILON = 1e-5
"""As the models of flash-linear-attention compute, whatever their configuration says; the other norms have 1e-6."""


class HGRN2(BoundedBlocks):
    """Blocks of gated linear attention with bounded decays and SwiGLU."""

    def __init__(self, config: HGRN2Config) -> None:
        super().__init__(config, Mixer)


class Mixer(nn.Module):
    """Linear attention of heads of `head_dim`, with a norm over all of its outputs and no gate."""

    def __init__(self, config: HGRN2Config) -> None:
        super().__init__()
        d, self.head_dim = config.embedding_dim, config.head_dim
        self.query = nn.Linear(d, d, bias=False)
        self.forget = nn.Linear(d, d, bias=False)
        self.value = nn.Linear(d, d, bias=False)
        self.output_norm = RMSNorm(d, eps=OUTPUT_NORM_EPSILON)
        self.out = nn.Linear(d, d, bias=False)

    def forward(self, x: Tensor, state: Tensor | None, resets: Tensor | None, bound: Bound) -> tuple[Tensor, Tensor]:
        """`x` (batch, time, d) to the same shape, and the memory (batch, heads, head_dim, head_dim)."""
        decay, key = bounded_gate(at_least_float32(self.forget(x)), bound.value)
        query = F.silu(self.query(x)) * self.head_dim**-0.5
        query, key, value, decay = (
            one.unflatten(-1, (-1, self.head_dim)) for one in (query, key.to(x.dtype), self.value(x), decay)
        )
        o, state = gated_linear_attention(query, key, value, decay, initial_state=state, resets=resets)
        return self.out(self.output_norm(o.flatten(2)).to(x.dtype)), state
