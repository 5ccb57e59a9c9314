"""The block around the time mixing of every RWKV: x + TimeMix(LayerNorm(x)), then x + ChannelMix(LayerNorm(x)).

A LayerNorm follows the embedding. Embedding and head are untied.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from kernels.squared_relu import squared_relu
from kernels.token_shift import token_shift
from xlstm.models.language_model import LanguageModel

NORM_EPSILON = 1e-5
HEAD_NORM_EPSILON = 64e-5


class BlockState(NamedTuple):
    """What a block remembers."""

    time_input: Tensor  # (batch, d): the last input of time mixing
    memory: Any  # (batch, heads, head_dim, head_dim); of RWKV-4 its sums
    channel_input: Tensor  # (batch, d): the last input of channel mixing


class RWKVBlocks(LanguageModel):
    """Blocks of time mixing and channel mixing, of which a version gives each by its number."""

    embedding_norm: nn.LayerNorm
    elementwise: ClassVar[tuple[str, ...]] = ("time_mix.bonus", "time_mix.decay", "mixing.base", "time_mix.shifts")
    inputs_first: ClassVar[tuple[str, ...]] = (".enter", ".leave")

    def __init__(self, config: Any, block: Callable[[int], nn.Module]) -> None:
        stem = {"embedding_norm": nn.LayerNorm(config.embedding_dim, eps=NORM_EPSILON)}
        norm = nn.LayerNorm(config.embedding_dim, eps=NORM_EPSILON)
        super().__init__(config, map(block, range(config.num_blocks)), norm, stem=stem)

    def embed(self, tokens: Tensor) -> Tensor:
        """The embedding of the tokens, normed."""
        return self.embedding_norm(self.embedding(tokens))

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Weight decay falls on the linear maps and the head; the author spares decays, bonuses, mixes, low ranks."""
        return parameter.ndim >= 2 and name.endswith(".weight") and name != "embedding.weight"

    def initialize_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """The author's initial values: see the comments for each kind of parameter."""
        if name == "embedding.weight":
            # Tiny: the LayerNorm behind it gives the scale, and the first steps move it freely.
            parameter.uniform_(-1e-4, 1e-4, generator=generator)
        elif name == "head.weight":
            orthogonal(parameter, 0.5, generator)
        elif name.endswith("head_norm.weight"):
            block = int(name.split(".")[1])
            parameter.fill_(((block + 1) / self.config.num_blocks) ** 0.7)
        elif name.endswith("norm.weight"):
            parameter.fill_(1.0)
        elif name.endswith("bias"):
            parameter.zero_()
        else:
            index, _, leaf = name.removeprefix("blocks.").partition(".")
            self._initialize_in_block(Place(int(index), self.config), leaf, parameter, generator)

    def _initialize_in_block(self, place: "Place", leaf: str, parameter: Tensor, generator: torch.Generator) -> None:
        if leaf == "time_mix.decay":
            # From slow to fast forgetting over the channels, slower for longer in deeper blocks.
            parameter.copy_((-6 + 5 * place.position ** (0.7 + 1.3 * place.depth)).view_as(parameter))
        elif leaf == "time_mix.bonus":
            thirds = 0.1 * ((torch.arange(place.channels) + 1) % 3 - 1)
            parameter.copy_((place.depth * (1 - place.position) + thirds).view_as(parameter))
        elif "shift_" in leaf:
            parameter.copy_(place.share(leaf))
        elif leaf in ("time_mix.receptance.weight", "time_mix.value.weight", "channel_mix.key.weight"):
            orthogonal(parameter, 1.0, generator)
        elif leaf in ("time_mix.key.weight", "time_mix.gate.weight"):
            orthogonal(parameter, 0.1, generator)
        else:
            # Receptances of channel mixing and what enters the residual stream: the network starts as the identity.
            parameter.zero_()


class Place:
    """Where a block stands among the others, and its channels beside each other: what initial values depend on."""

    def __init__(self, index: int, config: Any) -> None:
        self.channels: int = config.embedding_dim
        self.depth = index / max(config.num_blocks - 1, 1)  # 0 in the first block to 1 in the last
        self.height = 1 - index / config.num_blocks  # 1 in the first block to almost 0
        self.position = torch.arange(self.channels) / max(self.channels - 1, 1)  # 0 to 1 over the channels

    def share(self, leaf: str) -> Tensor:
        """The share of the token itself in one of the mixtures with the token before it."""
        channel = torch.arange(self.channels) / self.channels
        if leaf == "time_mix.shift_value":
            return channel**self.height + 0.3 * self.depth
        halved = leaf in ("time_mix.shift_receptance", "time_mix.shift_gate")
        return channel ** (self.height / 2 if halved else self.height)


class Block(nn.Module):
    """x + TimeMix(norm(x)), then x + ChannelMix(norm(x))."""

    def __init__(self, d: int, time_mix: nn.Module, channel_mix: nn.Module) -> None:
        super().__init__()
        self.time_norm = nn.LayerNorm(d, eps=NORM_EPSILON)
        self.time_mix = time_mix
        self.channel_norm = nn.LayerNorm(d, eps=NORM_EPSILON)
        self.channel_mix = channel_mix

    def forward(
        self, x: Tensor, state: BlockState | None, resets: Tensor | None, *others: Any
    ) -> tuple[Tensor, BlockState, *tuple[Any, ...]]:
        """`x` (batch, time, d) to the same shape, what the block remembers, and what else time mixing gives."""
        time_input = self.time_norm(x)
        mixed, memory, *further = self.time_mix(
            time_input, state.time_input if state else None, state.memory if state else None, resets, *others
        )
        x = x + mixed
        channel_input = self.channel_norm(x)
        x = x + self.channel_mix(channel_input, state.channel_input if state else None, resets)
        return x, BlockState(time_input[:, -1], memory, channel_input[:, -1]), *further


class ChannelMix(nn.Module):
    """A feed-forward layer with squared ReLU, gated by the receptance."""

    def __init__(self, d: int, width: int) -> None:
        super().__init__()
        self.shift_key = nn.Parameter(torch.empty(d))
        self.shift_receptance = nn.Parameter(torch.empty(d))
        self.key = nn.Linear(d, width, bias=False)
        self.receptance = nn.Linear(d, d, bias=False)
        self.value = nn.Linear(width, d, bias=False)

    def forward(self, x: Tensor, last: Tensor | None, resets: Tensor | None) -> Tensor:
        """`x` (batch, time, d) after `last` (batch, d): result of the same shape."""
        shares = torch.stack((self.shift_key, self.shift_receptance))
        for_key, for_receptance = token_shift(x, shares, last=last, resets=resets)
        return torch.sigmoid(self.receptance(for_receptance)) * self.value(squared_relu(self.key(for_key)))


class LowRank(nn.Module):
    """f(x A) B."""

    def __init__(self, d: int, rank: int, activation: Any = nn.Identity) -> None:
        super().__init__()
        self.enter = nn.Parameter(torch.empty(d, rank))
        self.leave = nn.Parameter(torch.empty(rank, d))
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        """(…, d) to the same shape."""
        return self.activation(x @ self.enter.to(x.dtype)) @ self.leave.to(x.dtype)


def orthogonal(parameter: Tensor, scale: float, generator: torch.Generator) -> None:
    """Orthogonal, with the gain that keeps the scale where outputs outnumber inputs."""
    rows, columns = parameter.shape
    nn.init.orthogonal_(parameter, gain=scale * math.sqrt(max(rows / columns, 1.0)), generator=generator)
