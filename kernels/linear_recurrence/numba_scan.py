"""The linear recurrence for CPUs: token by token, many channels of a sequence in vector registers."""

# mypy: disable-error-code="no-untyped-def"

import torch
from torch import Tensor

from kernels.cpu import kernel, pieces_of, rows, run
from kernels.cpu.functions import ONE, ZERO, exp, given, own_channels, row
from kernels.cpu.table import Flags, Rows

CHANNELS_AT_ONCE = 64


@kernel
def _forward(
    first, last, time: int, channels: int, xs: Rows, gs: Rows, initial: Rows, resets: Flags | None, hs: Rows
):  # fmt: skip
    """`xs`, `gs` and `hs` (batch, time, channels); `initial` (batch, channels)."""
    for piece in range(first, last):
        sequence, begin, end = own_channels(piece, channels, CHANNELS_AT_ONCE)
        before = row(initial, sequence)
        for t in range(time):
            known = ONE
            if given(resets) and row(resets, sequence)[t]:
                known = ZERO
            x, g, h = row(xs, sequence, t), row(gs, sequence, t), row(hs, sequence, t)
            for d in range(begin, end):
                h[d] = known * exp(g[d]) * before[d] + x[d]
            before = row(hs, sequence, t)


@kernel
def _backward(
    first, last, time: int, channels: int, gs: Rows, initial: Rows, resets: Flags | None, hs: Rows, grad_hs: Rows,
    grad_xs: Rows, grad_gs: Rows, grad_states: Rows,
):  # fmt: skip
    """`grad_states` (batch, channels): of the state after the last token, zeros, and then of the initial one."""
    for piece in range(first, last):
        sequence, begin, end = own_channels(piece, channels, CHANNELS_AT_ONCE)
        grad = row(grad_states, sequence)
        for t in range(time - 1, -1, -1):
            known = ONE
            if given(resets) and row(resets, sequence)[t]:
                known = ZERO
            before = row(hs, sequence, t - 1) if t > 0 else row(initial, sequence)
            g, grad_h = row(gs, sequence, t), row(grad_hs, sequence, t)
            grad_x, grad_g = row(grad_xs, sequence, t), row(grad_gs, sequence, t)
            for d in range(begin, end):
                into, keep = grad[d] + grad_h[d], known * exp(g[d])
                grad_x[d] = into
                grad_g[d] = keep * before[d] * into
                grad[d] = keep * into


def forward(x: Tensor, g: Tensor, state: Tensor, resets: Tensor | None) -> Tensor:
    """Every state, (batch, time, channels)."""
    h = torch.empty_like(x, memory_format=torch.contiguous_format)
    run(
        _forward, pieces_of(x, CHANNELS_AT_ONCE), time=x.shape[1], channels=x.shape[2], xs=rows(x), gs=rows(g),
        initial=rows(state), resets=None if resets is None else rows(resets), hs=h,
    )  # fmt: skip
    return h


def backward(
    grad_h: Tensor, x: Tensor, g: Tensor, state: Tensor, resets: Tensor | None, h: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, g and the initial state."""
    grad_x, grad_g = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (x, g))
    grad_state = torch.zeros_like(state, memory_format=torch.contiguous_format)
    run(
        _backward, pieces_of(x, CHANNELS_AT_ONCE), time=x.shape[1], channels=x.shape[2], gs=rows(g),
        initial=rows(state), resets=None if resets is None else rows(resets), hs=h, grad_hs=rows(grad_h),
        grad_xs=grad_x, grad_gs=grad_g, grad_states=grad_state,
    )  # fmt: skip
    return grad_x, grad_g, grad_state
