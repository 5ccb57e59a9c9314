"""SwiGLU as Triton kernels: number by number, in float32."""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl
from torch import Tensor

TILE = {"B": 1024}


@triton.jit
def forward_kernel(gate, up, y, numbers, B: tl.constexpr):
    """y = silu(gate) * up."""
    at = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    z = tl.load(gate + at, mask=at < numbers, other=0.0).to(tl.float32)
    value = z / (1.0 + tl.exp(-z)) * tl.load(up + at, mask=at < numbers, other=0.0).to(tl.float32)
    tl.store(y + at, value.to(y.dtype.element_ty), mask=at < numbers)


@triton.jit
def backward_kernel(grad_y, gate, up, grad_gate, grad_up, numbers, B: tl.constexpr):
    """Gradients of gate and up."""
    at = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    g = tl.load(grad_y + at, mask=at < numbers, other=0.0).to(tl.float32)
    z = tl.load(gate + at, mask=at < numbers, other=0.0).to(tl.float32)
    u = tl.load(up + at, mask=at < numbers, other=0.0).to(tl.float32)
    s = 1.0 / (1.0 + tl.exp(-z))
    tl.store(grad_gate + at, (g * u * s * (1.0 + z * (1.0 - s))).to(grad_gate.dtype.element_ty), mask=at < numbers)
    tl.store(grad_up + at, (g * z * s).to(grad_up.dtype.element_ty), mask=at < numbers)


def forward(gate: Tensor, up: Tensor) -> Tensor:
    """As the reference, rounded once."""
    y = gate.new_empty(gate.shape)
    grid = (triton.cdiv(y.numel(), TILE["B"]),)
    forward_kernel[grid](gate.contiguous(), up.contiguous(), y, y.numel(), **TILE)
    return y


def backward(grad_y: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up."""
    grad_gate, grad_up = gate.new_empty(gate.shape), up.new_empty(up.shape)
    grid = (triton.cdiv(gate.numel(), TILE["B"]),)
    operands = (grad_y.contiguous(), gate.contiguous(), up.contiguous())
    backward_kernel[grid](*operands, grad_gate, grad_up, gate.numel(), **TILE)
    return grad_gate, grad_up
