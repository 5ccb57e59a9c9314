"""The bounded gate: exact next to both ends of its range, and its gradients those of the definition in float64."""

import pytest
import torch
from torch import Tensor

from kernels.bounded_gate import bounded_gate

LOGITS = (-60.0, -16.0, -4.0, -0.5, 0.0, 0.5, 4.0, 16.0, 40.0)


@pytest.mark.parametrize("implementation", ["reference", "torch", "numba"])
@pytest.mark.parametrize("bound", [0.0, 0.3, 0.9])
def test_what_is_kept_and_what_is_let_in_are_exact_at_both_ends(bound: float, implementation: str) -> None:
    logits = torch.tensor(LOGITS)[:, None].expand(-1, 3)
    wide = logits.double()
    # By differences in float64 where these lose nothing, else by what a gate next to 1 lets in.
    exact_rest = (1 - bound) / (1 + wide.exp())
    kept = bound + (1 - bound) / (1 + (-wide).exp())
    exact = torch.where(exact_rest < 0.5, torch.log1p(-exact_rest), kept.log())
    kept, rest = bounded_gate(logits, torch.full((3,), bound), implementation=implementation)
    torch.testing.assert_close(kept.double(), exact, rtol=1e-6, atol=0)
    torch.testing.assert_close(rest.double(), exact_rest, rtol=1e-6, atol=0)


@pytest.mark.parametrize("implementation", ["reference", "torch"])
def test_in_bfloat16_a_gate_next_to_1_still_lets_in(implementation: str) -> None:
    rest = bounded_gate(torch.tensor([4.0]).bfloat16(), torch.tensor([0.9]), implementation=implementation)[1]
    torch.testing.assert_close(rest.float(), 0.1 * torch.sigmoid(torch.tensor([-4.0])), rtol=1e-2, atol=0)


@pytest.mark.parametrize("implementation", ["torch", "numba"])
def test_gradients_are_those_of_the_definition_in_float64(implementation: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(2, 37, 20, generator=generator)
    bound = torch.rand(20, generator=generator) * 0.95
    weights = torch.randn(2, *logits.shape, generator=generator)

    def gradients(dtype: torch.dtype, implementation: str) -> tuple[Tensor, ...]:
        inputs = [one.to(dtype).requires_grad_() for one in (logits, bound)]
        kept, rest = bounded_gate(*inputs, implementation=implementation)
        loss = (weights[0].to(dtype) * kept + weights[1].to(dtype) * rest).sum()
        return torch.autograd.grad(loss, inputs)

    expected = gradients(torch.float64, "reference")
    for actual, exact in zip(gradients(torch.float32, implementation), expected, strict=True):
        assert (actual - exact).norm() <= 10 * torch.finfo(torch.float32).eps * exact.norm()


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"bound has shape \(4,\), expected \(5,\)"):
        bounded_gate(torch.ones(2, 5), torch.ones(4))
