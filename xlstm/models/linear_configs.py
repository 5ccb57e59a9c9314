"""Configurations of the families with a linear recurrence, as `xlstm.models.configs`."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from xlstm.models.config_base import CLOSED, Ends, require, round_up, swiglu_width


@dataclass(frozen=True, kw_only=True)
class GLAConfig(Ends):
    """Gated linear attention: keys of half the width, decays of rank 16 per key channel, SwiGLU of width 8/3 d."""

    __pydantic_config__: ClassVar = CLOSED

    embedding_dim: int
    num_blocks: int
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

    @property
    def feedforward_dim(self) -> int:
        """Width of SwiGLU."""
        return swiglu_width(self.embedding_dim, 4)


@dataclass(frozen=True, kw_only=True)
class HGRN2Config(Ends):
    """HGRN2: linear attention; what forget gates, bounded from below, let in are its keys; SwiGLU of width 8/3 d."""

    __pydantic_config__: ClassVar = CLOSED

    embedding_dim: int
    num_blocks: int
    head_dim: int = 128
    family: Literal["hgrn2"] = "hgrn2"

    def __post_init__(self) -> None:
        require(self.embedding_dim % self.head_dim == 0, "embedding_dim must be a multiple of head_dim")

    @property
    def feedforward_dim(self) -> int:
        """Width of SwiGLU."""
        return swiglu_width(self.embedding_dim, 4)


@dataclass(frozen=True, kw_only=True)
class RWKV5Config(Ends):
    """RWKV-5, Eagle: a matrix memory per head with constant decays, token shift, channel mixing of width 4 d."""

    __pydantic_config__: ClassVar = CLOSED

    embedding_dim: int
    num_blocks: int
    head_dim: int = 64
    family: Literal["rwkv5"] = "rwkv5"

    def __post_init__(self) -> None:
        require(self.embedding_dim % self.head_dim == 0, "embedding_dim must be a multiple of head_dim")

    @property
    def channel_dim(self) -> int:
        """Width of channel mixing: that of the xLSTM paper's counts; the author's own is 3.5 d."""
        return 4 * self.embedding_dim


@dataclass(frozen=True, kw_only=True)
class RWKV6Config(Ends):
    """RWKV-6, Finch: RWKV-5 with decays and token shifts that depend on the token; channel mixing of width 3.5 d."""

    __pydantic_config__: ClassVar = CLOSED

    embedding_dim: int
    num_blocks: int
    head_dim: int = 64
    mix_rank: int = 32
    """Rank of what a token adds to each of the five mixtures."""
    decay_rank: int = 64
    """Rank of what a token adds to the decays."""
    family: Literal["rwkv6"] = "rwkv6"

    def __post_init__(self) -> None:
        require(self.embedding_dim % self.head_dim == 0, "embedding_dim must be a multiple of head_dim")

    @property
    def channel_dim(self) -> int:
        """Width of channel mixing."""
        return round_up(3.5 * self.embedding_dim, 32)


@dataclass(frozen=True, kw_only=True)
class HGRNConfig(Ends):
    """HGRN: an element-wise linear recurrence whose forget gates keep more at least in deep blocks; SwiGLU as HGRN2."""

    __pydantic_config__: ClassVar = CLOSED

    embedding_dim: int
    num_blocks: int
    family: Literal["hgrn"] = "hgrn"

    @property
    def feedforward_dim(self) -> int:
        """Width of SwiGLU."""
        return swiglu_width(self.embedding_dim, 4)


@dataclass(frozen=True, kw_only=True)
class RetNetConfig(Ends):
    """RetNet: linear attention with a constant decay per head, values of twice the width, SwiGLU of width 4/3 d."""

    __pydantic_config__: ClassVar = CLOSED

    embedding_dim: int
    num_blocks: int
    head_dim: int = 256
    """Of queries and keys; values have twice as many channels."""
    rope_theta: float = 10_000.0
    family: Literal["retnet"] = "retnet"

    def __post_init__(self) -> None:
        require(self.embedding_dim % self.head_dim == 0, "embedding_dim must be a multiple of head_dim")
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
class Mamba2Config(Ends):
    """Mamba-2: a matrix memory per head with a decay by the token, in 2 d channels after a convolution of four taps."""

    __pydantic_config__: ClassVar = CLOSED

    embedding_dim: int
    num_blocks: int
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
