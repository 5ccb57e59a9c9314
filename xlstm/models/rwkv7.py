"""RWKV-7, "Goose" (Peng et al. 2025, arXiv 2503.14456): time mixing by the generalised delta rule.

Per block, with ranks w of decays and removals, v of values, g of the gate: 12 d² + (4 w + 2 g + 18) d parameters, and
from the second block on (2 v + 1) d. Values of later blocks mix with the first block's. A LayerNorm follows the
embedding. Untied embedding and head.
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.delta_rule import delta_rule
from kernels.squared_relu import squared_relu
from kernels.token_shift import token_shift
from xlstm.models.linear_configs import RWKV7Config
from xlstm.models.rwkv_block import HEAD_NORM_EPSILON, Block, LowRank, Place, RWKVBlocks, orthogonal
from xlstm.models.swiglu_block import at_least_float32

SHIFTS = ("receptance", "decay", "key", "value", "removal", "gate")
"""Of the six mixtures, as the author orders them."""
SHIFT_POWERS = (0.2, 0.9, 0.7, 0.7, 0.9, 0.2)
FASTEST = math.exp(-0.5)
"""The largest rate: no channel keeps less than exp(-0.6065) = 0.545 of itself at a token."""


class RWKV7(RWKVBlocks):
    """Blocks of time mixing by the delta rule, and channel mixing."""

    def __init__(self, config: RWKV7Config) -> None:
        d = config.embedding_dim
        super().__init__(config, lambda index: Block(d, TimeMix(config, mixes_values=index > 0), ChannelMix(d)))

    def _initialize_in_block(self, place: Place, leaf: str, parameter: Tensor, generator: torch.Generator) -> None:
        """The author's initial values; matrices as in RWKV-6."""
        channel = torch.arange(place.channels) / place.channels
        centred = place.position - 0.5
        within = torch.linspace(-1, 1, self.config.head_dim).repeat(place.channels // self.config.head_dim)
        zigzag = within * within.abs()
        if leaf == "time_mix.shifts":
            parameter.copy_(torch.stack([channel ** (power * place.height) for power in SHIFT_POWERS]))
        elif leaf == "channel_mix.shift":
            parameter.copy_(channel ** (place.height**4))
        elif leaf == "time_mix.decay":
            parameter.copy_(-5.5 + 6 * place.position ** (1 + place.depth**0.3) + 2.5 * zigzag)
        elif leaf == "time_mix.removal":
            parameter.copy_(-0.19 + 0.3 * zigzag + 0.4 * centred)
        elif leaf == "time_mix.value_share":
            parameter.copy_(0.73 - 0.4 * centred)
        elif leaf == "time_mix.removal_key":
            parameter.copy_(0.71 - 0.1 * centred)
        elif leaf == "time_mix.written_key":
            parameter.fill_(1.02)
        elif leaf == "time_mix.bonus":
            parameter.fill_(-0.04)
        elif leaf.endswith("enter"):
            parameter.zero_()
        elif leaf.endswith("leave"):
            orthogonal(parameter, 0.1, generator)
        else:
            super()._initialize_in_block(place, leaf, parameter, generator)


class TimeMix(nn.Module):
    """The delta rule of what this token and the one before say, with a bonus for the token itself, normed and gated."""

    keeps_float32: ClassVar[bool] = True
    """Decays and what else is a vector stay float32 in mixed precision, as the author keeps them."""

    def __init__(self, config: RWKV7Config, mixes_values: bool) -> None:
        super().__init__()
        d, self.head_dim = config.embedding_dim, config.head_dim
        self.shifts = nn.Parameter(torch.empty(len(SHIFTS), d))
        self.decay = nn.Parameter(torch.empty(d))
        self.removal = nn.Parameter(torch.empty(d))
        self.value_share = nn.Parameter(torch.empty(d)) if mixes_values else None
        self.removal_key = nn.Parameter(torch.empty(d))
        self.written_key = nn.Parameter(torch.empty(d))
        self.bonus = nn.Parameter(torch.empty(d // self.head_dim, self.head_dim))
        self.added_decay = LowRank(d, config.decay_rank, nn.Tanh)
        self.added_removal = LowRank(d, config.decay_rank)
        self.added_share = LowRank(d, config.value_rank) if mixes_values else None
        self.gate = LowRank(d, config.gate_rank, nn.Sigmoid)
        self.receptance = nn.Linear(d, d, bias=False)
        self.key = nn.Linear(d, d, bias=False)
        self.value = nn.Linear(d, d, bias=False)
        self.head_norm = nn.GroupNorm(d // self.head_dim, d, eps=HEAD_NORM_EPSILON)
        self.out = nn.Linear(d, d, bias=False)

    def forward(
        self, x: Tensor, last: Tensor | None, memory: Tensor | None, resets: Tensor | None, first: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`x` (batch, time, d) after `last` (batch, d): the result, the memory, and the `first` block's values."""
        mixtures = token_shift(x, self.shifts, last=last, resets=resets)
        for_receptance, for_decay, for_key, for_value, for_removal, for_gate = mixtures
        decay = -FASTEST * torch.sigmoid(at_least_float32(self.decay) + at_least_float32(self.added_decay(for_decay)))
        removal = torch.sigmoid(at_least_float32(self.removal) + at_least_float32(self.added_removal(for_removal)))
        value = self.value(for_value)
        if self.value_share is None or self.added_share is None or first is None:
            first = value
        else:
            share = at_least_float32(self.value_share) + at_least_float32(self.added_share(for_value))
            value = torch.lerp(value, first, torch.sigmoid(share).to(value.dtype))
        key = at_least_float32(self.key(for_key))
        removed = F.normalize(self._by_head(key * self.removal_key), dim=-1)
        written = (key * (1 + (removal - 1) * self.written_key)).to(x.dtype)
        receptance, written, value_by_head = (
            self._by_head(one) for one in (self.receptance(for_receptance), written, value)
        )
        o, memory = delta_rule(
            receptance, written, value_by_head, -removed.to(x.dtype), (removed * self._by_head(removal)).to(x.dtype),
            self._by_head(decay), initial_state=memory, resets=resets,
        )  # fmt: skip
        own = (receptance * written * self.bonus).sum(-1, keepdim=True).to(x.dtype) * value_by_head
        normed = self.head_norm(o.flatten(2).flatten(0, 1)).view_as(x)
        return self.out((normed + own.flatten(2)) * self.gate(for_gate)), memory, first

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim))


class ChannelMix(nn.Module):
    """A feed-forward layer with squared ReLU."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.empty(d))
        self.key = nn.Linear(d, 4 * d, bias=False)
        self.value = nn.Linear(4 * d, d, bias=False)

    def forward(self, x: Tensor, last: Tensor | None, resets: Tensor | None) -> Tensor:
        """`x` (batch, time, d) after `last` (batch, d): result of the same shape."""
        (mixed,) = token_shift(x, self.shift[None], last=last, resets=resets)
        return self.value(squared_relu(self.key(mixed)))
