"""The generalised delta rule on GPUs: its pairs by the Triton kernels of linear attention, the rest by the library."""

from torch import Tensor

from kernels.delta_rule import torch_chunked
from kernels.gated_linear_attention.triton_chunked import KERNELS


def forward(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, g: Tensor, state: Tensor, resets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, final state, and the states before each chunk."""
    return torch_chunked.forward(q, k, v, a, b, g, state, resets, KERNELS)


def backward(
    grad_o: Tensor,
    grad_state: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    g: Tensor,
    resets: Tensor | None,
    starts: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, a, b, g and the initial state."""
    return torch_chunked.backward(grad_o, grad_state, q, k, v, a, b, g, resets, starts, KERNELS)
