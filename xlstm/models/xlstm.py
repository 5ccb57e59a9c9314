"""xLSTM[a:b] (Beck et al. 2024, arXiv 2405.04517): mLSTM blocks, with sLSTM blocks at stated positions.

No positional encoding, no dropout, untied embedding and head, a final LayerNorm without bias.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from xlstm.models.configs import XLSTMConfig
from xlstm.models.gates import forget_bias
from xlstm.models.language_model import LanguageModel
from xlstm.models.mlstm_block import NORM_EPSILON, MLSTMBlock
from xlstm.models.mlstm_post_up_block import MLSTMPostUpBlock
from xlstm.models.slstm_block import SLSTMBlock


class XLSTM(LanguageModel):
    """mLSTM blocks of the kind the configuration names, and sLSTM blocks at the positions it names."""

    queries: ClassVar[tuple[str, ...]] = ("query.weight",)
    undecayed: ClassVar[tuple[str, ...]] = ("bias",)

    def __init__(self, config: XLSTMConfig) -> None:
        mlstm_block = MLSTMPostUpBlock if config.mlstm_block == "post-up" else MLSTMBlock
        blocks = [
            SLSTMBlock(config) if index in config.slstm_at else mlstm_block(config)
            for index in range(config.num_blocks)
        ]
        super().__init__(config, blocks, nn.LayerNorm(config.embedding_dim, eps=NORM_EPSILON, bias=False))

    def recurs(self, name: str) -> bool:
        """The sLSTM's recurrent weights, which the authors' groups spare (their `_recurrent_kernel_`)."""
        return name.endswith(".recurrent")

    def initialize_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """The authors' initial values: see the comments for each kind of parameter."""
        d, blocks = self.config.embedding_dim, self.config.num_blocks
        block, _, leaf = name.removeprefix("blocks.").partition(".")
        if name.endswith("norm.weight") or leaf == "skip":
            parameter.fill_(1.0)
        elif leaf in ("recurrent", "bias") and self.config.slstm_initialization == "uniform":
            parameter.uniform_(-1 / math.sqrt(d), 1 / math.sqrt(d), generator=generator)
        elif leaf in ("input_gate.weight", "forget_gate.weight", "recurrent"):
            parameter.zero_()
        elif leaf == "input_gate.bias":
            parameter.normal_(std=0.1, generator=generator)
        elif leaf == "forget_gate.bias":
            # From short to long memory over the heads.
            parameter.copy_(torch.tensor(forget_bias(parameter.numel())))
        elif leaf == "bias":
            parameter.zero_()
            parameter[1].copy_(power_law_forget_bias(int(block), blocks, parameter.shape[-1]))
        elif leaf.startswith("conv."):
            # torch's own for a convolution of four taps per channel: uniform within 1 / sqrt(4).
            parameter.uniform_(-0.5, 0.5, generator=generator)
        elif leaf.startswith(("down.", "out.")):
            # Wang & Komatsuzaki (2021): the residual stream's variance stays independent of the depth.
            parameter.normal_(std=2.0 / (blocks * math.sqrt(d)), generator=generator)
        else:
            # "Small init" of Nguyen & Salazar (2019): everything that reads the residual stream.
            parameter.normal_(std=math.sqrt(2.0 / (5.0 * d)), generator=generator)


def power_law_forget_bias(block: int, num_blocks: int, head_dim: int) -> Tensor:
    """Forget-gate biases of an sLSTM head, from +5 to -7: 5 - 12 (j / (head_dim - 1))^(0.3 + 1.3 block / (blocks - 1)).

    Deeper blocks keep more channels with long memory.
    """
    position = torch.arange(head_dim) / max(head_dim - 1, 1)
    return 5.0 - 12.0 * position ** (0.3 + 1.3 * block / max(num_blocks - 1, 1))
