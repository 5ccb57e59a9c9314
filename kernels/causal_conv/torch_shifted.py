"""The causal convolution with SiLU as one scaled addition per tap, on the layout (batch, time, channels) as it is.

A convolution routine wants channels before time, and so two transposed copies each way; four taps are four passes.
"""

import torch
from torch import Tensor

from kernels.dispatch import state_dtype


def _pairs(
    x: Tensor, past: Tensor, documents: Tensor | None, lag: int
) -> list[tuple[slice, Tensor, Tensor | None, slice]]:
    """Where outputs see tokens `lag` before them: output times, those tokens, where they count, their times.

    First the tokens of this pass, then those of `past`; the times of the latter are its own.
    """
    time, taps = x.shape[1], past.shape[1] + 1
    early = min(lag, time)
    from_past = slice(taps - 1 - lag, taps - 1 - lag + early)
    same = before = None
    if documents is not None:
        same = (documents[:, lag:] == documents[:, : time - early])[..., None]
        before = (documents[:, :early] == 0)[..., None]
    pairs = [(slice(lag, time), x[:, : time - early], same, slice(0, time - early))]
    return pairs if lag == 0 else [*pairs, (slice(0, early), past[:, from_past], before, from_past)]


def _counted(values: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    values = values.to(dtype)
    return values if mask is None else torch.where(mask, values, 0.0)


def forward(x: Tensor, weight: Tensor, bias: Tensor, past: Tensor, documents: Tensor | None) -> tuple[Tensor, Tensor]:
    """y in x's dtype, and the sum before the SiLU, which the backward starts from."""
    dtype, taps = state_dtype(x), weight.shape[1]
    by_tap = weight.to(dtype).t().contiguous()
    pre = torch.addcmul(bias.to(dtype), by_tap[-1], x.to(dtype).contiguous())
    for lag in range(1, taps):
        for outputs, seen, mask, _ in _pairs(x, past, documents, lag):
            pre[:, outputs].addcmul_(by_tap[taps - 1 - lag], _counted(seen, mask, dtype))
    return torch.nn.functional.silu(pre).to(x.dtype), pre


def backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, past: Tensor, documents: Tensor | None, pre: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias and past."""
    dtype, taps = pre.dtype, weight.shape[1]
    by_tap = weight.to(dtype).t().contiguous()
    grad_pre = torch.ops.aten.silu_backward(grad_y.to(dtype).contiguous(), pre)
    grad_x = grad_pre * by_tap[-1]
    grad_past = past.new_zeros(past.shape, dtype=dtype)
    grad_weight = torch.zeros_like(by_tap)
    grad_weight[-1] = (grad_pre * x.to(dtype)).sum((0, 1))
    for lag in range(1, taps):
        for (outputs, seen, mask, times), grads in zip(
            _pairs(x, past, documents, lag), (grad_x, grad_past), strict=True
        ):
            part = _counted(grad_pre[:, outputs], mask, dtype)
            grads[:, times].addcmul_(by_tap[taps - 1 - lag], part)
            grad_weight[taps - 1 - lag] += (part * _counted(seen, mask, dtype)).sum((0, 1))
    return (
        grad_x.to(x.dtype),
        grad_weight.t().contiguous().to(weight.dtype),
        grad_pre.sum((0, 1)).to(bias.dtype),
        grad_past.to(past.dtype),
    )
