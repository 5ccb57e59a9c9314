"""The selective scan: every implementation equals the recurrence in float64, forward and backward."""

import pytest
import torch
from torch import Tensor

from kernels.dispatch import ImplementationError
from kernels.selective_scan import selective_scan, torch_chunked

NAMES = ("u", "delta", "A", "B", "C", "initial_state")
# batch, time, channels, state_dim: one step; within, at and across chunks of 32 steps; nothing a power of two.
SHAPES = [(1, 1, 1, 1), (2, 7, 5, 3), (1, 32, 4, 16), (1, 67, 7, 3)]


def inputs(shape: tuple[int, int, int, int], dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    batch, time, channels, state_dim = shape
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64)  # noqa: E731
    tensors = {
        "u": normal(batch, time, channels),
        "delta": torch.nn.functional.softplus(normal(batch, time, channels) - 2),
        "A": -torch.exp(normal(channels, state_dim)),
        "B": normal(batch, time, state_dim),
        "C": normal(batch, time, state_dim),
        "initial_state": normal(batch, channels, state_dim),
    }
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def some_resets(shape: tuple[int, int, int, int]) -> Tensor:
    return torch.rand(shape[0], shape[1], generator=torch.Generator().manual_seed(7)) < 0.15


def outputs_and_gradients(tensors: dict[str, Tensor], resets: Tensor | None, implementation: str) -> dict[str, Tensor]:
    """y, final state, and the gradient of each input under a fixed random loss of both outputs."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    y, state = selective_scan(**leaves, resets=resets, implementation=implementation)
    generator = torch.Generator().manual_seed(3)
    grad_y, grad_state = (torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) for x in (y, state))
    gradients = torch.autograd.grad((y, state), tuple(leaves.values()), (grad_y, grad_state))
    named = dict(zip((f"d{name}" for name in NAMES), gradients, strict=True))
    return {"y": y.detach(), "final_state": state.detach()} | named


def assert_relatively_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    for name, value in expected.items():
        error = (actual[name].double() - value.double()).norm() / value.double().norm().clamp_min(1e-30)
        assert error < tolerance, f"{name}: relative error {error:.2e} exceeds {tolerance:.0e}"


@pytest.mark.parametrize("with_resets", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("implementation", ["reference", "torch", "numba", "triton"])
def test_float32_equals_the_float64_recurrence(implementation: str, shape: tuple, with_resets: bool) -> None:
    resets = some_resets(shape) if with_resets else None
    expected = outputs_and_gradients(inputs(shape, torch.float64), resets, "reference")
    actual = outputs_and_gradients(inputs(shape, torch.float32), resets, implementation)
    assert_relatively_close(actual, expected, 20 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("implementation", ["reference", "torch", "numba", "triton"])
def test_nan_and_infinity_stay_in_their_sequence_and_are_not_lost(implementation: str, bad: float) -> None:
    tensors = inputs((2, 7, 5, 3), torch.float32)
    tensors["initial_state"].zero_()
    clean, _ = selective_scan(**tensors, implementation=implementation)
    u = tensors["u"].clone()
    u[1, 5, 3] = bad
    y, _ = selective_scan(**(tensors | {"u": u}), implementation=implementation)
    assert torch.equal(y[0], clean[0])
    assert not torch.isfinite(y[1, 5:, 3]).any()
    rates = tensors["A"].clone()
    rates[3, 1] = bad
    y, _ = selective_scan(**(tensors | {"A": rates}), implementation=implementation)
    assert not torch.isfinite(y[..., 3]).any()
    assert torch.isfinite(y[..., :3]).all()


@pytest.mark.parametrize("chunk_elements", [1, 2**18])
def test_chunked_equals_the_recurrence_in_float64_for_any_chunk(
    chunk_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_chunked, "CHUNK_ELEMENTS", chunk_elements)
    shape = (1, 67, 7, 3)
    expected = outputs_and_gradients(inputs(shape, torch.float64), some_resets(shape), "reference")
    actual = outputs_and_gradients(inputs(shape, torch.float64), some_resets(shape), "torch")
    assert_relatively_close(actual, expected, 1e-13)


@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_bfloat16_inputs_are_scanned_in_float32(implementation: str) -> None:
    shape = (1, 67, 7, 3)
    rounded = inputs(shape, torch.bfloat16)
    expected = outputs_and_gradients({name: tensor.double() for name, tensor in rounded.items()}, None, "reference")
    actual = outputs_and_gradients(rounded, None, implementation)
    assert actual["final_state"].dtype == torch.float32
    assert_relatively_close(actual, expected, torch.finfo(torch.bfloat16).eps)


def test_backward_agrees_with_finite_differences() -> None:
    tensors = [tensor.requires_grad_() for tensor in inputs((2, 5, 3, 2), torch.float64).values()]
    resets = some_resets((2, 5, 3, 2))

    def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return selective_scan(u, delta, A, B, C, initial_state=state, resets=resets, implementation="torch")

    assert torch.autograd.gradcheck(scan, tensors)


@pytest.mark.parametrize("implementation", ["torch", "numba", "triton"])
def test_two_halves_equal_the_whole(implementation: str) -> None:
    tensors = inputs((1, 67, 7, 3), torch.float32)
    y, final = selective_scan(**tensors, implementation=implementation)
    first = {name: x[:, :30] if name in ("u", "delta", "B", "C") else x for name, x in tensors.items()}
    second = {name: x[:, 30:] if name in ("u", "delta", "B", "C") else x for name, x in tensors.items()}
    y1, middle = selective_scan(**first, implementation=implementation)
    y2, end = selective_scan(**(second | {"initial_state": middle}), implementation=implementation)
    torch.testing.assert_close(torch.cat((y1, y2), dim=1), y, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(end, final, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", ["torch", "numba", "triton"])
def test_operator_obeys_the_rules_of_torch_library(implementation: str) -> None:
    tensors = tuple(x.requires_grad_() for x in inputs((2, 7, 5, 3), torch.float32).values())
    resets, ops = some_resets((2, 7, 5, 3)), torch.ops.scaling
    torch.library.opcheck(ops.selective_scan.default, (*tensors, resets, implementation))
    *operands, state = (tensor.detach() for tensor in tensors)
    y, final, starts = ops.selective_scan(*operands, state, resets, implementation)
    # What compiled code is told of the gradients' layout, it relies on.
    torch.library.opcheck(ops.selective_scan_backward.default, (y, final, *operands, resets, starts, implementation))


def test_wrong_shapes_are_named() -> None:
    tensors = inputs((2, 7, 5, 3), torch.float32)
    with pytest.raises(ValueError, match=r"delta has shape \(2, 6, 5\), expected \(2, 7, 5\)"):
        selective_scan(**(tensors | {"delta": tensors["delta"][:, :6]}))
    with pytest.raises(ImplementationError, match="float64"):
        selective_scan(**inputs((1, 2, 3, 4), torch.float64), implementation="triton")
