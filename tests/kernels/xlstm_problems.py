"""The inputs of mLSTM and sLSTM that tests draw, and what comes out of an implementation with its gradients."""

import torch

from kernels.mlstm import MLSTMState
from kernels.slstm import SLSTMState, slstm

FLOAT32_BOUND = 1e-5
"""Relative, per tensor, on well-conditioned inputs."""


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.norm().clamp_min(1e-30))


def run(operator, tensors, state, implementation, dtype, **options):  # type: ignore[no-untyped-def]
    """Outputs, final state in true units and gradients of everything but scales, as float64 tensors."""
    inputs = [t.detach().clone().to(dtype).requires_grad_() for t in tensors]
    first = [s.detach().clone().to(dtype) for s in state]
    for part in first[:-1]:
        part.requires_grad_()
    h, after = operator(*inputs, initial_state=type(state)(*first), implementation=implementation, **options)
    *parts, m = after
    # The scale m is a gauge: an implementation may choose it.
    parts = parts[1:] if operator is slstm else parts
    scale = m.detach().exp()
    seen = [h, *(part * scale.reshape(scale.shape + (1,) * (part.ndim - scale.ndim)) for part in parts)]
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(part.shape, generator=generator, dtype=torch.float64).to(dtype) for part in seen]
    sum((part * weight).sum() for part, weight in zip(seen, weights, strict=True)).backward()
    gradients = [torch.zeros_like(t) if t.grad is None else t.grad for t in (*inputs, *first[:-1])]
    return [t.detach().double() for t in (*seen, *gradients)]


def mlstm_problem(batch: int, heads: int, time: int, key_dim: int, value_dim: int):  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(time)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    q, k = normal(batch, heads, time, key_dim), normal(batch, heads, time, key_dim)
    v = normal(batch, heads, time, value_dim)
    state = MLSTMState(normal(batch, heads, key_dim, value_dim), normal(batch, heads, key_dim), normal(batch, heads))
    return [q, k, v, normal(batch, heads, time), normal(batch, heads, time) + 3], state


def slstm_problem(batch: int, time: int, heads: int, head_dim: int):  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(time)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    n = normal(batch, heads, head_dim).exp()
    c = n * torch.tanh(normal(batch, heads, head_dim))
    state = SLSTMState(torch.tanh(normal(batch, heads, head_dim)), c, n, normal(batch, heads, head_dim))
    return [normal(batch, time, 4, heads, head_dim), normal(4, heads, head_dim, head_dim) / head_dim**0.5], state


def some_resets(batch: int, time: int, share: float) -> torch.Tensor:
    return torch.rand(batch, time, generator=torch.Generator().manual_seed(2)) < share
