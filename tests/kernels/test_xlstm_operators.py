"""The fast PyTorch forms of mLSTM and sLSTM against the float64 recurrence, outputs and every gradient."""

import pytest
import torch

from kernels.dispatch import ImplementationError
from kernels.mlstm import MLSTMState, mlstm
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


@pytest.mark.parametrize("time", [1, 63, 64, 65, 150])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("input_gate", ["exponential", "sigmoid"])
def test_chunkwise_mlstm_is_the_recurrence(time: int, normalize: bool, input_gate: str) -> None:
    tensors, state = mlstm_problem(2, 2, time, 8, 12)
    options = {"normalize": normalize, "input_gate": input_gate, "eps": 0.0}
    options["resets"] = torch.rand(2, time, generator=torch.Generator().manual_seed(2)) < 0.03
    expected = run(mlstm, tensors, state, "reference", torch.float64, **options)
    exact = run(mlstm, tensors, state, "torch", torch.float64, **options)
    single = run(mlstm, tensors, state, "torch", torch.float32, **options)
    for a, b, c in zip(expected, exact, single, strict=True):
        assert relative_error(b, a) < 1e-10
        assert relative_error(c, a) < FLOAT32_BOUND


@pytest.mark.parametrize("time", [1, 7, 40])
@pytest.mark.parametrize("gradient_clip", [None, 0.05])
def test_looped_slstm_is_the_recurrence(time: int, gradient_clip: float | None) -> None:
    tensors, state = slstm_problem(3, time, 2, 8)
    options = {"gradient_clip": gradient_clip}
    options["resets"] = torch.rand(3, time, generator=torch.Generator().manual_seed(2)) < 0.1
    expected = run(slstm, tensors, state, "reference", torch.float64, **options)
    exact = run(slstm, tensors, state, "torch", torch.float64, **options)
    single = run(slstm, tensors, state, "torch", torch.float32, **options)
    for a, b, c in zip(expected, exact, single, strict=True):
        assert relative_error(b, a) < 1e-10
        assert relative_error(c, a) < FLOAT32_BOUND


def test_an_implementation_that_cannot_run_says_why() -> None:
    tensors, _ = mlstm_problem(1, 1, 4, 8, 8)
    with pytest.raises(ImplementationError, match="'fast' is none of auto, reference, torch, triton"):
        mlstm(*tensors, implementation="fast")
    with pytest.raises(ImplementationError, match="'triton' cannot run"):
        mlstm(*tensors, implementation="triton")
