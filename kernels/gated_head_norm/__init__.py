"""What follows an mLSTM cell (arXiv 2405.04517, figure 11): head-wise norm, learnable skip and output gate, as one."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from kernels import cpu
from kernels.dispatch import Implementation, choose, expect_shape, state_dtype
from kernels.gated_head_norm import torch_fused
from kernels.gated_head_norm.reference import gated_head_norm_reference
from kernels.operator import operator

__all__ = ["gated_head_norm"]


def gated_head_norm(
    h: Tensor,
    weight: Tensor,
    gate: Tensor,
    *,
    skipped: Tensor | None = None,
    skip: Tensor | None = None,
    eps: float = 1e-5,
    implementation: Implementation = "auto",
) -> Tensor:
    """(weight * norm(h) + skip * skipped) * silu(gate), (batch, time, channels) in the gate's dtype.

    `h` (batch, time, heads, head_dim), each head normed to mean 0 and variance 1; `weight` and `skip` (channels,) with
    channels = heads * head_dim; `gate` and `skipped` (batch, time, channels). `skip` and `skipped` come together or not
    at all. Computed in float32 at least, also under autocast. Raises ValueError for shapes that do not fit,
    ImplementationError for an implementation that cannot run.
    """
    name = "gated_head_norm"
    if h.ndim != 4:
        raise ValueError(f"{name}: h has shape {tuple(h.shape)}, expected (batch, time, heads, head_dim)")
    batch, time, heads, head_dim = h.shape
    channels = heads * head_dim
    expect_shape(name, "weight", weight, (channels,), "(heads * head_dim,)")
    expect_shape(name, "gate", gate, (batch, time, channels), "(batch, time, heads * head_dim)")
    if (skip is None) != (skipped is None):
        raise ValueError(f"{name}: one of skip and skipped is None, expected both or neither")
    if skip is not None and skipped is not None:
        expect_shape(name, "skip", skip, (channels,), "(heads * head_dim,)")
        expect_shape(name, "skipped", skipped, (batch, time, channels), "(batch, time, heads * head_dim)")
    operands = [t for t in (h, weight, gate, skipped, skip) if t is not None]
    chosen = choose(name, implementation, h, lambda: _triton_obstacle(h), lambda: cpu.obstacle(*operands))
    if chosen == "reference":
        return gated_head_norm_reference(h, weight, gate, skipped, skip, eps)
    return _gated_head_norm(h, weight, gate, skipped, skip, eps, chosen)[0]


def _triton_obstacle(h: Tensor) -> str | None:
    from kernels.gated_head_norm import triton_norm

    return triton_norm.shape_obstacle(h.shape[-1])


@operator("gated_head_norm")
def _gated_head_norm(
    h: Tensor,
    weight: Tensor,
    gate: Tensor,
    skipped: Tensor | None,
    skip: Tensor | None,
    eps: float,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The result, and what the implementation keeps for its backward: mean and reciprocal deviation, or nothing."""
    if implementation == "triton":
        from kernels.gated_head_norm import triton_norm

        return triton_norm.forward(h, weight, gate, skipped, skip, eps)
    if implementation == "numba":
        from kernels.gated_head_norm import numba_norm

        return numba_norm.forward(h, weight, gate, skipped, skip, eps)
    return torch_fused.forward(h, weight, gate, skipped, skip, eps)


@_gated_head_norm.register_fake
def _(h: Tensor, weight: Tensor, gate: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    shape, dtype = ((0,), h.dtype) if options[-1] == "triton" else ((*h.shape[:-1], 1), state_dtype(h))
    return gate.new_empty(gate.shape), h.new_empty(shape, dtype=dtype), h.new_empty(shape, dtype=dtype)


@operator("gated_head_norm_backward")
def _gated_head_norm_backward(
    grad_y: Tensor,
    h: Tensor,
    weight: Tensor,
    gate: Tensor,
    skipped: Tensor | None,
    skip: Tensor | None,
    mean: Tensor,
    deviation: Tensor,
    eps: float,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of h, weight, gate, skipped and skip; the last two are empty without a skip."""
    if implementation == "triton":
        from kernels.gated_head_norm import triton_norm

        return triton_norm.backward(grad_y, h, weight, gate, skipped, skip, eps)
    if implementation == "numba":
        from kernels.gated_head_norm import numba_norm

        return numba_norm.backward(grad_y, h, weight, gate, skipped, skip, mean, deviation)
    return torch_fused.backward(grad_y, h, weight, gate, skipped, skip, mean, deviation)


@_gated_head_norm_backward.register_fake
def _(
    grad_y: Tensor, h: Tensor, weight: Tensor, gate: Tensor, skipped: Tensor | None, skip: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    grad_skipped = gate.new_empty(0) if skipped is None else skipped.new_empty(skipped.shape)
    grad_skip = weight.new_empty(0) if skip is None else skip.new_empty(skip.shape)
    return h.new_empty(h.shape), weight.new_empty(weight.shape), gate.new_empty(gate.shape), grad_skipped, grad_skip


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, eps, implementation = inputs
    ctx.options = eps, implementation
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx: Any, grad_y: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    grads = list(_gated_head_norm_backward(grad_y, *tensors, *ctx.options))
    if tensors[4] is None:
        grads[3:] = [None, None]  # type: ignore[list-item]
    return *grads, None, None


_gated_head_norm.register_autograd(_differentiate, keep=_keep_for_backward)


@register_flop_formula([torch.ops.scaling.gated_head_norm, torch.ops.scaling.gated_head_norm_backward])
def gated_head_norm_flops(*args: Any, **kwargs: Any) -> int:
    """Norms and activations count as nothing, as everywhere."""
    return 0
