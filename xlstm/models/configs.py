"""What defines a model: one frozen dataclass per family, and nothing that is not needed to build its weights.

Imports neither torch nor pydantic: planning and fitting read configurations without building models. Each class carries
`family` as its discriminator; `ModelConfig` is their union. Invalid dimensions raise ValueError naming the field.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, get_args

from xlstm.models.config_base import Blocks, require, round_up
from xlstm.models.linear_configs import (
    GatedDeltaNetConfig,
    GLAConfig,
    HGRN2Config,
    HGRNConfig,
    Mamba2Config,
    RetNetConfig,
    RWKV5Config,
    RWKV6Config,
    RWKV7Config,
)
from xlstm.models.long_convolution_configs import H3Config, HyenaConfig


@dataclass(frozen=True, kw_only=True)
class XLSTMConfig(Blocks):
    """xLSTM[a:b] of arXiv 2405.04517: pre-up-projection mLSTM and post-up-projection sLSTM blocks.

    The defaults are the paper's models; the other values are its ablations (Tables 2, 8 and following).
    """

    slstm_at: tuple[int, ...] = ()
    """Blocks with the vector memory of the sLSTM; all others have the matrix memory of the mLSTM."""
    num_heads: int = 4
    mlstm_block: Literal["pre-up", "post-up"] = "pre-up"
    """`post-up`: the cell at width d with dense q, k, v, then a feed-forward layer with squared ReLU."""
    input_gate: Literal["input", "bias", "none"] = "input"
    """The mLSTM's input gate. `input`: a linear map of the input; `bias`: learnt, alike for all; `none`: one."""
    forget_gate: Literal["input", "bias", "fixed", "none"] = "input"
    """The mLSTM's forget gate, as `input_gate`; `fixed`: biases from 3 to 6 over the heads, not learnt."""
    input_gate_activation: Literal["exponential", "sigmoid"] = "exponential"
    """`sigmoid`: mLSTMsig of arXiv 2503.14376."""
    normalizer: bool = True
    """Whether the mLSTM divides by max(|n·q|, 1)."""
    convolution: bool = True
    """Whether queries, keys (mLSTM) and input and forget gates (sLSTM) see the causal convolution of four tokens."""
    slstm_convolution: bool = True
    """Whether those of the sLSTM do, where `convolution` holds; the paper leaves it out on formal languages."""
    slstm_initialization: Literal["power-law", "uniform"] = "power-law"
    """The sLSTM's recurrent weights and biases at first. `power-law`: weights zero, forget biases from +5 to -7;
    `uniform`: all within 1/sqrt(d), as an LSTM's, the `standard` of the authors' code."""
    learnable_skip: bool = True
    """Whether the mLSTM cell's input is added to its output, with a weight per channel."""
    slstm_gates: Literal["headwise", "dense"] = "headwise"
    """Input weights of the sLSTM: block-diagonal by head, or full matrices."""
    slstm_feedforward_factor: float = 1.3
    """Width of the sLSTM blocks' feed-forward layer over d, before rounding up to a multiple of 64."""
    recurrent_gradient_clip: float | None = None
    """Largest element of the gradient through the sLSTM's recurrent weights; the paper's text says 10."""
    family: Literal["xlstm"] = "xlstm"

    def __post_init__(self) -> None:
        require(self.embedding_dim % self.num_heads == 0, "embedding_dim must be a multiple of num_heads")
        only_slstm = len(self.slstm_at) >= self.num_blocks
        require(
            only_slstm or self.mlstm_block != "pre-up" or self.embedding_dim % 2 == 0,
            "embedding_dim must be even: the pre-up-projection block maps 2 d channels in blocks of four",
        )
        require(all(0 <= b < self.num_blocks for b in self.slstm_at), "slstm_at must name blocks of the model")
        require(
            list(self.slstm_at) == sorted(set(self.slstm_at)), "slstm_at must name each block once, in ascending order"
        )
        require(
            self.input_gate != "none" or self.input_gate_activation == "exponential",
            "input_gate none is always one, which only the exponential activation can be",
        )
        require(self.slstm_feedforward_factor > 0, "slstm_feedforward_factor must be positive")
        clip = self.recurrent_gradient_clip
        require(clip is None or clip > 0, "recurrent_gradient_clip must be positive, or null for none")

    @property
    def slstm_has_convolution(self) -> bool:
        """Whether the sLSTM blocks have one."""
        return self.convolution and self.slstm_convolution

    @property
    def slstm_feedforward_dim(self) -> int:
        """Width of the sLSTM blocks' gated feed-forward layer, a multiple of 64."""
        return round_up(self.slstm_feedforward_factor * self.embedding_dim, 64)


@dataclass(frozen=True, kw_only=True)
class XLSTMLargeConfig(Blocks):
    """The block of xLSTM-7B (arXiv 2503.13427): mLSTM at width d with soft-capped gates, RMSNorm, SwiGLU.

    Queries and keys have half the width of values; the feed-forward layer 2.667 d, rounded up to a multiple of 64.
    """

    num_heads: int
    gate_soft_cap: float = 15.0
    """Bound c of the gates' pre-activations: c tanh(x / c)."""
    logit_soft_cap: float = 30.0
    """Bound of the logits, likewise."""
    family: Literal["xlstm-large"] = "xlstm-large"

    def __post_init__(self) -> None:
        require(self.embedding_dim % (2 * self.num_heads) == 0, "embedding_dim must be a multiple of twice num_heads")
        require(self.gate_soft_cap > 0 and self.logit_soft_cap > 0, "soft caps must be positive")

    @property
    def key_dim(self) -> int:
        """Channels of all queries, and of all keys."""
        return self.embedding_dim // 2

    @property
    def feedforward_dim(self) -> int:
        """Width of SwiGLU."""
        return round_up(2.667 * self.embedding_dim, 64)


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(Blocks):
    """Llama: RMSNorm, rotary positions, multi-head attention, SwiGLU of width 8/3 d rounded up to 64; no biases."""

    num_heads: int
    rope_theta: float = 10_000.0
    family: Literal["llama"] = "llama"

    def __post_init__(self) -> None:
        require(self.embedding_dim % self.num_heads == 0, "embedding_dim must be a multiple of num_heads")
        require((self.embedding_dim // self.num_heads) % 2 == 0, "the head dimension must be even (rotary positions)")

    @property
    def feedforward_dim(self) -> int:
        """Width of SwiGLU: 8/3 d, rounded up to a multiple of 64."""
        return round_up(8 * self.embedding_dim / 3, 64)


@dataclass(frozen=True, kw_only=True)
class GPTConfig(Blocks):
    """GPT-3-style: LayerNorm, learned positions, multi-head attention, GELU of width 4 d, biases, tied embedding."""

    num_heads: int
    context_length: int
    family: Literal["gpt"] = "gpt"

    def __post_init__(self) -> None:
        require(self.embedding_dim % self.num_heads == 0, "embedding_dim must be a multiple of num_heads")
        require(self.context_length > 0, "context_length must be positive (one learned position per token)")


@dataclass(frozen=True, kw_only=True)
class MambaConfig(Blocks):
    """Mamba: selective state spaces in 2 d channels after a convolution of four taps; step sizes of rank d / 16."""

    state_dim: int = 16
    family: Literal["mamba"] = "mamba"

    def __post_init__(self) -> None:
        require(self.state_dim > 0, "state_dim must be positive")

    @property
    def inner_dim(self) -> int:
        """Channels of convolution and scan."""
        return 2 * self.embedding_dim

    @property
    def delta_rank(self) -> int:
        """Rank of the map from channels to step sizes."""
        return round_up(self.embedding_dim / 16, 1)


@dataclass(frozen=True, kw_only=True)
class RWKV4Config(Blocks):
    """RWKV-4: token shift, WKV with per-channel decay, channel mixing of width 4 d."""

    family: Literal["rwkv4"] = "rwkv4"


LSTMVariant: TypeAlias = Literal["vanilla", "residual", "up-projection"]


@dataclass(frozen=True, kw_only=True)
class LSTMConfig(Blocks):
    """The LSTM ladder of arXiv 2405.04517, Table 2: a plain stack; residual and pre-norm; and an up-projection."""

    variant: LSTMVariant = "up-projection"
    family: Literal["lstm"] = "lstm"

    def __post_init__(self) -> None:
        variants = get_args(LSTMVariant)
        require(self.variant in variants, f"variant must be one of {', '.join(variants)}, not {self.variant!r}")


@dataclass(frozen=True, kw_only=True)
class HybridConfig(Blocks):
    """Blocks of several families in turns: `gated-deltanet[3]+llama[1]` is three of one, then one of the other."""

    pattern: str
    """Families, each with the number of its blocks in a turn; the last turn may be cut short."""
    num_heads: tuple[int, ...] = ()
    """Heads of each family's blocks, in the pattern's order; none for those whose configurations name no heads."""
    family: Literal["hybrid"] = "hybrid"

    def __post_init__(self) -> None:
        self.parts()  # which refuses what a family refuses

    def parts(self) -> list[Any]:
        """The configuration of each family, as of a model of all blocks."""
        turns = hybrid_turns(self.pattern)
        heads = self.num_heads or (0,) * len(turns)
        require(len(heads) == len(turns), f"num_heads must be {len(turns)} numbers, one for each family of the pattern")
        common: dict[str, Any] = {name: getattr(self, name) for name in ("vocab_size", "embedding_dim", "num_blocks")}
        own: list[dict[str, Any]] = [{"num_heads": number} if number else {} for number in heads]
        return [FAMILIES[family](**common, **more) for (family, _), more in zip(turns, own, strict=True)]

    def order(self) -> list[int]:
        """Of each block the place of its family in the pattern."""
        turn = [index for index, (_, number) in enumerate(hybrid_turns(self.pattern)) for _ in range(number)]
        return [turn[block % len(turn)] for block in range(self.num_blocks)]


HYBRID_PARTS: Final = ("gated-deltanet", "gla", "llama", "mamba", "mamba2", "xlstm")
"""Families whose blocks may stand beside others'; `xlstm` is the mLSTM's block."""


def hybrid_turns(pattern: str) -> list[tuple[str, int]]:
    """`gated-deltanet[3]+llama[1]` to [(gated-deltanet, 3), (llama, 1)]. ValueError for what is no such pattern."""
    turns = []
    for part in pattern.split("+"):
        found = re.fullmatch(r"([a-z0-9-]+)\[([1-9]\d*)\]", part)
        if found is None or found[1] not in HYBRID_PARTS:
            raise ValueError(f"`{part}` of `{pattern}` is none of {', '.join(f'{name}[n]' for name in HYBRID_PARTS)}")
        turns.append((found[1], int(found[2])))
    families = [family for family, _ in turns]
    if len(families) < 2 or len(set(families)) < len(families):
        raise ValueError(f"`{pattern}` must name two families at least, and each once")
    return turns


ModelConfig: TypeAlias = (
    XLSTMConfig
    | XLSTMLargeConfig
    | LlamaConfig
    | GPTConfig
    | MambaConfig
    | RWKV4Config
    | LSTMConfig
    | GLAConfig
    | HGRN2Config
    | RWKV5Config
    | RWKV6Config
    | HGRNConfig
    | RetNetConfig
    | Mamba2Config
    | GatedDeltaNetConfig
    | RWKV7Config
    | H3Config
    | HyenaConfig
    | HybridConfig
)

FAMILIES: Final[Mapping[str, type[ModelConfig]]] = {cls.family: cls for cls in get_args(ModelConfig)}
"""The configuration class of each family."""
