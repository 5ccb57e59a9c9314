"""Causal depthwise convolution over time with bias and SiLU: how xLSTM and Mamba blocks see the last few tokens."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from kernels import cpu
from kernels.causal_conv.reference import causal_conv_silu_reference
from kernels.dispatch import Implementation, cast_for_autocast, choose, expect_resets, expect_shape, state_dtype
from kernels.operator import modules, operator

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


_module = modules(__name__, torch="torch_shifted", numba="numba_conv", triton="triton_conv")


@operator("causal_conv_silu")
def _causal_conv_silu(
    x: Tensor, weight: Tensor, bias: Tensor, past: Tensor, documents: Tensor | None, implementation: str
) -> tuple[Tensor, Tensor]:
    """y, and what the implementation keeps for its backward. `documents` int32 (batch, time): 0 is the past's."""
    y, pre = _module(implementation).forward(x, weight, bias, past, documents)
    return y, pre


@_causal_conv_silu.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, past: Tensor, documents: Tensor | None, implementation: str
) -> tuple[Tensor, Tensor]:
    kept = x.new_empty(0) if implementation == "triton" else x.new_empty(x.shape, dtype=state_dtype(x))
    return x.new_empty(x.shape), kept


@operator("causal_conv_silu_backward")
def _causal_conv_silu_backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    past: Tensor,
    documents: Tensor | None,
    pre: Tensor,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias and past."""
    grad_x, grad_weight, grad_bias, grad_past = _module(implementation).backward(
        grad_y, x, weight, bias, past, documents, pre
    )
    return grad_x, grad_weight, grad_bias, grad_past


@_causal_conv_silu_backward.register_fake
def _(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, past: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return tuple(t.new_empty(t.shape) for t in (x, weight, bias, past))  # type: ignore[return-value]


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.implementation = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad_y: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return *_causal_conv_silu_backward(grad_y, *ctx.saved_tensors, ctx.implementation), None, None


_causal_conv_silu.register_autograd(_differentiate, keep=_keep_for_backward)


@register_flop_formula(torch.ops.scaling.causal_conv_silu)
def causal_conv_silu_flops(x_shape: Any, weight_shape: Any, *args: Any, **kwargs: Any) -> int:
    """Forward: a multiplication and an addition per tap; the SiLU counts as nothing."""
    batch, time, channels = x_shape
    return 2 * int(weight_shape[1]) * batch * time * channels


@register_flop_formula(torch.ops.scaling.causal_conv_silu_backward)
def causal_conv_silu_backward_flops(grad_shape: Any, x_shape: Any, weight_shape: Any, *_: Any, **kwargs: Any) -> int:
    """Backward: the same for x, and for the weight."""
    return 2 * causal_conv_silu_flops(x_shape, weight_shape)
