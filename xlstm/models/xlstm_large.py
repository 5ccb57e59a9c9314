"""The architecture of xLSTM-7B (Beck et al. 2025, arXiv 2503.13427): made for speed, with mLSTM blocks alone.

Per block: x + mLSTM(RMSNorm(x)), then x + SwiGLU(RMSNorm(x)). The cell works at the model's width, without convolution
or skip; gates and logits are soft-capped; the input gate starts nearly closed.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from kernels.mlstm import MLSTMState, mlstm
from kernels.swiglu import swiglu
from xlstm.models.configs import XLSTMLargeConfig
from xlstm.models.gates import forget_bias
from xlstm.models.language_model import LanguageModel
from xlstm.models.mlstm_block import HeadNorm, by_head
from xlstm.models.norm import RMSNorm

NORM_EPSILON = 1e-6
DENOMINATOR_EPSILON = 1e-6
INITIAL_INPUT_GATE_BIAS = -10.0
"""Removes spikes of the gradient norm (arXiv 2503.13427, section 3)."""


class XLSTMLarge(LanguageModel):
    """mLSTM blocks at the model's width, and soft-capped logits."""

    queries: ClassVar[tuple[str, ...]] = ("query.weight",)

    def __init__(self, config: XLSTMLargeConfig) -> None:
        norm = RMSNorm(config.embedding_dim, eps=NORM_EPSILON)
        super().__init__(config, (XLSTMLargeBlock(config) for _ in range(config.num_blocks)), norm)
        self.soft_cap = config.logit_soft_cap

    def initialize_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """The authors' initial values: gates from their biases alone, the rest as in `xlstm.models.xlstm`."""
        d, blocks = self.config.embedding_dim, self.config.num_blocks
        if name.endswith("norm.weight"):
            parameter.fill_(1.0)
        elif name.endswith("gate.weight"):
            parameter.zero_()
        elif name.endswith("input_gate.bias"):
            parameter.fill_(INITIAL_INPUT_GATE_BIAS)
        elif name.endswith("forget_gate.bias"):
            parameter.copy_(torch.tensor(forget_bias(parameter.numel())))
        elif name.endswith((".out.weight", ".down.weight")):
            parameter.normal_(std=2.0 / (blocks * math.sqrt(d)), generator=generator)
        else:
            parameter.normal_(std=math.sqrt(2.0 / (5.0 * d)), generator=generator)


class XLSTMLargeBlock(nn.Module):
    """One residual block with an mLSTM cell, and one with SwiGLU."""

    def __init__(self, config: XLSTMLargeConfig) -> None:
        super().__init__()
        d, heads = config.embedding_dim, config.num_heads
        self.config = config
        self.norm = RMSNorm(d, eps=NORM_EPSILON)
        self.query = nn.Linear(d, config.key_dim, bias=False)
        self.key = nn.Linear(d, config.key_dim, bias=False)
        self.value = nn.Linear(d, d, bias=False)
        self.input_gate = nn.Linear(d, heads)
        self.forget_gate = nn.Linear(d, heads)
        self.output_gate = nn.Linear(d, d, bias=False)
        self.head_norm = HeadNorm(d, NORM_EPSILON)
        self.out = nn.Linear(d, d, bias=False)
        self.feedforward_norm = RMSNorm(d, eps=NORM_EPSILON)
        self.gate = nn.Linear(d, config.feedforward_dim, bias=False)
        self.up = nn.Linear(d, config.feedforward_dim, bias=False)
        self.down = nn.Linear(config.feedforward_dim, d, bias=False)

    def forward(
        self, x: Tensor, state: MLSTMState | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, MLSTMState]:
        """`x` (batch, time, d) to the same shape, and the state after its last token."""
        heads = self.config.num_heads
        inputs = self.norm(x)
        h, after = mlstm(
            by_head(self.query(inputs), heads),
            by_head(self.key(inputs), heads),
            by_head(self.value(inputs), heads),
            self._capped(self.input_gate(inputs)),
            self._capped(self.forget_gate(inputs)),
            initial_state=state,
            resets=resets,
            eps=DENOMINATOR_EPSILON,
        )
        x = x + self.out(torch.sigmoid(self.output_gate(inputs)) * self.head_norm(h.transpose(1, 2)))
        inputs = self.feedforward_norm(x)
        return x + self.down(swiglu(self.gate(inputs), self.up(inputs))), after

    def _capped(self, gate: Tensor) -> Tensor:
        """(batch, time, heads) to (batch, heads, time), at least float32, within the cap."""
        cap = self.config.gate_soft_cap
        gate = gate.transpose(1, 2).to(torch.promote_types(gate.dtype, torch.float32))
        return cap * torch.tanh(gate / cap)
