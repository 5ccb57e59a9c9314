"""RWKV-4 (Peng et al. 2023, arXiv 2305.13048): time mixing by WKV, channel mixing by a gated squared ReLU.

Per block: x + TimeMix(LayerNorm(x)), then x + ChannelMix(LayerNorm(x)); 13 d² + 11 d parameters. A LayerNorm follows
the embedding. Untied embedding and head.
"""

import math
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from kernels.squared_relu import squared_relu
from kernels.token_shift import token_shift
from kernels.wkv import WKVState, wkv
from xlstm.models.configs import RWKV4Config
from xlstm.models.language_model import LanguageModel

NORM_EPSILON = 1e-5


class BlockState(NamedTuple):
    """What a block remembers."""

    time_input: Tensor  # (batch, d): the last input of time mixing
    sums: WKVState
    channel_input: Tensor  # (batch, d): the last input of channel mixing


class RWKV4(LanguageModel):
    """Blocks of time mixing and channel mixing, with a LayerNorm behind the embedding."""

    embedding_norm: nn.LayerNorm

    def __init__(self, config: RWKV4Config) -> None:
        stem = {"embedding_norm": nn.LayerNorm(config.embedding_dim, eps=NORM_EPSILON)}
        norm = nn.LayerNorm(config.embedding_dim, eps=NORM_EPSILON)
        super().__init__(config, (Block(config) for _ in range(config.num_blocks)), norm, stem=stem)

    def embed(self, tokens: Tensor) -> Tensor:
        """The embedding of the tokens, normed."""
        return self.embedding_norm(self.embedding(tokens))

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Weight decay falls on all but biases, LayerNorms and the token embedding (xLSTM paper, appendix D.2)."""
        return not (name == "embedding.weight" or name.endswith(("bias", "norm.weight")))

    def initialize_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """The author's initial values: see the comments for each kind of parameter."""
        if name.endswith("norm.weight"):
            parameter.fill_(1.0)
        elif name.endswith("bias"):
            parameter.zero_()
        elif name == "embedding.weight":
            # Tiny: the LayerNorm behind it gives the scale, and the first steps move it freely.
            parameter.uniform_(-1e-4, 1e-4, generator=generator)
        elif name == "head.weight":
            orthogonal(parameter, 0.5, generator)
        else:
            index, _, leaf = name.removeprefix("blocks.").partition(".")
            self._initialize_in_block(int(index), leaf, parameter, generator)

    def _initialize_in_block(self, index: int, leaf: str, parameter: Tensor, generator: torch.Generator) -> None:
        depth = index / max(self.config.num_blocks - 1, 1)  # 0 in the first block to 1 in the last
        height = 1 - index / self.config.num_blocks  # 1 in the first block to almost 0
        d = self.config.embedding_dim
        channel = torch.arange(d) / d
        if leaf == "time_mix.decay":
            # From slow to fast forgetting over the channels, slower for longer in deeper blocks.
            position = torch.arange(d) / max(d - 1, 1)
            parameter.copy_(-5 + 8 * position ** (0.7 + 1.3 * depth))
        elif leaf == "time_mix.bonus":
            parameter.copy_(math.log(0.3) + 0.5 * ((torch.arange(d) + 1) % 3 - 1))
        elif leaf == "time_mix.shift_value":
            parameter.copy_(channel**height + 0.3 * depth)
        elif leaf == "time_mix.shift_receptance":
            parameter.copy_(channel ** (0.5 * height))
        elif "shift_" in leaf:
            parameter.copy_(channel**height)
        elif leaf in ("time_mix.value.weight", "channel_mix.key.weight"):
            orthogonal(parameter, 1.0, generator)
        else:
            # Keys, receptances and what enters the residual stream: the network starts as the identity.
            parameter.zero_()


class Block(nn.Module):
    """x + TimeMix(norm(x)), then x + ChannelMix(norm(x))."""

    def __init__(self, config: RWKV4Config) -> None:
        super().__init__()
        self.time_norm = nn.LayerNorm(config.embedding_dim, eps=NORM_EPSILON)
        self.time_mix = TimeMix(config.embedding_dim)
        self.channel_norm = nn.LayerNorm(config.embedding_dim, eps=NORM_EPSILON)
        self.channel_mix = ChannelMix(config.embedding_dim)

    def forward(self, x: Tensor, state: BlockState | None, resets: Tensor | None) -> tuple[Tensor, BlockState]:
        """`x` (batch, time, d) to the same shape, with what the block remembers afterwards."""
        time_input = self.time_norm(x)
        mixed, sums = self.time_mix(
            time_input, state.time_input if state else None, state.sums if state else None, resets
        )
        x = x + mixed
        channel_input = self.channel_norm(x)
        x = x + self.channel_mix(channel_input, state.channel_input if state else None, resets)
        return x, BlockState(time_input[:, -1], sums, channel_input[:, -1])


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


class ChannelMix(nn.Module):
    """A feed-forward layer with squared ReLU, gated by the receptance."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.shift_key = nn.Parameter(torch.empty(d))
        self.shift_receptance = nn.Parameter(torch.empty(d))
        self.key = nn.Linear(d, 4 * d, bias=False)
        self.receptance = nn.Linear(d, d, bias=False)
        self.value = nn.Linear(4 * d, d, bias=False)

    def forward(self, x: Tensor, last: Tensor | None, resets: Tensor | None) -> Tensor:
        """`x` (batch, time, d) after `last` (batch, d): result of the same shape."""
        shares = torch.stack((self.shift_key, self.shift_receptance))
        for_key, for_receptance = token_shift(x, shares, last=last, resets=resets)
        key = squared_relu(self.key(for_key))
        receptance = torch.sigmoid(self.receptance(for_receptance))
        return receptance * self.value(key)


def orthogonal(parameter: Tensor, scale: float, generator: torch.Generator) -> None:
    """Orthogonal, with the gain that keeps the scale where outputs outnumber inputs."""
    rows, columns = parameter.shape
    nn.init.orthogonal_(parameter, gain=scale * math.sqrt(max(rows / columns, 1.0)), generator=generator)
