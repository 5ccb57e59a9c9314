"""The sLSTM (Beck et al. 2024, arXiv 2405.04517, section 2.2): scalar memories that mix within a head, step by step."""

import math

from torch import Tensor

from kernels import cpu
from kernels.dispatch import Implementation, choose, expect_resets, expect_shape
from kernels.slstm.ops import slstm_op
from kernels.slstm.reference import SLSTMState, recurrence_step, slstm_reference, zero_state

__all__ = ["SLSTMState", "slstm", "slstm_step"]


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
        "slstm", implementation, gates, lambda: _triton_obstacle(gates), lambda: cpu.obstacle(gates, recurrent)
    )
    if chosen == "reference":
        return slstm_reference(gates, recurrent, state, resets, gradient_clip)
    hs, c, n, m, *_ = slstm_op(
        gates, recurrent, state.h, state.c, state.n, state.m.detach(), resets, gradient_clip, chosen
    )
    last = hs[-1].transpose(0, 1)
    return hs.permute(2, 0, 1, 3).to(gates.dtype), SLSTMState(last, c, n, m)


def _triton_obstacle(gates: Tensor) -> str | None:
    from kernels.slstm import triton_scan

    return triton_scan.shape_obstacle(gates.shape[-1])


def slstm_step(gates: Tensor, recurrent: Tensor, state: SLSTMState) -> tuple[Tensor, SLSTMState]:
    """One token: gates (batch, 4, heads, head_dim). Returns h (batch, heads, head_dim) and the state."""
    after = recurrence_step(gates, recurrent, state, None, None)
    return after.h.to(gates.dtype), after
