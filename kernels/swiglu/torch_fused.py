"""SwiGLU that keeps nothing but its inputs: the SiLU is formed anew for the backward."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.dispatch import state_dtype


def forward(gate: Tensor, up: Tensor) -> Tensor:
    """As the reference, rounded once."""
    return F.silu(gate.to(state_dtype(gate))).mul_(up).to(gate.dtype).contiguous()


def backward(grad_y: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up."""
    grad, z, wide = (t.to(state_dtype(gate)) for t in (grad_y, gate, up))
    grad_gate = torch.ops.aten.silu_backward(grad * wide, z)
    return grad_gate.to(gate.dtype).contiguous(), F.silu(z).mul_(grad).to(up.dtype).contiguous()
