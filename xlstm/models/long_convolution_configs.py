"""Configurations of the families with a convolution as long as the sequence, as `xlstm.models.configs`."""

from dataclasses import dataclass
from typing import Literal

from xlstm.models.config_base import Blocks, require


@dataclass(frozen=True, kw_only=True)
class H3Config(Blocks):
    """H3: products around two state space models, one that shifts and a diagonal one; GELU of width 4 d, biases."""

    state_dim: int = 64
    """Tokens that the shift remembers; the diagonal model has half as many complex states per channel."""
    family: Literal["h3"] = "h3"

    def __post_init__(self) -> None:
        require(self.state_dim % 2 == 0, "state_dim must be even: complex states come in conjugate pairs")


@dataclass(frozen=True, kw_only=True)
class HyenaConfig(Blocks):
    """Hyena: convolutions whose filters a small network makes of positions, between products; GELU of width 4 d."""

    context_length: int
    """Positions for which there are filters: features and windows are functions of a position's share of them."""
    order: int = 3
    """Products, as the authors' code counts them: one more than there are long convolutions."""
    num_features: int = 17
    """What a filter's network reads of a position: its share of the context, and sines and cosines."""
    filter_dim: int = 64
    """Width of a filter's network."""
    family: Literal["hyena"] = "hyena"

    def __post_init__(self) -> None:
        require(self.context_length > 1, "context_length must be at least 2 (a feature is a position's share of it)")
        require(self.order > 1, "order must be at least 2: with one product there is no long convolution")
        require(self.num_features % 2 == 1, "num_features must be odd: the position's share, cosines and sines")
