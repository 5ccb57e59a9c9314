"""Linear attention with a decay per key channel: every implementation equals the recurrence in float64."""

import pytest
import torch
from torch import Tensor

from kernels.dispatch import ImplementationError
from kernels.gated_linear_attention import gated_linear_attention

NAMES = ("q", "k", "v", "g", "state", "bonus")
# batch, time, heads, key_dim, value_dim: one token; within, at and across pieces of 16 and chunks of 64.
SHAPES = [(1, 1, 1, 1, 1), (2, 7, 2, 3, 5), (1, 83, 2, 5, 3)]
READS = ["after", "bonus"]


def inputs(shape: tuple[int, ...], read: str, dtype: torch.dtype, decay: float = 0.5) -> dict[str, Tensor]:
    """Decays from slow to fast, one channel forgetting all: their sum over a chunk is far below -87 in each."""
    batch, time, heads, key_dim, value_dim = shape
    generator = torch.Generator().manual_seed(0)
    normal = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64)  # noqa: E731
    tensors = {
        "q": normal(batch, time, heads, key_dim),
        "k": normal(batch, time, heads, key_dim),
        "v": normal(batch, time, heads, value_dim),
        "g": -torch.exp(2 * normal(batch, time, heads, key_dim) - 1) - decay * 50 * (torch.arange(key_dim) == 2),
        "state": normal(batch, heads, key_dim, value_dim),
    }
    if read == "bonus":
        tensors["bonus"] = normal(heads, key_dim)
    return {name: tensor.float().to(dtype) for name, tensor in tensors.items()}


def some_resets(shape: tuple[int, ...]) -> Tensor:
    return torch.rand(shape[:2], generator=torch.Generator().manual_seed(7)) < 0.07


def run(tensors: dict[str, Tensor], resets: Tensor | None, implementation: str) -> tuple[Tensor, Tensor]:
    return gated_linear_attention(
        *(tensors[name] for name in "qkvg"), bonus=tensors.get("bonus"), initial_state=tensors["state"], resets=resets,
        implementation=implementation,
    )  # fmt: skip


def outputs_and_gradients(tensors: dict[str, Tensor], resets: Tensor | None, implementation: str) -> dict[str, Tensor]:
    """Outputs, final state, and the gradient of each input under a fixed random loss of both."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    o, final = run(leaves, resets, implementation)
    generator = torch.Generator().manual_seed(3)
    loss = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) for x in (o, final)]
    gradients = torch.autograd.grad((o, final), list(leaves.values()), loss, allow_unused=True)
    named = {f"d{name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
    return {"o": o.detach(), "final": final.detach()} | named


def assert_relatively_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    for name, value in expected.items():
        error = (actual[name].double() - value.double()).norm() / value.double().norm().clamp_min(1e-30)
        assert error < tolerance, f"{name}: relative error {error:.2e} exceeds {tolerance:.0e}"


@pytest.mark.parametrize("with_resets", [False, True])
@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("implementation", ["torch", "numba"])
def test_float32_equals_the_float64_recurrence(implementation: str, shape: tuple, read: str, with_resets: bool) -> None:
    resets = some_resets(shape) if with_resets else None
    expected = outputs_and_gradients(inputs(shape, read, torch.float64), resets, "reference")
    actual = outputs_and_gradients(inputs(shape, read, torch.float32), resets, implementation)
    assert_relatively_close(actual, expected, 20 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("time", [1, 66])
def test_kernels_for_gpus_equal_the_float64_recurrence(time: int, read: str) -> None:
    """In Triton's interpreter: one token, and two chunks of which the second is not full."""
    shape = (1, time, 1, 3, 2)
    expected = outputs_and_gradients(inputs(shape, read, torch.float64), some_resets(shape), "reference")
    actual = outputs_and_gradients(inputs(shape, read, torch.float32), some_resets(shape), "triton")
    assert_relatively_close(actual, expected, 20 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("read", READS)
def test_chunked_equals_the_recurrence_in_float64(read: str) -> None:
    shape = SHAPES[-1]
    tensors, resets = inputs(shape, read, torch.float64), some_resets(shape)
    expected = outputs_and_gradients(tensors, resets, "reference")
    assert_relatively_close(outputs_and_gradients(tensors, resets, "torch"), expected, 1e-13)


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("implementation", ["torch", "numba"])
def test_two_parts_equal_the_whole(implementation: str, read: str) -> None:
    tensors = inputs((2, 70, 2, 5, 3), read, torch.float32)
    whole, final = run(tensors, None, implementation)
    first, second = (
        {name: tensor[:, part] if name in "qkvg" else tensor for name, tensor in tensors.items()}
        for part in (slice(0, 23), slice(23, None))
    )
    o1, middle = run(first, None, implementation)
    o2, last = run(second | {"state": middle}, None, implementation)
    torch.testing.assert_close(torch.cat((o1, o2), dim=1), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(last, final, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", ["torch", "numba"])
def test_a_bonus_of_zero_is_the_read_after_the_update_of_the_query_one_step_later(implementation: str) -> None:
    tensors = inputs((1, 20, 2, 4, 3), "bonus", torch.float32)
    before, _ = run(tensors | {"bonus": torch.zeros(2, 4)}, None, implementation)
    rolled = {name: tensor for name, tensor in tensors.items() if name != "bonus"} | {"q": tensors["q"].roll(-1, 1)}
    after, _ = run(rolled, None, implementation)
    torch.testing.assert_close(before[:, 1:], after[:, :-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("implementation", ["torch", "numba"])
def test_operator_obeys_the_rules_of_torch_library(implementation: str, read: str) -> None:
    tensors = inputs((2, 5, 1, 3, 2), read, torch.float32)
    leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    arguments = (*(leaves[name] for name in "qkvg"), leaves.get("bonus"), leaves["state"], some_resets((2, 5)))
    torch.library.opcheck(torch.ops.scaling.gated_linear_attention.default, (*arguments, implementation))


def test_a_chunk_of_bfloat16_is_as_exact_as_its_inputs() -> None:
    """Inputs rounded to bfloat16 and computed in float64 are off by as much as the operator on them."""
    shape = (1, 128, 1, 16, 16)
    exact = inputs(shape, "after", torch.float64)
    rounded = {name: t.bfloat16() if name in "qkv" else t.float() for name, t in exact.items()}
    expected, _ = run(exact, None, "reference")
    bound = (run({name: t.double() for name, t in rounded.items()}, None, "reference")[0] - expected).norm()
    assert (run(rounded, None, "torch")[0].double() - expected).norm() < 1.5 * bound


def test_wrong_shapes_are_named() -> None:
    tensors = inputs((2, 7, 2, 3, 5), "bonus", torch.float32)
    with pytest.raises(ValueError, match=r"g has shape \(2, 6, 2, 3\), expected \(2, 7, 2, 3\)"):
        run(tensors | {"g": tensors["g"][:, :6]}, None, "auto")
    with pytest.raises(ValueError, match=r"bonus has shape \(3,\), expected \(2, 3\)"):
        run(tensors | {"bonus": tensors["bonus"][0]}, None, "auto")
    with pytest.raises(ImplementationError, match="float64"):
        run(inputs((1, 2, 1, 3, 3), "after", torch.float64), None, "numba")
