"""RMSNorm (Zhang & Sennrich 2019, arXiv 1910.07467)."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from kernels import cpu
from kernels.dispatch import Implementation, choose, expect_shape, state_dtype
from kernels.operator import modules, operator
from kernels.rms_norm.reference import rms_norm_reference

__all__ = ["rms_norm"]


def rms_norm(x: Tensor, weight: Tensor, *, eps: float = 1e-6, implementation: Implementation = "auto") -> Tensor:
    """y = x / sqrt(mean(x²) + eps) * weight over the last dimension, as `x` (…, channels); `weight` (channels,).

    Computed in float32 at least, also under autocast. Raises ValueError for shapes that do not fit,
    ImplementationError for an implementation that cannot run.
    """
    name = "rms_norm"
    expect_shape(name, "weight", weight, (x.shape[-1],), "(channels,)")
    chosen = choose(name, implementation, x, lambda: _triton_obstacle(x), lambda: cpu.obstacle(x, weight))
    if chosen == "reference":
        return rms_norm_reference(x, weight, eps)
    return _rms_norm(x, weight, eps, chosen)[0]


def _triton_obstacle(x: Tensor) -> str | None:
    from kernels.rms_norm import triton_norm

    return triton_norm.shape_obstacle(x.shape[-1])


_module = modules(__name__, torch="torch_fused", numba="numba_norm", triton="triton_norm")


@operator("rms_norm")
def _rms_norm(x: Tensor, weight: Tensor, eps: float, implementation: str) -> tuple[Tensor, Tensor]:
    """y, and the factor of each row (…)."""
    y, scale = _module(implementation).forward(x, weight, eps)
    return y, scale


@_rms_norm.register_fake
def _(x: Tensor, weight: Tensor, eps: float, implementation: str) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=state_dtype(x))


@operator("rms_norm_backward")
def _rms_norm_backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, scale: Tensor, implementation: str
) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the weight."""
    grad_x, grad_weight = _module(implementation).backward(grad_y, x, weight, scale)
    return grad_x, grad_weight


@_rms_norm_backward.register_fake
def _(grad_y: Tensor, x: Tensor, weight: Tensor, scale: Tensor, implementation: str) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, ctx.implementation = inputs
    ctx.save_for_backward(x, weight, output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad_y: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return *_rms_norm_backward(grad_y, *ctx.saved_tensors, ctx.implementation), None, None


_rms_norm.register_autograd(_differentiate, keep=_keep_for_backward)


@register_flop_formula([torch.ops.scaling.rms_norm, torch.ops.scaling.rms_norm_backward])
def rms_norm_flops(*args: Any, **kwargs: Any) -> int:
    """Norms count as nothing, as everywhere."""
    return 0
