"""RWKV-4's WKV (Peng et al. 2023, arXiv 2305.13048): attention as a decayed average, channel by channel."""

import math

import torch
from torch import Tensor

from kernels import cpu
from kernels.dispatch import Chosen, Implementation, choose, expect_resets, expect_shape, modules, state_dtype
from kernels.operator import Operator
from kernels.wkv.reference import Inputs, WKVState, wkv_reference, zero_state

__all__ = ["WKVState", "wkv"]


def wkv(
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    bonus: Tensor,
    *,
    initial_state: WKVState | None = None,
    resets: Tensor | None = None,
    implementation: Implementation = "auto",
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
        return wkv_reference(Inputs(k, v, decay, bonus), state, resets)
    stacked = torch.stack((state.a, state.b, state.m.detach()))
    y, final_state, _ = _wkv(k, v, decay, bonus, stacked, resets, chosen)
    return y, WKVState(final_state[0], final_state[1], final_state[2].detach())


def _results(k: Tensor, v: Tensor, state: Tensor, implementation: Chosen) -> tuple[Tensor, Tensor, Tensor]:
    starts = state.new_empty(_modules(implementation).num_segments(k), *state.shape)
    return v.new_empty(v.shape), state.new_empty(state.shape), starts


def _flops(k: tuple[int, ...]) -> int:
    """Per channel and step (Peng et al. 2023, appendix D): 12 for the output, 11 for the sums. Backward twice as many.

    Output: k + u, the maximum, two differences, two exponentials, numerator 3, denominator 2, quotient. Sums: decayed
    scale, maximum, two differences, two exponentials, numerator 3, denominator 2.
    """
    return 23 * math.prod(k)


# `state` and `final_state` (3, batch, channels); `starts` are the states between chunks that the backward starts from.
_modules = modules(__name__, torch="torch_chunked", numba="numba_scan", triton="triton_scan")
_wkv = Operator[tuple[Tensor, Tensor, Tensor]](
    "wkv",
    "(Tensor k, Tensor v, Tensor decay, Tensor bonus, Tensor state, Tensor? resets, str implementation)"
    " -> (Tensor y, Tensor final_state, Tensor starts)",
    backward="(grad_y, grad_final_state, k, v, decay, bonus, resets, starts, implementation)"
    " -> (k, v, decay, bonus, state)",
    modules=_modules,
    bundles=[Inputs],
    results=_results,
    flops=_flops,
)
