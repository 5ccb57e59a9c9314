"""RWKV-6, "Finch" (Peng et al. 2024, arXiv 2404.05892): RWKV-5 whose decays and token shifts depend on the token.

Per block, with F = r32(3.5 d): 6 d² + 2 d F + 464 d parameters at the published ranks. Shifts are shares of the token
before, as the author writes them; his initial values, not the zeros of flash-linear-attention, which start without
token shift and with a memory of one token in every channel.
"""

import torch
from torch import Tensor, nn

from kernels.token_shift import token_shift
from xlstm.models.linear_configs import RWKV6Config
from xlstm.models.rwkv5 import Memory
from xlstm.models.rwkv_block import Block, ChannelMix, LowRank, Place, RWKVBlocks

ORDER = ("decay", "key", "value", "receptance", "gate")
"""Of the five mixtures, as the author's weights have it."""


class RWKV6(RWKVBlocks):
    """Blocks of time mixing with decays and shifts by the token, and channel mixing."""

    def __init__(self, config: RWKV6Config) -> None:
        d = config.embedding_dim
        super().__init__(config, lambda _: Block(d, TimeMix(config), ChannelMix(d, config.channel_dim)))

    def _initialize_in_block(self, place: Place, leaf: str, parameter: Tensor, generator: torch.Generator) -> None:
        """As RWKV-5, but for shares of the token before, and for what the token adds: nothing at first."""
        if leaf.endswith("mixing.base"):
            shares = [place.share(f"time_mix.shift_{name}") for name in ORDER]
            parameter.copy_(1 - torch.stack(shares))
        elif leaf == "time_mix.mixing.first_base":
            parameter.copy_(1 - place.share(leaf))
        elif leaf.endswith("enter"):
            parameter.zero_()
        elif leaf.endswith("leave"):
            parameter.uniform_(-0.01, 0.01, generator=generator)
        elif leaf.startswith("channel_mix.shift_"):
            channel = torch.arange(place.channels) / place.channels
            parameter.copy_(channel ** (place.height**3))
        else:
            super()._initialize_in_block(place, leaf, parameter, generator)


class Mixing(nn.Module):
    """The token and the one before it in five mixtures, whose shares are of low rank in a sixth mixture."""

    def __init__(self, d: int, rank: int) -> None:
        super().__init__()
        self.first_base = nn.Parameter(torch.empty(d))
        self.base = nn.Parameter(torch.empty(len(ORDER), d))
        self.enter = nn.Parameter(torch.empty(d, len(ORDER) * rank))
        self.leave = nn.Parameter(torch.empty(len(ORDER), rank, d))

    def forward(self, x: Tensor, before: Tensor) -> tuple[Tensor, ...]:
        """`x` and the tokens `before` (batch, time, d) to the mixtures in ORDER."""
        step = before - x
        first_base, base, enter, leave = (p.to(x.dtype) for p in (self.first_base, self.base, self.enter, self.leave))
        added = torch.tanh((x + step * first_base) @ enter).unflatten(-1, (len(ORDER), -1))
        shares = torch.einsum("btnr,nrd->nbtd", added, leave) + base[:, None, None]
        return torch.addcmul(x, step, shares).unbind()


class TimeMix(Memory):
    """The memory of what this token and the one before say, in shares and with decays that the token says."""

    def __init__(self, config: RWKV6Config) -> None:
        super().__init__(config)
        d = config.embedding_dim
        self.decay = nn.Parameter(torch.empty(d))
        self.added_decay = LowRank(d, config.decay_rank, nn.Tanh)
        self.mixing = Mixing(d, config.mix_rank)

    def forward(
        self, x: Tensor, last: Tensor | None, memory: Tensor | None, resets: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """`x` (batch, time, d) after `last` (batch, d): result of the same shape, and the memory afterwards."""
        (before,) = token_shift(x, x.new_zeros(1, x.shape[-1]), last=last, resets=resets)
        for_decay, for_key, for_value, for_receptance, for_gate = self.mixing(x, before)
        precise = torch.promote_types(self.decay.dtype, torch.float32)
        decay = -torch.exp(self.decay.to(precise) + self.added_decay(for_decay).to(precise))
        mixtures = (for_receptance, for_key, for_value, for_gate)
        return self.remember(mixtures, decay.unflatten(-1, (-1, self.head_dim)), memory, resets)
