"""What a part of a model costs: the terms every family's closed form is made of."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Sequence:
    """Over which sequence the costs per token are averaged, and how sequences are mixed."""

    length: int
    """Tokens that one sequence has."""
    chunk: int
    """Chunk of the chunkwise-parallel mLSTM, in tokens."""
    causal: bool
    """Whether only pairs of tokens that may see each other are counted, or whole squares."""

    def pairs(self, window: int | None = None) -> float:
        """Pairs (query, key) per token, mean over the sequence; `window` cuts it into chunks that mix alone."""
        window = self.length if window is None else min(window, self.length)
        chunks, rest = divmod(self.length, window)
        return (chunks * self._pairs(window) + self._pairs(rest)) / self.length

    def _pairs(self, length: int) -> float:
        return length * (length + 1) / 2 if self.causal else float(length * length)


@dataclass(frozen=True)
class Cost:
    """Parameters, and forward FLOPs per token. A multiplication and an addition are two FLOPs."""

    parameters: int = 0
    products: float = 0.0
    """FLOPs in matrix products, among them those of attention: what `torch.utils.flop_counter` sees."""
    recurrence: float = 0.0
    """FLOPs in convolutions over time, scans, gates and normalisers of recurrences: elementwise, counted by hand."""
    matrices: int = 0
    """Of the parameters, those of whole matrices, which Muon moves."""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.parameters + other.parameters,
            self.products + other.products,
            self.recurrence + other.recurrence,
            self.matrices + other.matrices,
        )

    @property
    def flops(self) -> float:
        """Forward FLOPs per token of both kinds."""
        return self.products + self.recurrence


@dataclass(frozen=True)
class Saved:
    """Elements per token that a block saves between its forward and its backward pass, beside its input."""

    computed: float
    """Elements in the dtype of the computation: float32, or bfloat16 in mixed precision."""
    float32: float = 0.0
    """Elements in float32 whatever the precision: recurrences and their states."""
    input: float = 0.0
    """Elements of the block's input, in the computation's dtype: all that is saved of a block that is recomputed."""
    states: float = 0.0
    """Elements of the states between the chunks of an mLSTM, in float32."""
    half_states: float = 0.0
    """Of those that its kernels for GPUs keep instead where they compute in bfloat16, in that dtype."""

    def __add__(self, other: "Saved") -> "Saved":
        mine, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
        return Saved(*(one + another for one, another in zip(mine, theirs, strict=True)))

    def bytes_per_token(self, itemsize: int, on_gpu: bool = False) -> float:
        """Bytes, the input's included."""
        states = 2 * self.half_states if on_gpu and itemsize == 2 else 4 * self.states
        return (self.computed + self.input) * itemsize + self.float32 * 4 + states


def total(costs: Iterable[Cost]) -> Cost:
    """The sum."""
    return sum(costs, Cost())


def linear(inputs: int, outputs: int, *, bias: bool = False, blocks: int = 1) -> Cost:
    """A linear map; `blocks` diagonal blocks of equal size make up the matrix."""
    weights = inputs * outputs // blocks
    return Cost(weights + (outputs if bias else 0), 2 * weights, matrices=weights if blocks == 1 else 0)


def norm(channels: int) -> Cost:
    """A norm with one weight per channel; its FLOPs, as those of activations and residuals, count as nothing."""
    return Cost(channels)


def swiglu_block(mixer: Cost, d: int, width: int) -> Cost:
    """A mixer and SwiGLU, each behind a norm."""
    return norm(d) + mixer + norm(d) + linear(d, 2 * width) + linear(width, d)


def swiglu_block_saved(mixer: Saved, d: int, width: int) -> Saved:
    """Two normed inputs and the sum between mixer and SwiGLU; gate, up and product; in float32 the norms' scales."""
    return Saved(3 * d + 3 * width, 2, input=d) + mixer


def gelu_block(mixer: Cost, d: int) -> Cost:
    """A mixer and an MLP of width 4 d, with biases, each behind a norm with weight and bias."""
    return norm(2 * d) + mixer + norm(2 * d) + linear(d, 4 * d, bias=True) + linear(4 * d, d, bias=True)


def causal_conv(channels: int, taps: int = 4, *, bias: bool = True) -> Cost:
    """A depthwise convolution over time."""
    return Cost(channels * (taps + bias), recurrence=2 * taps * channels)
