"""The sLSTM (Beck et al. 2024, arXiv 2405.04517, section 2.2): scalar memories that mix within a head, step by step."""

import math
from typing import Any

import torch
from torch import Tensor

from kernels import cpu
from kernels.dispatch import Implementation, choose, expect_resets, expect_shape, modules, state_dtype
from kernels.operator import Operator
from kernels.slstm.reference import Saved, SLSTMState, slstm_reference, zero_state
from kernels.slstm.torch_scan import at_unit_scale, collected

__all__ = ["SLSTMState", "slstm"]


def slstm(
    gates: Tensor,
    recurrent: Tensor,
    *,
    initial_state: SLSTMState | None = None,
    resets: Tensor | None = None,
    gradient_clip: float | None = None,
    implementation: Implementation = "auto",
) -> tuple[Tensor, SLSTMState]:
    """Outputs h (batch, time, heads, head_dim) in the gates' dtype, and the state after the last token.

    `gates` (batch, time, 4, heads, head_dim): pre-activations W x + b of input gate, forget gate (a sigmoid), cell
    input and output gate; `recurrent` (4, heads, head_dim, head_dim) adds h_{t-1} @ R to each. `resets` bool (batch,
    time): the state is forgotten before that token. `gradient_clip` bounds each element of the gradient through R.
    Raises ValueError for shapes that do not fit, ImplementationError for an implementation that cannot run.
    """
    if gates.ndim != 5:
        raise ValueError(f"slstm: gates has shape {tuple(gates.shape)}, expected (batch, time, 4, heads, head_dim)")
    batch, time, _, heads, head_dim = gates.shape
    expect_shape("slstm", "gates", gates, (batch, time, 4, heads, head_dim), "(batch, time, 4, heads, head_dim)")
    expect_shape("slstm", "recurrent", recurrent, (4, heads, head_dim, head_dim), "(4, heads, head_dim, head_dim)")
    if time == 0:
        raise ValueError("slstm: the sequence is empty, expected at least one token")
    expect_resets("slstm", resets, batch, time)
    if gradient_clip is not None and not (gradient_clip > 0 and math.isfinite(gradient_clip)):
        raise ValueError(f"slstm: gradient_clip is {gradient_clip}, expected a positive number or None")
    state = zero_state(gates) if initial_state is None else initial_state
    chosen = choose(
        "slstm", implementation, gates, lambda: _modules("triton").shape_obstacle(head_dim),
        lambda: cpu.obstacle(gates, recurrent),
    )  # fmt: skip
    if chosen == "reference":
        return slstm_reference(gates, recurrent, state, resets, gradient_clip)
    hs, c, n, m, *_ = _slstm(gates, recurrent, *state[:3], state.m.detach(), resets, gradient_clip, chosen)
    last = hs[-1].transpose(0, 1)
    return hs.permute(2, 0, 1, 3).to(gates.dtype), SLSTMState(last, c, n, m)


def _forward(
    module: Any, gates: Tensor, recurrent: Tensor, state: SLSTMState, resets: Tensor | None, clip: float | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    saved: Saved = module.forward(gates, recurrent, state, resets)
    c, l = (every[-1].transpose(0, 1).clone(memory_format=torch.contiguous_format) for every in (saved.cs, saved.ls))
    return saved.hs, c, torch.ones_like(c), l, *saved[1:]


def _backward(
    module: Any, grad_h: Tensor | None, grad_c: Tensor | None, grad_n: Tensor | None, recurrent: Tensor,
    state: SLSTMState, resets: Tensor | None, saved: Saved, clip: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of the gates (batch, time, 4, heads, head_dim), of the recurrent matrices, and of the initial h, c, n.

    `grad_c` and `grad_n` are those of the final state at its scale n = 1.
    """
    grads = saved.hs.new_zeros(2, *saved.hs.shape[1:])  # dc, dn
    for part, grad in zip(grads, (grad_c, grad_n), strict=True):
        if grad is not None:
            part.copy_(grad.transpose(0, 1))
    upstream = torch.zeros_like(saved.hs) if grad_h is None else grad_h
    first_c = at_unit_scale(state, saved.hs.dtype)[1]
    dpre, dh = module.backward(upstream, grads, recurrent, first_c, resets, saved, float(clip or 0.0))
    return collected(dpre, grads, dh, state, resets, saved)


def _results(gates: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, time, _, heads, head_dim = gates.shape
    hs, cs, ls = (gates.new_empty(time, heads, batch, head_dim, dtype=state_dtype(gates)) for _ in range(3))
    c, n, m = (hs.new_empty(batch, heads, head_dim) for _ in range(3))
    return hs, c, n, m, cs, ls, hs.new_empty(time, heads, batch, 5, head_dim)


def _gradients(hs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    time, heads, batch, head_dim = hs.shape
    h, c, n = (hs.new_empty(batch, heads, head_dim) for _ in range(3))
    return hs.new_empty(batch, time, 4, heads, head_dim), hs.new_empty(4, heads, head_dim, head_dim), h, c, n


# `hs` is (time, heads, batch, head_dim), the last c, n and m are (batch, heads, head_dim), the rest is as in `Saved`,
# the same for all implementations. The FLOPs are those of the recurrent products, four head_dim x head_dim matrices per
# head and token; in the backward, those for the gradients of the state and for those of the matrices.
_modules = modules(__name__, torch="torch_scan", numba="numba_scan", triton="triton_scan")
_slstm = Operator[tuple[Tensor, ...]](
    "slstm",
    "(Tensor gates, Tensor recurrent, Tensor h, Tensor c, Tensor n, Tensor m, Tensor? resets, float? gradient_clip,"
    " str implementation)"
    " -> (Tensor hs, Tensor last_c, Tensor last_n, Tensor last_m, Tensor cs, Tensor ls, Tensor active)",
    backward="(grad_hs?, grad_last_c?, grad_last_n?, recurrent, h, c, n, m, resets, hs, cs, ls, active, gradient_clip,"
    " implementation) -> (gates, recurrent, h, c, n)",
    modules=_modules,
    bundles=[SLSTMState, Saved],
    run_forward=_forward,
    run_backward=_backward,
    results=_results,
    gradients=_gradients,
    flops=lambda gates: 2 * math.prod(gates) * gates[-1],
    backward_flops=lambda hs: 16 * math.prod(hs) * hs[-1],
)
