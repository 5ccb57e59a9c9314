"""The element-wise linear recurrence: every implementation equals the recurrence in float64."""

import pytest
import torch
from torch import Tensor

from kernels.dispatch import ImplementationError
from kernels.linear_recurrence import linear_recurrence

# batch, time, channels: one step; within and across pieces and chunks of 32 steps; nothing a power of two.
SHAPES = [(1, 1, 1), (2, 7, 5), (2, 67, 7)]


def inputs(shape: tuple[int, int, int], dtype: torch.dtype) -> dict[str, Tensor]:
    """Gates from -30 to about 0: a quotient of sums of them would overflow."""
    generator = torch.Generator().manual_seed(0)
    normal = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64)  # noqa: E731
    tensors = {"x": normal(*shape), "g": -torch.exp(3 * normal(*shape) - 3).clamp_max(30), "state": normal(2, 7)}
    tensors["state"] = tensors["state"][: shape[0], : shape[2]].contiguous()
    return {name: tensor.float().to(dtype) for name, tensor in tensors.items()}


def results(tensors: dict[str, Tensor], resets: Tensor | None, implementation: str) -> list[Tensor]:
    """The states, and gradients of x, g and the initial state."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors.values()]
    h = linear_recurrence(*leaves[:2], initial_state=leaves[2], resets=resets, implementation=implementation)
    weights = torch.randn(h.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return [h.detach(), *torch.autograd.grad((h * weights.to(h.dtype)).sum(), leaves)]


@pytest.mark.parametrize("with_resets", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("implementation", ["torch", "numba", "triton"])
def test_float32_equals_the_float64_recurrence(implementation: str, shape: tuple, with_resets: bool) -> None:
    resets = torch.rand(shape[:2], generator=torch.Generator().manual_seed(7)) < 0.15 if with_resets else None
    expected = results(inputs(shape, torch.float64), resets, "reference")
    for actual, exact in zip(results(inputs(shape, torch.float32), resets, implementation), expected, strict=True):
        assert (actual - exact).norm() <= 20 * torch.finfo(torch.float32).eps * exact.norm()


@pytest.mark.parametrize("implementation", ["torch", "numba", "triton"])
def test_operator_obeys_the_rules_of_torch_library(implementation: str) -> None:
    x, g, state = (tensor.requires_grad_() for tensor in inputs((2, 5, 3), torch.float32).values())
    resets = torch.tensor([[False] * 5, [False, True, False, False, True]])
    torch.library.opcheck(torch.ops.scaling.linear_recurrence.default, (x, g, state, resets, implementation))


def test_wrong_shapes_are_named() -> None:
    x, g, _ = inputs((2, 7, 5), torch.float32).values()
    with pytest.raises(ValueError, match=r"g has shape \(2, 6, 5\), expected \(2, 7, 5\)"):
        linear_recurrence(x, g[:, :6])
    with pytest.raises(ImplementationError, match="float64"):
        linear_recurrence(x.double(), g.double(), implementation="triton")
