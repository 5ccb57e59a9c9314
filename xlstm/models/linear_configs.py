"""Configurations of the families with a linear recurrence, as `xlstm.models.configs`."""

from dataclasses import dataclass
from typing import Literal

from xlstm.models.config_base import Blocks, require, round_up, swiglu_width


@dataclass(frozen=True, kw_only=True)
class SwiGLU(Blocks):
    """With the feed-forward layer of most of these families."""

    @property
    def feedforward_dim(self) -> int:
        """Width of SwiGLU: 8/3 d, up to a multiple of 256."""
        return swiglu_width(self.embedding_dim, 4)


@dataclass(frozen=True, kw_only=True)
class Heads(Blocks):
    """With heads of so many channels, as many as the width has."""

    head_dim: int = 64

    def __post_init__(self) -> None:
        require(self.embedding_dim % self.head_dim == 0, "embedding_dim must be a multiple of head_dim")


@dataclass(frozen=True, kw_only=True)
class GLAConfig(SwiGLU):
    """Gated linear attention: keys of half the width, decays of rank 16 per key channel, SwiGLU of width 8/3 d."""

    num_heads: int = 4
    decay_rank: int = 16
    """Rank of the map from channels to decays."""
    family: Literal["gla"] = "gla"

    def __post_init__(self) -> None:
        require(self.embedding_dim % (2 * self.num_heads) == 0, "embedding_dim must be a multiple of twice num_heads")

    @property
    def key_dim(self) -> int:
        """Channels of all queries, and of all keys."""
        return self.embedding_dim // 2


@dataclass(frozen=True, kw_only=True)
class HGRN2Config(Heads, SwiGLU):
    """HGRN2: linear attention; what forget gates, bounded from below, let in are its keys; SwiGLU of width 8/3 d."""

    head_dim: int = 128
    family: Literal["hgrn2"] = "hgrn2"


@dataclass(frozen=True, kw_only=True)
class RWKV5Config(Heads):
    """RWKV-5, Eagle: a matrix memory per head with constant decays, token shift, channel mixing of width 4 d."""

    family: Literal["rwkv5"] = "rwkv5"

    @property
    def channel_dim(self) -> int:
        """Width of channel mixing: that of the xLSTM paper's counts; the author's own is 3.5 d."""
        return 4 * self.embedding_dim


@dataclass(frozen=True, kw_only=True)
class RWKV6Config(Heads):
    """RWKV-6, Finch: RWKV-5 with decays and token shifts that depend on the token; channel mixing of width 3.5 d."""

    mix_rank: int = 32
    """Rank of what a token adds to each of the five mixtures."""
    decay_rank: int = 64
    """Rank of what a token adds to the decays."""
    family: Literal["rwkv6"] = "rwkv6"

    @property
    def channel_dim(self) -> int:
        """Width of channel mixing."""
        return round_up(3.5 * self.embedding_dim, 32)


@dataclass(frozen=True, kw_only=True)
class HGRNConfig(SwiGLU):
    """HGRN: an element-wise linear recurrence whose forget gates keep more at least in deep blocks; SwiGLU as HGRN2."""

    family: Literal["hgrn"] = "hgrn"


@dataclass(frozen=True, kw_only=True)
class RetNetConfig(Heads):
    """RetNet: linear attention with a constant decay per head, values of twice the width, SwiGLU of width 4/3 d."""

    head_dim: int = 256
    """Of queries and keys; values have twice as many channels."""
    rope_theta: float = 10_000.0
    family: Literal["retnet"] = "retnet"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.head_dim % 2 == 0, "head_dim must be even (rotary positions)")

    @property
    def num_heads(self) -> int:
        """Heads of head_dim channels."""
        return self.embedding_dim // self.head_dim

    @property
    def feedforward_dim(self) -> int:
        """Width of SwiGLU."""
        return swiglu_width(self.embedding_dim, 2)


@dataclass(frozen=True, kw_only=True)
class Mamba2Config(Blocks):
    """Mamba-2: a matrix memory per head with a decay by the token, in 2 d channels after a convolution of four taps."""

    state_dim: int = 128
    head_dim: int = 64
    family: Literal["mamba2"] = "mamba2"

    def __post_init__(self) -> None:
        require(self.inner_dim % self.head_dim == 0, "2 embedding_dim must be a multiple of head_dim")

    @property
    def inner_dim(self) -> int:
        """Channels of the memory's values."""
        return 2 * self.embedding_dim

    @property
    def num_heads(self) -> int:
        """Heads of head_dim channels."""
        return self.inner_dim // self.head_dim


@dataclass(frozen=True, kw_only=True)
class GatedDeltaNetConfig(SwiGLU):
    """Gated DeltaNet: the delta rule after a decay per head, keys of 3/4 d, values of 3/2 d, SwiGLU of width 8/3 d."""

    num_heads: int
    family: Literal["gated-deltanet"] = "gated-deltanet"

    def __post_init__(self) -> None:
        require(
            self.embedding_dim % 4 == 0 and self.key_dim % self.num_heads == 0,
            "3/4 of embedding_dim must be a multiple of num_heads",
        )

    @property
    def key_dim(self) -> int:
        """Channels of all queries, and of all keys."""
        return 3 * self.embedding_dim // 4

    @property
    def value_dim(self) -> int:
        """Channels of all values."""
        return 2 * self.key_dim


@dataclass(frozen=True, kw_only=True)
class RWKV7Config(Heads):
    """RWKV-7, Goose: the generalised delta rule with a decay per channel, token shift, channel mixing of width 4 d."""

    family: Literal["rwkv7"] = "rwkv7"

    def _rank(self, factor: float) -> int:
        """The author's ranks: that multiple of the width's root, to the nearest multiple of 32, and at least 32."""
        return max(32, round(factor * self.embedding_dim**0.5 / 32) * 32)

    @property
    def decay_rank(self) -> int:
        """Rank of what a token adds to the decays, and of what it adds to the removals."""
        return self._rank(2.5)

    @property
    def value_rank(self) -> int:
        """Rank of what mixes a block's values with the first block's."""
        return self._rank(1.7)

    @property
    def gate_rank(self) -> int:
        """Rank of the output gate."""
        return self._rank(5.0)
