"""The bounded gate that keeps nothing but its inputs.

With s = sigmoid(-x), and u the gradient of log f over f less that of 1 - f,

dx = (1 - bound) s (1 - s) u        dbound = sum of s u over tokens
"""

import torch
from torch import Tensor

from kernels.bounded_gate.reference import bounded_gate_reference
from kernels.dispatch import state_dtype


def forward(logits: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    """As the reference, rounded once."""
    dtype = state_dtype(logits)
    kept, rest = bounded_gate_reference(logits.to(dtype), bound.to(dtype))
    return kept.to(logits.dtype).contiguous(), rest.to(logits.dtype).contiguous()


def backward(grad_kept: Tensor, grad_rest: Tensor, logits: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the logits and the bound."""
    dtype = state_dtype(logits)
    x, low = logits.to(dtype), bound.to(dtype)
    closed, open_ = torch.sigmoid(-x), torch.sigmoid(x)
    kept = (low + (1 - low) * open_).clamp_min_(torch.finfo(dtype).tiny)
    upstream = closed.mul_(grad_kept.to(dtype) / kept - grad_rest.to(dtype))  # s u
    grad_bound = upstream.reshape(-1, upstream.shape[-1]).sum(0)
    grad_logits = (1 - low) * open_ * upstream
    return grad_logits.to(logits.dtype).contiguous(), grad_bound.to(bound.dtype)
