"""Token shift (Peng et al. 2023, arXiv 2305.13048, section 3.1): mixtures of each token with the one before it."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from kernels import cpu
from kernels.dispatch import Implementation, cast_for_autocast, choose, expect_resets, expect_shape
from kernels.operator import modules, operator
from kernels.token_shift.reference import token_shift_reference

__all__ = ["token_shift"]


def token_shift(
    x: Tensor,
    shares: Tensor,
    *,
    last: Tensor | None = None,
    resets: Tensor | None = None,
    implementation: Implementation = "auto",
) -> list[Tensor]:
    """s x_t + (1 - s) x_{t-1} for each row s of `shares` (mixtures, channels); as `x` (batch, time, channels) each.

    `last` (batch, channels) is the token before the first, zeros where absent. Where `resets` (batch, time, bool) is
    true a document begins: zeros come before its first token. Under autocast everything is cast; computed in float32 at
    least. Raises ValueError for shapes that do not fit, ImplementationError for an implementation that cannot run.
    """
    name = "token_shift"
    if x.ndim != 3:
        raise ValueError(f"{name}: x has shape {tuple(x.shape)}, expected (batch, time, channels)")
    batch, time, channels = x.shape
    if time == 0:
        raise ValueError(f"{name}: the sequence is empty, expected at least one token")
    expect_shape(name, "shares", shares, (shares.shape[0], channels), "(mixtures, channels)")
    if last is None:
        last = x.new_zeros(batch, channels)
    expect_shape(name, "last", last, (batch, channels), "(batch, channels)")
    expect_resets(name, resets, batch, time)
    x, shares, last = cast_for_autocast(x, shares, last)
    last, shares = last.to(x.dtype), shares.to(x.dtype)
    chosen = choose(name, implementation, x, cpu_obstacle=lambda: cpu.obstacle(x, shares, last))
    if chosen == "reference":
        return token_shift_reference(x, shares, last, resets)
    mixtures: list[Tensor] = _token_shift(x, shares, last, resets, chosen)
    return mixtures


_module = modules(__name__, torch="torch_fused", numba="numba_shift", triton="triton_shift")


@operator("token_shift")
def _token_shift(x: Tensor, shares: Tensor, last: Tensor, resets: Tensor | None, implementation: str) -> list[Tensor]:
    mixtures: list[Tensor] = _module(implementation).forward(x, shares, last, resets)
    return mixtures


@_token_shift.register_fake
def _(x: Tensor, shares: Tensor, last: Tensor, resets: Tensor | None, implementation: str) -> list[Tensor]:
    return [x.new_empty(x.shape) for _ in range(shares.shape[0])]


@operator("token_shift_backward")
def _token_shift_backward(
    grads: list[Tensor], x: Tensor, shares: Tensor, last: Tensor, resets: Tensor | None, implementation: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, shares and last."""
    grad_x, grad_shares, grad_last = _module(implementation).backward(grads, x, shares, last, resets)
    return grad_x, grad_shares, grad_last


@_token_shift_backward.register_fake
def _(
    grads: list[Tensor], x: Tensor, shares: Tensor, last: Tensor, resets: Tensor | None, implementation: str
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), shares.new_empty(shares.shape), last.new_empty(last.shape)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    *tensors, ctx.implementation = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, grads: list[Tensor]) -> tuple[Tensor | None, ...]:
    return *_token_shift_backward(grads, *ctx.saved_tensors, ctx.implementation), None, None


_token_shift.register_autograd(_differentiate, keep=_keep_for_backward)


@register_flop_formula([torch.ops.scaling.token_shift, torch.ops.scaling.token_shift_backward])
def token_shift_flops(*args: Any, **kwargs: Any) -> int:
    """Mixtures count as nothing, as norms."""
    return 0
