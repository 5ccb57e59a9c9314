"""The long convolution tap by tap, quadratic in time: the definition of the other form. Autograd differentiates it."""

import torch
from torch import Tensor

from kernels.dispatch import state_dtype


def long_convolution_reference(x: Tensor, filters: Tensor, resets: Tensor | None) -> Tensor:
    """The whole sequence; arguments as in `kernels.long_convolution.long_convolution`."""
    wide, taps, time = x.to(state_dtype(x)), filters.to(state_dtype(x)), x.shape[1]
    document = None if resets is None else resets.cumsum(1)
    y = taps[0] * wide
    for lag in range(1, min(time, len(taps))):
        read = taps[lag] * wide[:, :-lag]
        if document is not None:
            read = read.masked_fill((document[:, lag:] != document[:, :-lag])[..., None], 0.0)
        y = torch.cat((y[:, :lag], y[:, lag:] + read), dim=1)
    return y.to(x.dtype)
