"""Causal depthwise convolution over time with bias and SiLU: how xLSTM and Mamba blocks see the last few tokens."""

import math

import torch
from torch import Tensor

from kernels import cpu
from kernels.causal_conv.reference import causal_conv_silu_reference
from kernels.dispatch import (
    Chosen,
    Implementation,
    cast_for_autocast,
    choose,
    expect_resets,
    expect_shape,
    modules,
    state_dtype,
)
from kernels.operator import Operator

__all__ = ["causal_conv_silu"]


def causal_conv_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    past: Tensor | None = None,
    resets: Tensor | None = None,
    implementation: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    """y (batch, time, channels) as x, and the inputs that the next tokens will see, (batch, taps - 1, channels).

    `weight` (channels, taps), its last column for the present token; `bias` (channels,); `past` as the second result,
    zeros where absent. Where `resets` (batch, time, bool) is true a document begins, which sees nothing before it.
    Under autocast everything is cast; sums are float32. Raises ValueError for shapes that do not fit,
    ImplementationError for an implementation that cannot run.
    """
    name = "causal_conv_silu"
    if x.ndim != 3:
        raise ValueError(f"{name}: x has shape {tuple(x.shape)}, expected (batch, time, channels)")
    batch, time, channels = x.shape
    lag = weight.shape[-1] - 1
    expect_shape(name, "weight", weight, (channels, lag + 1), "(channels, taps)")
    expect_shape(name, "bias", bias, (channels,), "(channels,)")
    if time == 0:
        raise ValueError(f"{name}: the sequence is empty, expected at least one token")
    if past is None:
        past = x.new_zeros(batch, lag, channels)
    expect_shape(name, "past", past, (batch, lag, channels), "(batch, taps - 1, channels)")
    expect_resets(name, resets, batch, time)
    documents = None if resets is None else resets.cumsum(1, dtype=torch.int32)
    x, weight, bias, past = cast_for_autocast(x, weight, bias, past)
    chosen = choose(name, implementation, x, cpu_obstacle=lambda: cpu.obstacle(x, weight, bias, past))
    if chosen == "reference":
        y = causal_conv_silu_reference(x, weight, bias, past, documents)
    else:
        y, _ = _causal_conv_silu(x, weight, bias, past, documents, chosen)
    tail = torch.cat((past.to(x.dtype), x[:, -lag:]), dim=1)[:, -lag:]
    if documents is not None:
        numbers = torch.cat((documents.new_zeros(batch, lag), documents[:, -lag:]), dim=1)[:, -lag:]
        tail = tail.masked_fill((numbers != documents[:, -1:])[..., None], 0.0)
    return y, tail


def _results(x: Tensor, implementation: Chosen) -> tuple[Tensor, Tensor]:
    pre = x.new_empty(0) if implementation == "triton" else x.new_empty(x.shape, dtype=state_dtype(x))
    return x.new_empty(x.shape), pre


def _flops(x: tuple[int, ...], weight: tuple[int, ...]) -> int:
    """A multiplication and an addition per tap; the SiLU counts as nothing. Backward the same for x, and for weight."""
    return 2 * math.prod(x) * weight[1]


# `documents` int32 (batch, time): 0 is the past's. `pre` is what the implementation keeps for its backward.
_causal_conv_silu = Operator[tuple[Tensor, Tensor]](
    "causal_conv_silu",
    "(Tensor x, Tensor weight, Tensor bias, Tensor past, Tensor? documents, str implementation)"
    " -> (Tensor y, Tensor pre)",
    backward="(grad_y, x, weight, bias, past, documents, pre, implementation) -> (x, weight, bias, past)",
    modules=modules(__name__, torch="torch_shifted", numba="numba_conv", triton="triton_conv"),
    results=_results,
    flops=_flops,
)
