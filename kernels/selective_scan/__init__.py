"""The selective scan of Mamba (Gu & Dao 2023, arXiv 2312.00752): a linear recurrence with input-dependent gates."""

import math

import torch
from torch import Tensor

from kernels import cpu
from kernels.dispatch import Chosen, Implementation, choose, expect_resets, expect_shape, modules, state_dtype
from kernels.operator import Operator
from kernels.selective_scan.reference import Inputs, selective_scan_reference

__all__ = ["selective_scan"]


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    initial_state: Tensor | None = None,
    resets: Tensor | None = None,
    implementation: Implementation = "auto",
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
    dtype = state_dtype(u)
    state = u.new_zeros(batch, channels, state_dim, dtype=dtype) if initial_state is None else initial_state.to(dtype)
    expect_shape(name, "initial_state", state, (batch, channels, state_dim), "(batch, channels, state_dim)")
    expect_resets(name, resets, batch, time)
    chosen = choose(
        name, implementation, u, lambda: _modules("triton").shape_obstacle(A), lambda: cpu.obstacle(u, delta, A, B, C)
    )
    if time == 0:
        return torch.zeros_like(u), state
    if chosen == "reference":
        return selective_scan_reference(Inputs(u, delta, A, B, C), state, resets)
    y, final_state, _ = _scan(u, delta, A, B, C, state, resets, chosen)
    return y, final_state


def _results(u: Tensor, A: Tensor, state: Tensor, implementation: Chosen) -> tuple[Tensor, Tensor, Tensor]:
    starts = state.new_empty(_modules(implementation).shape_of_starts(u, A))
    return u.new_empty(u.shape), state.new_empty(state.shape), starts


def _flops(u: tuple[int, ...], A: tuple[int, ...]) -> int:
    """Per number of the state and step: delta A and its exponential, a product with B, recurrence and read 4.

    Per channel and step: delta u. Backward twice as many.
    """
    return math.prod(u) * (7 * A[1] + 1)


# `starts` are the states between chunks that the backward starts from, laid out as each implementation likes.
_modules = modules(__name__, torch="torch_chunked", numba="numba_scan", triton="triton_scan")
_scan = Operator[tuple[Tensor, Tensor, Tensor]](
    "selective_scan",
    "(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor state, Tensor? resets, str implementation)"
    " -> (Tensor y, Tensor final_state, Tensor starts)",
    backward="(grad_y, grad_final_state, u, delta, A, B, C, resets, starts, implementation)"
    " -> (u, delta, A, B, C, state)",
    modules=_modules,
    bundles=[Inputs],
    results=_results,
    flops=_flops,
)
