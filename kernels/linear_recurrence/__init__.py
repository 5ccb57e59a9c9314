"""An element-wise linear recurrence with gates by token, the memory of HGRN (Qin et al. 2023, arXiv 2311.04823)."""

import math

from torch import Tensor

from kernels import cpu
from kernels.dispatch import Implementation, choose, expect_resets, expect_shape, modules, state_dtype
from kernels.linear_recurrence.reference import linear_recurrence_reference
from kernels.operator import Operator

__all__ = ["linear_recurrence"]


def linear_recurrence(
    x: Tensor,
    g: Tensor,
    *,
    initial_state: Tensor | None = None,
    resets: Tensor | None = None,
    implementation: Implementation = "auto",
) -> Tensor:
    """h_t = exp(g_t) h_{t-1} + x_t for every channel, (batch, time, channels); the last is the state after it.

    `x` and `g`, the logarithm of what is kept, at most 0, are (batch, time, channels) of any length; `initial_state`
    (batch, channels), zeros where absent. Where `resets` (batch, time, bool) is true the state is forgotten before the
    token. h is float32, or float64 for float64 `x`, also under autocast: it is the state.

    Raises ValueError for shapes that do not fit, ImplementationError for an implementation that cannot run.
    """
    name = "linear_recurrence"
    if x.ndim != 3:
        raise ValueError(f"{name}: x has shape {tuple(x.shape)}, expected (batch, time, channels)")
    batch, time, channels = x.shape
    expect_shape(name, "g", g, (batch, time, channels), "(batch, time, channels)")
    if time == 0:
        raise ValueError(f"{name}: the sequence is empty, expected at least one token")
    expect_resets(name, resets, batch, time)
    dtype = state_dtype(x)
    state = x.new_zeros(batch, channels, dtype=dtype) if initial_state is None else initial_state.to(dtype)
    expect_shape(name, "initial_state", state, (batch, channels), "(batch, channels)")
    chosen = choose(name, implementation, x, cpu_obstacle=lambda: cpu.obstacle(x, g))
    if chosen == "reference":
        return linear_recurrence_reference(x, g, state, resets)
    return _recurrence(x, g, state, resets, chosen)


_recurrence = Operator[Tensor](
    "linear_recurrence",
    "(Tensor x, Tensor g, Tensor state, Tensor? resets, str implementation) -> Tensor h",
    backward="(grad_h, x, g, state, resets, h, implementation) -> (x, g, state)",
    modules=modules(__name__, torch="torch_pieces", numba="numba_scan", triton="triton_scan"),
    results=lambda x, state: state.new_empty(x.shape),
    flops=lambda x: 3 * math.prod(x),  # the exponential, a product and a sum
)
