"""Token shift in PyTorch with a hand-written backward: one difference for all mixtures."""

import torch
from torch import Tensor

from kernels.dispatch import state_dtype


def _before(x: Tensor, last: Tensor, resets: Tensor | None) -> Tensor:
    before = torch.cat((last[:, None], x[:, :-1]), dim=1)
    return before if resets is None else before.masked_fill_(resets[..., None], 0.0)


def forward(x: Tensor, shares: Tensor, last: Tensor, resets: Tensor | None) -> list[Tensor]:
    """As the reference."""
    x, shares, last, dtype = *(t.to(state_dtype(x)) for t in (x, shares, last)), x.dtype
    before = _before(x, last, resets)
    difference = x - before
    return [torch.addcmul(before, share, difference).to(dtype) for share in shares]


def backward(
    grads: list[Tensor], x: Tensor, shares: Tensor, last: Tensor, resets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, shares and last."""
    dtype, wide = x.dtype, state_dtype(x)
    x, shares, last = (t.to(wide) for t in (x, shares, last))
    grads = [grad.to(wide) for grad in grads]
    difference = x - _before(x, last, resets)
    grad_shares = torch.stack([(grad * difference).sum((0, 1)) for grad in grads])
    grad_x, whole = (torch.zeros_like(difference, memory_format=torch.contiguous_format) for _ in range(2))
    for grad, share in zip(grads, shares, strict=True):
        grad_x.addcmul_(grad, share)
        whole += grad
    of_before = whole.sub_(grad_x)
    if resets is not None:
        of_before.masked_fill_(resets[..., None], 0.0)
    grad_x[:, :-1] += of_before[:, 1:]
    return grad_x.to(dtype), grad_shares.to(dtype), of_before[:, 0].to(dtype, copy=True)
