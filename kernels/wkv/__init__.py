"""RWKV-4's WKV (Peng et al. 2023, arXiv 2305.13048): attention as a decayed average, channel by channel."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from kernels import cpu
from kernels.dispatch import choose, expect_resets, expect_shape, state_dtype
from kernels.operator import operator
from kernels.wkv import torch_chunked
from kernels.wkv.reference import WKVState, wkv_reference, zero_state

__all__ = ["WKVState", "wkv", "zero_state"]


def wkv(
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    bonus: Tensor,
    *,
    initial_state: WKVState | None = None,
    resets: Tensor | None = None,
    implementation: str = "auto",
) -> tuple[Tensor, WKVState]:
    """The average of all values so far, each weighted by exp(key), the present one by exp(key + bonus).

    y_t = (a_{t-1} + exp(bonus + k_t) v_t) / (b_{t-1} + exp(bonus + k_t)), with a_t = exp(decay) a_{t-1} + exp(k_t) v_t
    and b_t = exp(decay) b_{t-1} + exp(k_t). `k` and `v` are (batch, time, channels) of any length, `decay` (negative)
    and `bonus` are (channels,). Where `resets` (batch, time, bool) is true, the sums are forgotten before the token.
    Returns y (batch, time, channels) in the dtype of `v`, and the final state, float32 (float64 for float64 `k`).

    `implementation` is as in `kernels.dispatch`. Raises ValueError for shapes that do not fit, ImplementationError for
    an implementation that cannot run.
    """
    name = "wkv"
    if k.ndim != 3:
        raise ValueError(f"{name}: k has shape {tuple(k.shape)}, expected (batch, time, channels)")
    batch, time, channels = k.shape
    expect_shape(name, "v", v, (batch, time, channels), "(batch, time, channels)")
    expect_shape(name, "decay", decay, (channels,), "(channels,)")
    expect_shape(name, "bonus", bonus, (channels,), "(channels,)")
    state = zero_state(k) if initial_state is None else initial_state
    state = WKVState(*(tensor.to(state_dtype(k)) for tensor in state))
    for field, tensor in zip(WKVState._fields, state, strict=True):
        expect_shape(name, f"initial_state.{field}", tensor, (batch, channels), "(batch, channels)")
    expect_resets(name, resets, batch, time)
    chosen = choose(name, implementation, k, cpu_obstacle=lambda: cpu.obstacle(k, v, decay, bonus))
    if time == 0:
        return torch.zeros_like(v), state
    if chosen == "reference":
        return wkv_reference(k, v, decay, bonus, state, resets)
    stacked = torch.stack((state.a, state.b, state.m.detach()))
    y, final_state, _ = _wkv(k, v, decay, bonus, stacked, resets, chosen)
    return y, WKVState(final_state[0], final_state[1], final_state[2].detach())


@operator("wkv")
def _wkv(
    k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor, state: Tensor, resets: Tensor | None, implementation: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, final state (3, batch, channels), and the states between chunks that the backward starts from."""
    if implementation == "triton":
        from kernels.wkv import triton_scan

        return triton_scan.forward(k, v, decay, bonus, state, resets)
    if implementation == "numba":
        from kernels.wkv import numba_scan

        return numba_scan.forward(k, v, decay, bonus, state, resets)
    dtype = state.dtype
    y, final_state, starts = torch_chunked.forward(
        k.to(dtype), v.to(dtype), decay.to(dtype), bonus.to(dtype), state, resets
    )
    return y.to(v.dtype), final_state, starts


@_wkv.register_fake
def _(
    k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor, state: Tensor, resets: Tensor | None, implementation: str
) -> tuple[Tensor, Tensor, Tensor]:
    if implementation == "triton":
        from kernels.wkv import triton_scan

        count = -(-k.shape[1] // triton_scan.BLOCK_TIME)
    elif implementation == "numba":
        from kernels.wkv import numba_scan

        count = numba_scan.num_segments(k.shape[1])
    else:
        count = torch_chunked.num_segments(k)
    y = torch.empty_like(v, memory_format=torch.contiguous_format)
    return y, torch.empty_like(state), state.new_empty(count, *state.shape)


@operator("wkv_backward")
def _wkv_backward(
    grad_y: Tensor,
    grad_state: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    bonus: Tensor,
    resets: Tensor | None,
    starts: Tensor,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of k, v, decay, bonus and the initial state."""
    if implementation == "triton":
        from kernels.wkv import triton_scan

        return triton_scan.backward(grad_y, grad_state, k, v, decay, bonus, resets, starts)
    if implementation == "numba":
        from kernels.wkv import numba_scan

        return numba_scan.backward(grad_y, grad_state, k, v, decay, bonus, resets, starts)
    dtype = starts.dtype
    operands = (grad_y.to(dtype), grad_state, k.to(dtype), v.to(dtype), decay.to(dtype), bonus.to(dtype))
    dk, dv, ddecay, dbonus, grad_initial = torch_chunked.backward(*operands, resets, starts)
    return dk.to(k.dtype), dv.to(v.dtype), ddecay.to(decay.dtype), dbonus.to(bonus.dtype), grad_initial


@_wkv_backward.register_fake
def _(
    grad_y: Tensor,
    grad_state: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    bonus: Tensor,
    resets: Tensor | None,
    starts: Tensor,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    k, v, decay, bonus = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (k, v, decay, bonus))
    return k, v, decay, bonus, torch.empty_like(grad_state)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    k, v, decay, bonus, _, resets, ctx.implementation = inputs
    ctx.save_for_backward(k, v, decay, bonus, resets, output[2])
    ctx.mark_non_differentiable(output[2])


def _differentiate(ctx: Any, grad_y: Tensor, grad_state: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, resets, starts = ctx.saved_tensors
    return *_wkv_backward(grad_y, grad_state, *tensors, resets, starts, ctx.implementation), None, None


_wkv.register_autograd(_differentiate, keep=_keep_for_backward)


@register_flop_formula(torch.ops.scaling.wkv)
def wkv_flops(k_shape: Any, *args: Any, **kwargs: Any) -> int:
    """Forward, per channel and step (Peng et al. 2023, appendix D): 12 for the output, 11 for the sums.

    Output: k + u, the maximum, two differences, two exponentials, numerator 3, denominator 2, quotient. Sums: decayed
    scale, maximum, two differences, two exponentials, numerator 3, denominator 2.
    """
    batch, time, channels = k_shape
    return 23 * int(batch * time * channels)


@register_flop_formula(torch.ops.scaling.wkv_backward)
def wkv_backward_flops(grad_y: Any, grad_state: Any, k_shape: Any, *args: Any, **kwargs: Any) -> int:
    """Backward: twice the forward."""
    return 2 * wkv_flops(k_shape)
