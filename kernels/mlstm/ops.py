"""The mLSTM as torch.library operators, so that autograd, torch.compile, FSDP and FLOP counters see one node each.

`scaling::mlstm` and `scaling::mlstm_backward` take `implementation` (torch, numba or triton), which all return and read
the same saved tensors: the states before each chunk, and s, the denominators before their maximum.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from kernels import cpu
from kernels.dispatch import state_dtype
from kernels.mlstm import torch_chunkwise
from kernels.operator import operator


@operator("mlstm")
def mlstm_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    C: Tensor | None,
    n: Tensor | None,
    m: Tensor | None,
    resets: Tensor | None,
    input_gate: str,
    normalize: bool,
    eps: float,
    chunk: int,
    save_states: bool,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """h, final C, n, m; states before each chunk (chunks, batch * heads, …); s (batch * heads, time)."""
    forward = torch_chunkwise.forward
    if implementation == "triton":
        from kernels.mlstm import triton_chunkwise

        forward = triton_chunkwise.forward
    elif implementation == "numba":
        from kernels.mlstm import numba_chunkwise

        forward = numba_chunkwise.forward
    return forward(q, k, v, i, f, C, n, m, resets, input_gate, normalize, eps, chunk, save_states)


@mlstm_op.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    C: Tensor | None,
    n: Tensor | None,
    m: Tensor | None,
    resets: Tensor | None,
    input_gate: str,
    normalize: bool,
    eps: float,
    chunk: int,
    save_states: bool,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, heads, time, key_dim = q.shape
    value_dim, dtype, rows = v.shape[-1], state_dtype(v), q.shape[0] * q.shape[1]
    chunks = -(-time // chunk) if save_states else 0
    return (
        v.new_empty(batch, heads, time, value_dim),
        v.new_empty(batch, heads, key_dim, value_dim, dtype=dtype),
        v.new_empty(batch, heads, key_dim, dtype=dtype),
        v.new_empty(batch, heads, dtype=dtype),
        v.new_empty(chunks, rows, key_dim, value_dim, dtype=v.dtype if implementation == "triton" else dtype),
        v.new_empty(chunks, rows, key_dim, dtype=dtype),
        v.new_empty(rows, time if normalize else 0, dtype=dtype),
    )


@operator("mlstm_backward")
def mlstm_backward_op(
    grad_h: Tensor,
    grad_C: Tensor | None,
    grad_n: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    m: Tensor | None,
    resets: Tensor | None,
    h: Tensor,
    states_C: Tensor,
    states_n: Tensor,
    s: Tensor,
    has_initial_state: bool,
    input_gate: str,
    normalize: bool,
    eps: float,
    chunk: int,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, i, f and of the initial C and n."""
    backward = torch_chunkwise.backward
    if implementation == "triton":
        from kernels.mlstm import triton_chunkwise

        backward = triton_chunkwise.backward
    elif implementation == "numba":
        from kernels.mlstm import numba_chunkwise

        backward = numba_chunkwise.backward
    return backward(
        grad_h, grad_C, grad_n, q, k, v, i, f, m, resets, h, states_C, states_n, s,
        has_initial_state, input_gate, normalize, eps, chunk,
    )  # fmt: skip


@mlstm_backward_op.register_fake
def _(
    grad_h: Tensor,
    grad_C: Tensor | None,
    grad_n: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    m: Tensor | None,
    resets: Tensor | None,
    h: Tensor,
    states_C: Tensor,
    states_n: Tensor,
    s: Tensor,
    has_initial_state: bool,
    input_gate: str,
    normalize: bool,
    eps: float,
    chunk: int,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, heads, _, key_dim = q.shape
    dtype = state_dtype(v)
    grad_q, grad_k, grad_v = (
        cpu.empty_rows_like(x) if implementation == "numba" else x.new_empty(x.shape) for x in (q, k, v)
    )
    return (
        grad_q,
        grad_k,
        grad_v,
        i.new_empty(i.shape),
        f.new_empty(f.shape),
        v.new_empty(batch, heads, key_dim, v.shape[-1], dtype=dtype),
        v.new_empty(batch, heads, key_dim, dtype=dtype),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, i, f, C, _, m, resets, input_gate, normalize, eps, chunk, save_states, implementation = inputs
    if not save_states:
        raise RuntimeError("scaling::mlstm was called with save_states=False on tensors that need gradients")
    h, _, _, final_m, states_C, states_n, s = output
    ctx.mark_non_differentiable(final_m, states_C, states_n, s)
    ctx.save_for_backward(q, k, v, i, f, m, resets, h, states_C, states_n, s)
    ctx.options = (C is not None, input_gate, normalize, eps, chunk, implementation)
    ctx.set_materialize_grads(False)


def _autograd_backward(ctx: Any, grad_h: Tensor | None, grad_C: Tensor | None, grad_n: Tensor | None, *_: Any) -> Any:
    q, k, v, i, f, m, resets, h, states_C, states_n, s = ctx.saved_tensors
    has_initial_state = ctx.options[0]
    if grad_h is None:
        grad_h = torch.zeros_like(h)
    *grads, dC, dn = mlstm_backward_op(
        grad_h, grad_C, grad_n, q, k, v, i, f, m, resets, h, states_C, states_n, s, *ctx.options
    )
    initial = (dC, dn) if has_initial_state else (None, None)
    return (*grads, *initial, *(None,) * 8)


mlstm_op.register_autograd(_autograd_backward, keep=_setup_context)


def _matmul_flops(q_shape: Any, v_shape: Any, chunk: int) -> tuple[int, int]:
    """FLOPs of one key_dim-wide product within chunks, and of one product with the states, times both widths."""
    batch, heads, time, key_dim = q_shape
    value_dim = v_shape[-1]
    rows = batch * heads
    full, rest = divmod(time, chunk)
    pairs = rows * (full * chunk * chunk + rest * rest)
    return 2 * pairs, 2 * rows * time * key_dim * value_dim


@register_flop_formula(torch.ops.scaling.mlstm)
def mlstm_flops(q_shape: Any, k_shape: Any, v_shape: Any, *args: Any, **kwargs: Any) -> int:
    """Forward: scores and their product with the values within chunks, one read and one write of the state."""
    pairs, state = _matmul_flops(q_shape, v_shape, int(args[9]))
    return pairs * (q_shape[-1] + v_shape[-1]) + 2 * state


@register_flop_formula(torch.ops.scaling.mlstm_backward)
def mlstm_backward_flops(
    grad_h: Any, grad_C: Any, grad_n: Any, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any
) -> int:
    """Backward: the scores again, then d scores, dq, dk, dv; and four products with states and their gradients."""
    pairs, state = _matmul_flops(q, v, int(args[12]))
    return pairs * (3 * q[-1] + 2 * v[-1]) + 4 * state
