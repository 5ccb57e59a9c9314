"""The long convolution by Fourier transforms, forward and backward.

Without documents a transform of twice the length each way, so that nothing comes round: y = F^-1(F x · F h). With them
the sequence is halved again and again. What the left half of a span of 2 L tokens adds to the right one is a
convolution of length 2 L, and passes in the one document that crosses the middle: of the others both sides are masked.
Within spans of SPAN tokens the taps are applied one by one. So nothing of a document reaches another, not even by
rounding, no shape depends on where documents begin, and the host waits for nothing; it costs log2(T) / 2 times as much.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.dispatch import state_dtype

SPAN = 16
"""Tokens up to which taps are applied one by one, where there are documents."""


def _length(outputs: int) -> int:
    """The next power of two, for which transforms are fastest and most exact."""
    return 1 << (outputs - 1).bit_length()


def _split(resets: Tensor) -> bool:
    """Whether documents may begin within a sequence; on a CPU, where it costs no wait, whether any does."""
    return resets.device.type != "cpu" or bool(resets[:, 1:].any())


def _rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(…, time, channels) as (…, channels, time)."""
    return x.to(dtype).mT.contiguous()


def _halves(x: Tensor, half: int) -> tuple[Tensor, Tensor]:
    """(…, time) as the left and the right halves of spans, (…, spans, half) each."""
    left, right = x.unflatten(-1, (-1, 2, half)).unbind(-2)
    return left, right


def _spans(resets: Tensor, time: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Half a span's length, and which tokens of left and right halves are of the document that crosses the middle."""
    document = F.pad(resets.cumsum(1), (0, time - resets.shape[1]), value=-1)[:, None]  # (batch, 1, time)
    half = SPAN
    while half < time:
        left, right = _halves(document, half)
        yield half, left == right[..., :1], right == right[..., :1]
        half *= 2


def _alike(resets: Tensor, time: int, lag: int) -> Tensor:
    """Whether a token of a span is of the document of the one `lag` tokens before it, (batch, 1, spans, SPAN - lag)."""
    document = F.pad(resets.cumsum(1), (0, time - resets.shape[1]), value=-1)[:, None].unflatten(-1, (-1, SPAN))
    return document[..., lag:] == document[..., : SPAN - lag]


def forward(x: Tensor, filters: Tensor, resets: Tensor | None) -> Tensor:
    """Arguments as in the package's public function."""
    dtype, time = state_dtype(x), x.shape[1]
    rows, taps = _rows(x, dtype), _rows(filters[:time], dtype)
    if resets is None or not _split(resets):
        n = _length(time + taps.shape[-1] - 1)
        y = torch.fft.irfft(torch.fft.rfft(rows, n) * torch.fft.rfft(taps, n), n)
        return y[..., :time].mT.to(x.dtype, memory_format=torch.contiguous_format, copy=True)
    padded = max(SPAN, _length(time))
    rows, taps = F.pad(rows, (0, padded - time)), F.pad(taps, (0, padded - taps.shape[-1]))
    near = rows.unflatten(-1, (-1, SPAN))
    y = taps[:, :1, None] * near
    for lag in range(1, SPAN):
        y[..., lag:] += taps[:, lag, None, None] * near[..., : SPAN - lag] * _alike(resets, padded, lag)
    y = y.flatten(-2)
    for half, reads, written in _spans(resets, padded):
        spectrum = torch.fft.rfft(_halves(rows, half)[0] * reads, 2 * half)
        spectrum = spectrum * torch.fft.rfft(taps[:, : 2 * half], 2 * half)[:, None]
        _halves(y, half)[1].add_(torch.fft.irfft(spectrum, 2 * half)[..., half:] * written)
    return y[..., :time].mT.to(x.dtype, memory_format=torch.contiguous_format, copy=True)


def backward(grad_y: Tensor, x: Tensor, filters: Tensor, resets: Tensor | None) -> tuple[Tensor, Tensor]:
    """Gradients of x and the filters: correlations of grad_y with the filters, and with x."""
    dtype, time = state_dtype(x), x.shape[1]
    rows, taps, grad = _rows(x, dtype), _rows(filters[:time], dtype), _rows(grad_y, dtype)
    given = taps.shape[-1]
    if resets is None or not _split(resets):
        n = _length(time + given - 1)
        upstream = torch.fft.rfft(grad, n)
        grad_x = torch.fft.irfft(upstream * torch.fft.rfft(taps, n).conj(), n)
        grad_taps = torch.fft.irfft((upstream * torch.fft.rfft(rows, n).conj()).sum(0), n)
    else:
        padded = max(SPAN, _length(time))
        rows, grad = (F.pad(one, (0, padded - time)) for one in (rows, grad))
        taps = F.pad(taps, (0, padded - given))
        near, above = rows.unflatten(-1, (-1, SPAN)), grad.unflatten(-1, (-1, SPAN))
        grad_x, grad_taps = taps[:, :1, None] * above, torch.zeros_like(taps)
        grad_taps[:, 0] = (above * near).sum((0, 2, 3))
        for lag in range(1, SPAN):
            passed = above[..., lag:] * _alike(resets, padded, lag)
            grad_x[..., : SPAN - lag] += taps[:, lag, None, None] * passed
            grad_taps[:, lag] = (passed * near[..., : SPAN - lag]).sum((0, 2, 3))
        grad_x = grad_x.flatten(-2)
        for half, reads, written in _spans(resets, padded):
            upstream = torch.fft.rfft(F.pad(_halves(grad, half)[1] * written, (half, 0)), 2 * half)
            kernel = torch.fft.rfft(taps[:, : 2 * half], 2 * half)[:, None]
            read = torch.fft.rfft(_halves(rows, half)[0] * reads, 2 * half)
            _halves(grad_x, half)[0].add_(torch.fft.irfft(upstream * kernel.conj(), 2 * half)[..., :half] * reads)
            grad_taps[:, : 2 * half] += torch.fft.irfft((upstream * read.conj()).sum((0, 2)), 2 * half)
    grad_filters = F.pad(grad_taps[:, :given].mT, (0, 0, 0, len(filters) - given))
    grad_x = grad_x[..., :time].mT
    return tuple(  # type: ignore[return-value]
        one.to(like.dtype, memory_format=torch.contiguous_format, copy=True)
        for one, like in ((grad_x, x), (grad_filters, filters))
    )
