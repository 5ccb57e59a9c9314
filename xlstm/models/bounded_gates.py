"""Forget gates that keep more at least, the deeper the block: what HGRN and HGRN2 share."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from xlstm.models.configs import ModelConfig
from xlstm.models.dropout import Dropout
from xlstm.models.swiglu_block import SwiGLUBlocks


class LowerBounds(nn.Module):
    """What forget gates of each block keep at least (HGRN, arXiv 2311.04823, section 3.2): none in the first block.

    A parameter per block and channel; of its softmax over the blocks, a block's bound is the sum up to it, without the
    first block's share. The blocks share it, so it stands outside them.
    """

    keeps_float32: ClassVar[bool] = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.shares = nn.Parameter(torch.empty(config.num_blocks, config.embedding_dim))

    def forward(self) -> list["Bound"]:
        """The bound of each block, float32 at least."""
        shares = self.shares.to(torch.promote_types(self.shares.dtype, torch.float32)).softmax(0)
        return [Bound(bound) for bound in (shares.cumsum(0) - shares[0]).unbind()]


class Bound:
    """One block's bound, (d,): no bare tensor, which FSDP would cast to the precision of the computation."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


class BoundedBlocks(SwiGLUBlocks):
    """Blocks whose mixers are told their lower bounds."""

    lower_bounds: LowerBounds
    elementwise: ClassVar[tuple[str, ...]] = ("lower_bounds.shares",)
    undecayed: ClassVar[tuple[str, ...]] = ("lower_bounds.shares",)
    """Weight decay would pull the bounds together."""

    def __init__(self, config: Any, mixer: Callable[[Any], nn.Module]) -> None:
        super().__init__(config, mixer, stem={"lower_bounds": LowerBounds(config)})

    def apply_blocks(
        self, x: Tensor, state: Any, resets: Tensor | None, keep_state: bool, dropout: Dropout | None
    ) -> tuple[Tensor, Any]:
        """`x` (batch, time, d) after the last block, and a state for each block, None unless kept."""
        bounds = enumerate(self.lower_bounds())
        others = ((state[index] if state else None, resets, bound) for index, bound in bounds)
        x, states = self.run_blocks(x, others, keep_state, dropout)
        return x, tuple(states) if keep_state else None

    def initialize_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """Bounds zero, so that block l of n keeps l / n at least; all else as without them."""
        if name.startswith("lower_bounds."):
            parameter.zero_()
        else:
            super().initialize_parameter(name, parameter, generator)
