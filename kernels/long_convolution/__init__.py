"""A causal convolution as long as the sequence, a filter per channel: the memory of H3 and Hyena (arXiv 2212.14052)."""

import math
from typing import Final

from torch import Tensor

from kernels import cpu
from kernels.dispatch import Implementation, choose, expect_resets, modules
from kernels.long_convolution.reference import long_convolution_reference
from kernels.operator import Operator

__all__ = ["long_convolution"]

MOST_TAPS: Final = 1024
"""Taps beyond which transforms are faster on a CPU than sums tap by tap, which are quadratic."""


def long_convolution(
    x: Tensor, filters: Tensor, *, resets: Tensor | None = None, implementation: Implementation = "auto"
) -> Tensor:
    """y_t = sum_l filters_l x_{t-l} over the tokens of t's document, for every channel; y is as `x`.

    `x` is (batch, time, channels), `filters` (taps, channels), both of any length: taps that are not there are zeros.
    `resets` (batch, time, bool) is true where a document starts. All is computed in float32, or in float64 where `x`
    is, also under autocast: there are no transforms of bfloat16.

    Raises ValueError for shapes that do not fit, ImplementationError for an implementation that cannot run.
    """
    name = "long_convolution"
    if x.ndim != 3:
        raise ValueError(f"{name}: x has shape {tuple(x.shape)}, expected (batch, time, channels)")
    batch, time, channels = x.shape
    if filters.ndim != 2 or filters.shape[1] != channels or 0 in (time, len(filters)):
        raise ValueError(
            f"{name}: filters have shape {tuple(filters.shape)} and x {tuple(x.shape)}, expected (taps, {channels}), "
            "and a token and a tap at least"
        )
    expect_resets(name, resets, batch, time)
    chosen = choose(name, implementation, x, shape_obstacle=None, cpu_obstacle=lambda: cpu.obstacle(x, filters))
    if chosen == "numba" and implementation == "auto" and min(time, len(filters)) > MOST_TAPS:
        chosen = "torch"
    if chosen == "reference":
        return long_convolution_reference(x, filters, resets)
    return _convolution(x, filters, resets, chosen)


def _flops(x: tuple[int, ...]) -> int:
    """Of two transforms of twice the length, 2.5 n log2 n each, and the product between them, for every channel."""
    return round(math.prod(x) * (10 * math.log2(2 * x[1]) + 6))


_convolution = Operator[Tensor](
    "long_convolution",
    "(Tensor x, Tensor filters, Tensor? resets, str implementation) -> Tensor y",
    backward="(grad_y, x, filters, resets, implementation) -> (x, filters)",
    modules=modules(__name__, torch="torch_fft", numba="numba_taps"),
    results=lambda x: x.new_empty(x.shape),
    flops=_flops,
)
