"""The block around the mixers of flash-linear-attention's models: x + Mixer(RMSNorm(x)), then x + SwiGLU(RMSNorm(x)).

Every matrix starts N(0, 0.02²), those into the residual stream too, and nothing has a bias but what a mixer says.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kernels.swiglu import swiglu
from xlstm.models.initialization import initialize_normal
from xlstm.models.language_model import LanguageModel
from xlstm.models.norm import RMSNorm

NORM_EPSILON = 1e-6


class SwiGLUBlocks(LanguageModel):
    """Blocks of a mixer, which a family gives as a function of its configuration, and SwiGLU."""

    def __init__(
        self, config: Any, mixer: Callable[[Any], nn.Module], *, stem: dict[str, nn.Module] | None = None
    ) -> None:
        blocks = (SwiGLUBlock(config, mixer(config)) for _ in range(config.num_blocks))
        super().__init__(config, blocks, RMSNorm(config.embedding_dim, eps=NORM_EPSILON), stem=stem)

    def initialize_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """Matrices N(0, 0.02²), biases zero, norms one (the library's `_init_weights`, whose rescaling is off)."""
        initialize_normal(name, parameter, generator)


class SwiGLUBlock(nn.Module):
    """x + Mixer(norm(x)), then x + SwiGLU(norm(x)); the state is the mixer's."""

    def __init__(self, config: Any, mixer: nn.Module) -> None:
        super().__init__()
        d, width = config.embedding_dim, config.feedforward_dim
        self.mixer_norm = RMSNorm(d, eps=NORM_EPSILON)
        self.mixer = mixer
        self.feedforward_norm = RMSNorm(d, eps=NORM_EPSILON)
        self.gate = nn.Linear(d, width, bias=False)
        self.up = nn.Linear(d, width, bias=False)
        self.down = nn.Linear(width, d, bias=False)

    def forward(self, x: Tensor, state: Any, resets: Tensor | None, *others: Any) -> tuple[Tensor, Any]:
        """`x` (batch, time, d) to the same shape, and what the mixer remembers; it is given `others` besides."""
        mixed, after = self.mixer(self.mixer_norm(x), state, resets, *others)
        x = x + mixed
        normed = self.feedforward_norm(x)
        return x + self.down(swiglu(self.gate(normed), self.up(normed))), after


def at_least_float32(tensor: Tensor) -> Tensor:
    """Gates' logits before their exponentials: what bfloat16 rounds there, a recurrence compounds."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
