"""The selective scan of Mamba (Gu & Dao 2023, arXiv 2312.00752): a linear recurrence with input-dependent gates."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from kernels import cpu
from kernels.dispatch import choose, expect_resets, expect_shape, state_dtype
from kernels.operator import operator
from kernels.selective_scan import torch_chunked
from kernels.selective_scan.reference import selective_scan_reference, zero_state

__all__ = ["selective_scan", "zero_state"]


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    initial_state: Tensor | None = None,
    resets: Tensor | None = None,
    implementation: str = "auto",
) -> tuple[Tensor, Tensor]:
    """h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t and y_t = <C_t, h_t>, for every channel.

    `u` and `delta` (positive step sizes) are (batch, time, channels), `A` (negative rates) is (channels, state_dim),
    `B` and `C` are (batch, time, state_dim), any lengths. `initial_state` is (batch, channels, state_dim), zeros where
    absent. Where `resets` (batch, time, bool) is true, the state is forgotten before the token. Returns y (batch, time,
    channels) in the dtype of `u`, and the final state, float32 (float64 for float64 `u`).

    `implementation` is as in `kernels.dispatch`. Raises ValueError for shapes that do not fit, ImplementationError for
    an implementation that cannot run.
    """
    name = "selective_scan"
    if u.ndim != 3:
        raise ValueError(f"{name}: u has shape {tuple(u.shape)}, expected (batch, time, channels)")
    if A.ndim != 2:
        raise ValueError(f"{name}: A has shape {tuple(A.shape)}, expected (channels, state_dim)")
    batch, time, channels = u.shape
    state_dim = A.shape[1]
    expect_shape(name, "delta", delta, (batch, time, channels), "(batch, time, channels)")
    expect_shape(name, "A", A, (channels, state_dim), "(channels, state_dim)")
    expect_shape(name, "B", B, (batch, time, state_dim), "(batch, time, state_dim)")
    expect_shape(name, "C", C, (batch, time, state_dim), "(batch, time, state_dim)")
    state = zero_state(u, A) if initial_state is None else initial_state.to(state_dtype(u))
    expect_shape(name, "initial_state", state, (batch, channels, state_dim), "(batch, channels, state_dim)")
    expect_resets(name, resets, batch, time)
    chosen = choose(name, implementation, u, lambda: _triton_obstacle(A), lambda: cpu.obstacle(u, delta, A, B, C))
    if time == 0:
        return torch.zeros_like(u), state
    if chosen == "reference":
        return selective_scan_reference(u, delta, A, B, C, state, resets)
    y, final_state, _ = _scan(u, delta, A, B, C, state, resets, chosen)
    return y, final_state


def _triton_obstacle(A: Tensor) -> str | None:
    from kernels.selective_scan import triton_scan

    return triton_scan.shape_obstacle(A)


@operator("selective_scan")
def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    resets: Tensor | None,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, final state, and the states between chunks that the backward starts from."""
    if implementation == "triton":
        from kernels.selective_scan import triton_scan

        return triton_scan.forward(u, delta, A, B, C, state, resets)
    if implementation == "numba":
        from kernels.selective_scan import numba_scan

        return numba_scan.forward(u, delta, A, B, C, state, resets)
    dtype = state.dtype
    operands = (u.to(dtype), delta.to(dtype), A.to(dtype), B.to(dtype), C.to(dtype), state)
    y, final_state, starts = torch_chunked.forward(*operands, resets)
    return y.to(u.dtype), final_state, starts


@_scan.register_fake
def _(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    resets: Tensor | None,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    if implementation == "triton":
        from kernels.selective_scan import triton_scan

        chunks = -(-u.shape[1] // triton_scan.BLOCK_TIME)
        starts = state.new_empty(u.shape[0], chunks, *A.shape)
    elif implementation == "numba":
        from kernels.selective_scan import numba_scan

        starts = state.new_empty(numba_scan.num_segments(u.shape[1]), u.shape[0], A.shape[1], A.shape[0])
    else:
        chunks = -(-u.shape[1] // torch_chunked.steps_per_chunk(u, A))
        starts = state.new_empty(chunks, u.shape[0], A.shape[1], A.shape[0])
    return torch.empty_like(u, memory_format=torch.contiguous_format), torch.empty_like(state), starts


@operator("selective_scan_backward")
def _scan_backward(
    grad_y: Tensor,
    grad_state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    resets: Tensor | None,
    starts: Tensor,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u, delta, A, B, C and the initial state."""
    inputs = (u, delta, A, B, C)
    if implementation == "triton":
        from kernels.selective_scan import triton_scan

        return triton_scan.backward(grad_y, grad_state, *inputs, resets, starts)
    if implementation == "numba":
        from kernels.selective_scan import numba_scan

        return numba_scan.backward(grad_y, grad_state, *inputs, resets, starts)
    dtype = starts.dtype
    operands = (grad_y.to(dtype), grad_state, u.to(dtype), delta.to(dtype), A.to(dtype), B.to(dtype), C.to(dtype))
    du, ddelta, dA, dB, dC, grad_initial = torch_chunked.backward(*operands, resets, starts)
    return du.to(u.dtype), ddelta.to(delta.dtype), dA.to(A.dtype), dB.to(B.dtype), dC.to(C.dtype), grad_initial


@_scan_backward.register_fake
def _(
    grad_y: Tensor,
    grad_state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    resets: Tensor | None,
    starts: Tensor,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    u, delta, A, B, C = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (u, delta, A, B, C))
    return u, delta, A, B, C, torch.empty_like(grad_state)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    u, delta, A, B, C, _, resets, ctx.implementation = inputs
    ctx.save_for_backward(u, delta, A, B, C, resets, output[2])
    ctx.mark_non_differentiable(output[2])


def _differentiate(ctx: Any, grad_y: Tensor, grad_state: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, resets, starts = ctx.saved_tensors
    return *_scan_backward(grad_y, grad_state, *tensors, resets, starts, ctx.implementation), None, None


_scan.register_autograd(_differentiate, keep=_keep_for_backward)


@register_flop_formula(torch.ops.scaling.selective_scan)
def selective_scan_flops(u_shape: Any, delta_shape: Any, A_shape: Any, *args: Any, **kwargs: Any) -> int:
    """Forward. Per number of the state and step: delta A and its exponential, a product with B, recurrence and read 4.

    Per channel and step: delta u.
    """
    batch, time, channels = u_shape
    return batch * time * channels * (7 * int(A_shape[1]) + 1)


@register_flop_formula(torch.ops.scaling.selective_scan_backward)
def selective_scan_backward_flops(
    grad_y: Any, grad_state: Any, u_shape: Any, delta_shape: Any, A_shape: Any, *args: Any, **kwargs: Any
) -> int:
    """Backward: twice the forward."""
    return 2 * selective_scan_flops(u_shape, delta_shape, A_shape)
