"""WKV: every implementation equals the recurrence in float64, forward and backward."""

import pytest
import torch
from torch import Tensor

from kernels.dispatch import ImplementationError
from kernels.wkv import WKVState, torch_chunked, wkv

NAMES = ("k", "v", "decay", "bonus", "a", "b")
# batch, time, channels: one step; within, at and across chunks of 32 steps; nothing a power of two.
SHAPES = [(1, 1, 1), (2, 7, 5), (1, 32, 4), (2, 67, 7)]


def inputs(shape: tuple[int, int, int], dtype: torch.dtype, spread: float = 2.0) -> dict[str, Tensor]:
    """Keys spread far enough that sums change by many orders of magnitude within a chunk."""
    batch, time, channels = shape
    generator = torch.Generator().manual_seed(0)
    normal = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64)  # noqa: E731
    tensors = {
        "k": spread * normal(batch, time, channels),
        "v": normal(batch, time, channels),
        "decay": -torch.exp(normal(channels) - 1),
        "bonus": normal(channels),
        "a": normal(batch, channels),
        "b": normal(batch, channels).exp(),
        "m": normal(batch, channels),
    }
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def some_resets(shape: tuple[int, int, int]) -> Tensor:
    return torch.rand(shape[0], shape[1], generator=torch.Generator().manual_seed(7)) < 0.15


def run(tensors: dict[str, Tensor], resets: Tensor | None, implementation: str) -> tuple[Tensor, WKVState]:
    state = WKVState(tensors["a"], tensors["b"], tensors["m"])
    arguments = (tensors[name] for name in ("k", "v", "decay", "bonus"))
    return wkv(*arguments, initial_state=state, resets=resets, implementation=implementation)


def outputs_and_gradients(tensors: dict[str, Tensor], resets: Tensor | None, implementation: str) -> dict[str, Tensor]:
    """y, the final sums in true units, and the gradient of each input under a fixed random loss of them all."""
    leaves = {name: tensor.clone().requires_grad_(name in NAMES) for name, tensor in tensors.items()}
    y, state = run(leaves, resets, implementation)
    a, b = state.a * state.m.exp(), state.b * state.m.exp()
    generator = torch.Generator().manual_seed(3)
    loss = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) for x in (y, a, b)]
    gradients = torch.autograd.grad((y, a, b), tuple(leaves[name] for name in NAMES), loss)
    named = dict(zip((f"d{name}" for name in NAMES), gradients, strict=True))
    return {"y": y.detach(), "final_a": a.detach(), "final_b": b.detach()} | named


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


@pytest.mark.parametrize("implementation", ["reference", "torch", "numba", "triton"])
def test_of_one_token_the_gradient_for_the_decay_is_zero(implementation: str) -> None:
    tensors = inputs((2, 1, 3), torch.float32)
    tensors["decay"].requires_grad_()
    y, _ = run(tensors, None, implementation)
    (gradient,) = torch.autograd.grad(y.sum(), tensors["decay"])
    assert not gradient.any()


@pytest.mark.parametrize("implementation", ["torch", "numba", "triton"])
def test_keys_beyond_the_range_of_exp_stay_exact(implementation: str) -> None:
    """exp(100) overflows float32, exp(-100) underflows: the running scale keeps both."""
    shape = (1, 67, 3)
    tensors = inputs(shape, torch.float64, spread=60.0)
    expected, _ = run(tensors, None, "reference")
    actual, _ = run({name: tensor.float() for name, tensor in tensors.items()}, None, implementation)
    # Keys of size 200 rounded to float32 are off by 200 eps / 2, and so, relatively, are their exponentials.
    assert (actual.double() - expected).norm() / expected.norm() < 200 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("implementation", ["reference", "torch", "numba", "triton"])
def test_nan_and_infinity_stay_in_their_sequence_and_are_not_lost(implementation: str, bad: float) -> None:
    tensors = inputs((2, 7, 5), torch.float32)
    clean, _ = run(tensors, None, implementation)
    keys = tensors["k"].clone()
    keys[1, 5, 3] = bad
    spoiled = outputs_and_gradients(tensors | {"k": keys}, None, implementation)
    assert torch.equal(spoiled["y"][0], clean[0])
    assert not torch.isfinite(spoiled["y"][1, 5:, 3]).any()
    assert not torch.isfinite(spoiled["dk"][1, :, 3]).any()
    for name, first in (("decay", 1), ("bonus", 0)):
        spoiled = tensors | {name: tensors[name].index_fill(0, torch.tensor([3]), bad)}
        y, _ = run(spoiled, None, implementation)
        finite = torch.isfinite(y)
        assert not finite[:, first:, 3].any()
        assert finite[..., :3].all()


@pytest.mark.parametrize("segment_elements", [1, 2**18])
def test_chunked_equals_the_recurrence_in_float64_for_any_segment(
    segment_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_chunked, "SEGMENT_ELEMENTS", segment_elements)
    shape = (2, 67, 7)
    expected = outputs_and_gradients(inputs(shape, torch.float64), some_resets(shape), "reference")
    actual = outputs_and_gradients(inputs(shape, torch.float64), some_resets(shape), "torch")
    assert_relatively_close(actual, expected, 1e-13)


def test_backward_agrees_with_finite_differences() -> None:
    tensors = inputs((2, 5, 3), torch.float64)
    m, resets = tensors.pop("m"), some_resets((2, 5, 3))

    def operate(k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        y, state = wkv(k, v, decay, bonus, initial_state=WKVState(a, b, m), resets=resets, implementation="torch")
        return y, state.a * state.m.exp(), state.b * state.m.exp()

    # Sums in true units: the scale they are kept at jumps from element to element, and cancels.
    assert torch.autograd.gradcheck(operate, [tensor.requires_grad_() for tensor in tensors.values()])


@pytest.mark.parametrize("implementation", ["torch", "numba", "triton"])
def test_two_halves_equal_the_whole(implementation: str) -> None:
    tensors = inputs((2, 67, 7), torch.float32)
    whole, _ = run(tensors, None, implementation)
    first = tensors | {"k": tensors["k"][:, :30], "v": tensors["v"][:, :30]}
    second = tensors | {"k": tensors["k"][:, 30:], "v": tensors["v"][:, 30:]}
    y1, middle = run(first, None, implementation)
    y2, _ = run(second | middle._asdict(), None, implementation)
    torch.testing.assert_close(torch.cat((y1, y2), dim=1), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", ["torch", "numba", "triton"])
def test_operator_obeys_the_rules_of_torch_library(implementation: str) -> None:
    tensors = inputs((2, 5, 3), torch.float32)
    state = torch.stack((tensors["a"], tensors["b"], tensors["m"])).requires_grad_()
    arguments = [tensors[name].requires_grad_() for name in ("k", "v", "decay", "bonus")]
    torch.library.opcheck(torch.ops.scaling.wkv.default, (*arguments, state, some_resets((2, 5, 3)), implementation))


def test_wrong_shapes_are_named() -> None:
    tensors = inputs((2, 7, 5), torch.float32)
    with pytest.raises(ValueError, match=r"v has shape \(2, 6, 5\), expected \(2, 7, 5\)"):
        run(tensors | {"v": tensors["v"][:, :6]}, None, "auto")
    with pytest.raises(ImplementationError, match="float64"):
        run(inputs((1, 2, 3), torch.float64), None, "triton")
