"""The sLSTM as torch.library operators, so that autograd, torch.compile, FSDP and FLOP counters see one node each.

All implementations return and read the same tensors: h, c and l of every step, and the activations.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from kernels.dispatch import state_dtype
from kernels.operator import operator
from kernels.slstm import torch_scan


@operator("slstm")
def slstm_op(
    gates: Tensor,
    recurrent: Tensor,
    h: Tensor,
    c: Tensor,
    n: Tensor,
    m: Tensor,
    resets: Tensor | None,
    gradient_clip: float | None,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """h (time, heads, batch, head_dim); final c, n, m (batch, heads, head_dim); c, l of every step; activations."""
    forward = torch_scan.forward
    if implementation == "triton":
        from kernels.slstm import triton_scan

        forward = triton_scan.forward
    elif implementation == "numba":
        from kernels.slstm import numba_scan

        forward = numba_scan.forward
    hs, cs, ls, active = forward(gates, recurrent, h, c, n, m, resets)
    last = _batch_first(cs[-1])
    return hs, last, torch.ones_like(last), _batch_first(ls[-1]), cs, ls, active


def _batch_first(part: Tensor) -> Tensor:
    return part.transpose(0, 1).clone(memory_format=torch.contiguous_format)


@slstm_op.register_fake
def _(
    gates: Tensor,
    recurrent: Tensor,
    h: Tensor,
    c: Tensor,
    n: Tensor,
    m: Tensor,
    resets: Tensor | None,
    gradient_clip: float | None,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, time, _, heads, head_dim = gates.shape
    every = gates.new_empty(time, heads, batch, head_dim, dtype=state_dtype(gates))
    last = every.new_empty(batch, heads, head_dim)
    active = every.new_empty(time, heads, batch, 5, head_dim)
    parts = (last, torch.empty_like(last), torch.empty_like(last))
    return every, *parts, torch.empty_like(every), torch.empty_like(every), active


@operator("slstm_backward")
def slstm_backward_op(
    grad_h: Tensor,
    grad_c: Tensor | None,
    grad_n: Tensor | None,
    recurrent: Tensor,
    h: Tensor,
    c: Tensor,
    n: Tensor,
    m: Tensor,
    resets: Tensor | None,
    hs: Tensor,
    cs: Tensor,
    ls: Tensor,
    active: Tensor,
    gradient_clip: float | None,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the gates, of the recurrent matrices, and of the initial h, c and n, in the states' dtype."""
    backward = torch_scan.backward
    if implementation == "triton":
        from kernels.slstm import triton_scan

        backward = triton_scan.backward
    elif implementation == "numba":
        from kernels.slstm import numba_scan

        backward = numba_scan.backward
    return backward(grad_h, grad_c, grad_n, recurrent, h, c, n, m, resets, hs, cs, ls, active, gradient_clip)


@slstm_backward_op.register_fake
def _(
    grad_h: Tensor,
    grad_c: Tensor | None,
    grad_n: Tensor | None,
    recurrent: Tensor,
    h: Tensor,
    c: Tensor,
    n: Tensor,
    m: Tensor,
    resets: Tensor | None,
    hs: Tensor,
    cs: Tensor,
    ls: Tensor,
    active: Tensor,
    gradient_clip: float | None,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    time, heads, batch, head_dim = hs.shape
    last = hs.new_empty(batch, heads, head_dim)
    return (
        hs.new_empty(batch, time, 4, heads, head_dim),
        hs.new_empty(4, heads, head_dim, head_dim),
        last,
        torch.empty_like(last),
        torch.empty_like(last),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    gates, recurrent, h, c, n, m, resets, gradient_clip, implementation = inputs
    hs, _, _, final_m, cs, ls, active = output
    ctx.mark_non_differentiable(final_m, cs, ls, active)
    ctx.save_for_backward(recurrent, h, c, n, m, resets, hs, cs, ls, active)
    ctx.options = (gradient_clip, implementation)
    ctx.gates_dtype = gates.dtype
    ctx.set_materialize_grads(False)


def _autograd_backward(ctx: Any, grad_h: Tensor | None, grad_c: Tensor | None, grad_n: Tensor | None, *_: Any) -> Any:
    recurrent, h, c, n, m, resets, hs, cs, ls, active = ctx.saved_tensors
    if grad_h is None:
        grad_h = torch.zeros_like(hs)
    grad_gates, grad_recurrent, *initial = slstm_backward_op(
        grad_h, grad_c, grad_n, recurrent, h, c, n, m, resets, hs, cs, ls, active, *ctx.options
    )
    initial = [grad.to(start.dtype) for grad, start in zip(initial, (h, c, n), strict=True)]
    return grad_gates.to(ctx.gates_dtype), grad_recurrent.to(recurrent.dtype), *initial, None, None, None, None


slstm_op.register_autograd(_autograd_backward, keep=_setup_context)


@register_flop_formula(torch.ops.scaling.slstm)
def slstm_flops(gates: Any, recurrent: Any, *args: Any, **kwargs: Any) -> int:
    """The recurrent products: four head_dim x head_dim matrices per head and token."""
    batch, time, _, heads, head_dim = gates
    return 8 * int(batch * time * heads * head_dim * head_dim)


@register_flop_formula(torch.ops.scaling.slstm_backward)
def slstm_backward_flops(grad_h: Any, grad_c: Any, grad_n: Any, recurrent: Any, *args: Any, **kwargs: Any) -> int:
    """The recurrent products for the gradients of the state, and those for the matrices."""
    time, heads, batch, head_dim = grad_h
    return 16 * int(batch * time * heads * head_dim * head_dim)
