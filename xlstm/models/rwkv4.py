"""RWKV-4 (Peng et al. 2023, arXiv 2305.13048): time mixing by WKV, channel mixing by a gated squared ReLU.

Per block: x + TimeMix(LayerNorm(x)), then x + ChannelMix(LayerNorm(x)); 13 d² + 11 d parameters. A LayerNorm follows
the embedding. Untied embedding and head.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from kernels.token_shift import token_shift
from kernels.wkv import WKVState, wkv
from xlstm.models.configs import RWKV4Config
from xlstm.models.rwkv_block import Block, ChannelMix, Place, RWKVBlocks, orthogonal


class RWKV4(RWKVBlocks):
    """Blocks of time mixing by WKV, and channel mixing."""

    def __init__(self, config: RWKV4Config) -> None:
        d = config.embedding_dim
        super().__init__(config, lambda _: Block(d, TimeMix(d), ChannelMix(d, 4 * d)))

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Weight decay falls on all but biases, LayerNorms and the token embedding (xLSTM paper, appendix D.2)."""
        return not (name == "embedding.weight" or name.endswith(("bias", "norm.weight")))

    def _initialize_in_block(self, place: Place, leaf: str, parameter: Tensor, generator: torch.Generator) -> None:
        if leaf == "time_mix.decay":
            # From slow to fast forgetting over the channels, slower for longer in deeper blocks.
            parameter.copy_(-5 + 8 * place.position ** (0.7 + 1.3 * place.depth))
        elif leaf == "time_mix.bonus":
            parameter.copy_(math.log(0.3) + 0.5 * ((torch.arange(place.channels) + 1) % 3 - 1))
        elif "shift_" in leaf:
            parameter.copy_(place.share(leaf))
        elif leaf in ("time_mix.value.weight", "channel_mix.key.weight"):
            orthogonal(parameter, 1.0, generator)
        else:
            # Keys, receptances and what enters the residual stream: the network starts as the identity.
            parameter.zero_()


class TimeMix(nn.Module):
    """WKV of keys and values that see this token and the one before, gated by the receptance."""

    keeps_float32: ClassVar[bool] = True
    """Decay and bonus stay float32 in mixed precision, as the author keeps them: sums compound their rounding."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.empty(d))
        self.bonus = nn.Parameter(torch.empty(d))
        self.shift_key = nn.Parameter(torch.empty(d))
        self.shift_value = nn.Parameter(torch.empty(d))
        self.shift_receptance = nn.Parameter(torch.empty(d))
        self.key = nn.Linear(d, d, bias=False)
        self.value = nn.Linear(d, d, bias=False)
        self.receptance = nn.Linear(d, d, bias=False)
        self.out = nn.Linear(d, d, bias=False)

    def forward(
        self, x: Tensor, last: Tensor | None, sums: WKVState | None, resets: Tensor | None
    ) -> tuple[Tensor, WKVState]:
        """`x` (batch, time, d) after `last` (batch, d): result of the same shape, and the sums afterwards."""
        shares = torch.stack((self.shift_key, self.shift_value, self.shift_receptance))
        for_key, for_value, for_receptance = token_shift(x, shares, last=last, resets=resets)
        key, value = self.key(for_key), self.value(for_value)
        receptance = torch.sigmoid(self.receptance(for_receptance))
        decay = -torch.exp(self.decay.to(torch.promote_types(self.decay.dtype, torch.float32)))
        averaged, sums = wkv(key, value, decay, self.bonus, initial_state=sums, resets=resets)
        return self.out(receptance * averaged), sums
