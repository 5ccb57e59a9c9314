"""The long convolution: transforms equal the sum over taps in float64, and documents stay apart to the last bit."""

import pytest
import torch
from torch import Tensor

from kernels.long_convolution import long_convolution

# time, taps: one token; fewer and more taps than tokens; odd lengths within one span and over several.
SHAPES = [(1, 1), (7, 3), (16, 40), (67, 67), (203, 64)]


def inputs(time: int, taps: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, time, 5), (taps, 5))
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def results(tensors: list[Tensor], resets: Tensor | None, implementation: str) -> list[Tensor]:
    """The result, and the gradients of x and of the filters."""
    y = long_convolution(*tensors, resets=resets, implementation=implementation)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), tensors)]


@pytest.mark.parametrize("implementation", ["torch", "numba"])
@pytest.mark.parametrize("with_resets", [False, True])
@pytest.mark.parametrize(("time", "taps"), SHAPES)
def test_float32_equals_the_sum_over_taps_in_float64(
    time: int, taps: int, with_resets: bool, implementation: str
) -> None:
    resets = torch.rand(2, time, generator=torch.Generator().manual_seed(7)) < 0.1 if with_resets else None
    expected = results(inputs(time, taps, torch.float64), resets, "reference")
    actual_results = results(inputs(time, taps, torch.float32), resets, implementation)
    for actual, exact in zip(actual_results, expected, strict=True):
        assert (actual - exact).norm() <= 10 * torch.finfo(torch.float32).eps * exact.norm()


@pytest.mark.parametrize("implementation", ["torch", "numba"])
def test_nothing_of_a_document_reaches_another_not_even_by_rounding(implementation: str) -> None:
    x, filters = inputs(203, 203, torch.float32)
    resets = torch.zeros(2, 203, dtype=torch.bool)
    resets[0, 50] = resets[0, 120] = resets[1, 7] = True
    y = long_convolution(x, filters, resets=resets, implementation=implementation)
    changed = x.detach().clone()
    changed[0, :50] *= 1e6
    changed[0, 120:] *= -1e6
    changed[1, :7] *= 1e6
    again = long_convolution(changed, filters, resets=resets, implementation=implementation)
    assert torch.equal(again[0, 50:120], y[0, 50:120])
    assert torch.equal(again[1, 7:], y[1, 7:])


def test_wrong_shapes_are_named() -> None:
    x, filters = inputs(7, 3, torch.float32)
    with pytest.raises(ValueError, match=r"filters have shape \(3, 4\) and x \(2, 7, 5\), expected \(taps, 5\)"):
        long_convolution(x, filters[:, :4])
