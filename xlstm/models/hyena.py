"""Hyena (Poli et al. 2023, arXiv 2302.10866): products and long convolutions in turns, instead of attention.

Per block, of order n, with f features and filters' networks of width w: (n + 10) d² + (5 n + (w + 1) (n - 1) + 15) d
+ (f + 2 w + 4) w + context f parameters. There is no finite state: what a block remembers of a document is every
stage's input, over which the convolutions are made again. Filters end with the context they were made for.
"""

import math
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kernels.long_convolution import long_convolution
from xlstm.models.dropout import Dropout
from xlstm.models.gelu_block import GELUBlocks
from xlstm.models.history import Positioned, check_room, joined, latest, positions_of
from xlstm.models.long_convolution_configs import HyenaConfig
from xlstm.models.swiglu_block import at_least_float32

TAPS = 3
"""Of the short convolution after the input's projection."""

SHARPNESS = 14.0
"""What sines of filters' networks are multiplied by within, at first: as for the Pile; the code's default is 1."""

FASTEST, SLOWEST = 0.3, 1.5
"""Shares of the context after which the windows of the first and last channels have fallen to 1 %."""


class MixerState(NamedTuple):
    """What a mixer remembers of a document."""

    short: Tensor  # (batch, 2, (order + 1) d): the last inputs of the short convolution
    stages: tuple[Tensor, ...]  # (batch, tokens so far, d): all inputs of each long one


class Hyena(GELUBlocks):
    """Blocks of the Hyena operator and GELU."""

    elementwise: ClassVar[tuple[str, ...]] = ("_weight", "_weights", ".features", ".biases", ".skip")

    def __init__(self, config: HyenaConfig) -> None:
        super().__init__(config, Mixer)

    def apply_blocks(
        self, x: Tensor, state: Positioned | None, resets: Tensor | None, keep_state: bool, dropout: Dropout | None
    ) -> tuple[Tensor, Positioned | None]:
        """As in the base class. ValueError for a document longer than the context that the filters are made for."""
        positions = positions_of(x, state.next_position if state else None, resets)
        seen = state.blocks[0].stages[0].shape[1] if state else 0
        check_room(positions, seen + x.shape[1], self.config.context_length, "hyena's filters")
        x, mixers = super().apply_blocks(x, state.blocks if state else None, resets, keep_state, dropout)
        return x, Positioned(mixers, positions[:, -1] + 1) if keep_state else None

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Weight decay falls on the matrices, but for the embedding and what filters are made of."""
        return super().decays(name, parameter) and ".filters." not in name

    def initialize_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """As the language models of the authors; the short convolution torch's own, uniform within 1/√3."""
        leaf = name.rpartition(".")[2]
        if leaf == "features":
            parameter.copy_(position_features(*parameter.shape))
        elif leaf == "frequency":
            parameter.fill_(SHARPNESS)
        elif leaf == "skip":
            parameter.normal_(generator=generator)
        elif leaf.startswith("short_"):
            parameter.uniform_(-(TAPS**-0.5), TAPS**-0.5, generator=generator)
        elif leaf.endswith("biases"):
            parameter.zero_()
        else:
            super().initialize_parameter(name, parameter, generator)
            if name.endswith("mixer.out.weight"):
                parameter.mul_((2 * self.config.num_blocks) ** -0.5)


def position_features(context_length: int, count: int) -> Tensor:
    """Of each position its share of the context, and cosines and negative sines of it (context_length, count)."""
    turns = torch.arange(context_length)[:, None] * torch.linspace(1e-4, count // 2 - 1, count // 2)
    angles = 2 * math.pi * turns / context_length
    share = torch.linspace(0, 1, context_length)[:, None]
    return torch.cat((share, angles.cos(), -angles.sin()), dim=1)


class Mixer(nn.Module):
    """v <- filter * (v x_i) for each x_i but one, and v x_0 at last: all of them one map of the input, convolved."""

    def __init__(self, config: HyenaConfig) -> None:
        super().__init__()
        d, self.order, self.context_length = config.embedding_dim, config.order, config.context_length
        self.project = nn.Linear(d, (self.order + 1) * d)
        self.short_weight = nn.Parameter(torch.empty(TAPS, (self.order + 1) * d))
        self.short_bias = nn.Parameter(torch.empty((self.order + 1) * d))
        self.filters = Filters(config)
        self.out = nn.Linear(d, d)

    def forward(
        self, x: Tensor, state: MixerState | None, resets: Tensor | None, keep: bool
    ) -> tuple[Tensor, MixerState | None]:
        """`x` (batch, time, d) to the same shape, and what is remembered, where it is to be kept."""
        time, d = x.shape[1:]
        projected = self.project(x)
        before = state.short if state else projected.new_zeros(x.shape[0], TAPS - 1, projected.shape[-1])
        window, window_resets = joined(before, projected, resets)
        *gates, v = self._short(window, window_resets).split(d, dim=-1)
        seen = state.stages[0].shape[1] if state else 0
        filters = checkpoint(
            self.filters, min(seen + time, self.context_length), use_reentrant=False, preserve_rng_state=False
        )
        stages = []
        for index, gate in enumerate(reversed(gates[1:])):
            inputs, long_resets = joined(state.stages[index] if state else None, v * gate, resets)
            v = long_convolution(inputs, filters[:, index], resets=long_resets)[:, seen:]
            if keep:
                stages.append(latest(inputs, long_resets, self.context_length - 1))
        after = MixerState(latest(window, window_resets, TAPS - 1), tuple(stages)) if keep else None
        return self.out(v * gates[0]), after

    def _short(self, window: Tensor, resets: Tensor | None) -> Tensor:
        """The sum over the taps, of the tokens of one document, without those before the first."""
        document = None if resets is None else resets.cumsum(1)
        y = self.short_bias + self.short_weight[0] * window[:, TAPS - 1 :]
        for lag in range(1, TAPS):
            earlier = slice(TAPS - 1 - lag, window.shape[1] - lag)
            read = window[:, earlier]
            if document is not None:
                read = read.masked_fill((document[:, earlier] != document[:, TAPS - 1 :])[..., None], 0.0)
            y = y + self.short_weight[lag] * read
        return y


class Filters(nn.Module):
    """What a network of sines makes of positions, in windows that fall exponentially; and each input's own weight."""

    keeps_float32: ClassVar[bool] = True

    def __init__(self, config: HyenaConfig) -> None:
        super().__init__()
        d, width, self.stages = config.embedding_dim, config.filter_dim, config.order - 1
        self.features = nn.Parameter(torch.empty(config.context_length, config.num_features))
        self.frequency = nn.Parameter(torch.empty(width))
        self.input_weight = nn.Parameter(torch.empty(width, config.num_features))
        self.hidden_weights = nn.Parameter(torch.empty(2, width, width))
        self.output_weight = nn.Parameter(torch.empty(self.stages * d, width))
        self.biases = nn.Parameter(torch.empty(3, width))
        self.skip = nn.Parameter(torch.empty(self.stages, d))

    def forward(self, count: int) -> Tensor:
        """The first `count` taps of every stage, (count, order - 1, d), float32 at least."""
        positions: Any = at_least_float32(self.features[:count])
        weights = (self.input_weight, *self.hidden_weights)
        with torch.autocast(positions.device.type, enabled=False):
            for weight, bias in zip(weights, self.biases, strict=True):
                inner = F.linear(positions, at_least_float32(weight), at_least_float32(bias))
                positions = torch.sin(at_least_float32(self.frequency) * inner)
            taps = F.linear(positions, at_least_float32(self.output_weight))
        share = torch.arange(count, device=taps.device, dtype=taps.dtype) / (len(self.features) - 1)
        fastest, slowest = (math.log(100) / after for after in (FASTEST, SLOWEST))
        rates = torch.linspace(slowest, fastest, taps.shape[1], device=taps.device, dtype=taps.dtype)
        taps = (taps * torch.exp(-share[:, None] * rates)).unflatten(1, (self.stages, -1))
        return torch.cat((taps[:1] + at_least_float32(self.skip), taps[1:]))
