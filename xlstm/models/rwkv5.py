"""RWKV-5, "Eagle" (Peng et al. 2024, arXiv 2404.05892): time mixing by a matrix memory per head, with a bonus.

Per block: x + TimeMix(LayerNorm(x)), then x + ChannelMix(LayerNorm(x)); 14 d² + 14 d parameters at the channel mixing's
width of 4 d. A LayerNorm follows the embedding. Untied embedding and head. RWKV-6 has what of it depends on the token.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.gated_linear_attention import gated_linear_attention
from kernels.token_shift import token_shift
from xlstm.models.linear_configs import RWKV5Config
from xlstm.models.rwkv_block import HEAD_NORM_EPSILON, Block, ChannelMix, RWKVBlocks


class Memory(nn.Module):
    """What the time mixing of RWKV-5 and 6 shares: the maps, the memory with its bonus, and the gated norm by head."""

    keeps_float32: ClassVar[bool] = True
    """Decays and bonus stay float32 in mixed precision, as the author keeps them: sums compound their rounding."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        d, self.head_dim = config.embedding_dim, config.head_dim
        self.bonus = nn.Parameter(torch.empty(d // self.head_dim, self.head_dim))
        self.receptance = nn.Linear(d, d, bias=False)
        self.key = nn.Linear(d, d, bias=False)
        self.value = nn.Linear(d, d, bias=False)
        self.gate = nn.Linear(d, d, bias=False)
        self.head_norm = nn.GroupNorm(d // self.head_dim, d, eps=HEAD_NORM_EPSILON)
        self.out = nn.Linear(d, d, bias=False)

    def remember(
        self, mixtures: tuple[Tensor, ...], log_decay: Tensor, memory: Tensor | None, resets: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What the memory gives of mixtures for receptance, key, value and gate; `log_decay` as the key, by head."""
        for_receptance, for_key, for_value, for_gate = mixtures
        receptance, key, value = (
            one.unflatten(-1, (-1, self.head_dim))
            for one in (self.receptance(for_receptance), self.key(for_key), self.value(for_value))
        )
        o, memory = gated_linear_attention(
            receptance, key, value, log_decay, bonus=self.bonus, initial_state=memory, resets=resets
        )
        normed = self.head_norm(o.flatten(2).flatten(0, 1)).view_as(for_gate)
        return self.out(normed * F.silu(self.gate(for_gate))), memory


class RWKV5(RWKVBlocks):
    """Blocks of time mixing with constant decays, and channel mixing."""

    def __init__(self, config: RWKV5Config) -> None:
        d = config.embedding_dim
        super().__init__(config, lambda _: Block(d, TimeMix(config), ChannelMix(d, config.channel_dim)))


class TimeMix(Memory):
    """The memory of what this token and the one before say, in constant shares, with constant decays."""

    def __init__(self, config: RWKV5Config) -> None:
        super().__init__(config)
        d = config.embedding_dim
        self.decay = nn.Parameter(torch.empty(d // self.head_dim, self.head_dim))
        self.shift_receptance = nn.Parameter(torch.empty(d))
        self.shift_key = nn.Parameter(torch.empty(d))
        self.shift_value = nn.Parameter(torch.empty(d))
        self.shift_gate = nn.Parameter(torch.empty(d))

    def forward(
        self, x: Tensor, last: Tensor | None, memory: Tensor | None, resets: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """`x` (batch, time, d) after `last` (batch, d): result of the same shape, and the memory afterwards."""
        shares = torch.stack((self.shift_receptance, self.shift_key, self.shift_value, self.shift_gate))
        mixtures = tuple(token_shift(x, shares, last=last, resets=resets))
        decay = -torch.exp(self.decay.to(torch.promote_types(self.decay.dtype, torch.float32)))
        return self.remember(mixtures, decay.expand(*x.shape[:2], -1, -1), memory, resets)
