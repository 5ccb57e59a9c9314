"""The generalised delta rule: every implementation equals the recurrence in float64, and does what it is for."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.delta_rule import delta_rule
from kernels.gated_linear_attention import gated_linear_attention

# batch, time, heads, key_dim, value_dim: one token; within, at and across pieces of 16 and chunks of 64.
SHAPES = [(1, 1, 1, 1, 1), (2, 7, 2, 3, 5), (1, 83, 2, 5, 3)]


def inputs(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Tensor]:
    """Decays from slow to fast, one channel forgetting all; removals that leave the state bounded."""
    batch, time, heads, key_dim, value_dim = shape
    generator = torch.Generator().manual_seed(0)
    normal = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64)  # noqa: E731
    keys = F.normalize(normal(batch, time, heads, key_dim), dim=-1)
    tensors = {
        "q": normal(batch, time, heads, key_dim),
        "k": normal(batch, time, heads, key_dim),
        "v": normal(batch, time, heads, value_dim),
        "a": -keys,
        "b": keys * torch.sigmoid(normal(batch, time, heads, 1)),
        "g": -torch.exp(2 * normal(batch, time, heads, key_dim) - 2) - 25 * (torch.arange(key_dim) == 2),
        "state": normal(batch, heads, key_dim, value_dim),
    }
    return {name: tensor.float().to(dtype) for name, tensor in tensors.items()}


def results(tensors: dict[str, Tensor], resets: Tensor | None, implementation: str) -> dict[str, Tensor]:
    """Outputs, final state, and the gradient of each input under a fixed random loss of both."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    *arguments, state = leaves.values()
    o, final = delta_rule(*arguments, initial_state=state, resets=resets, implementation=implementation)
    generator = torch.Generator().manual_seed(3)
    loss = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) for x in (o, final)]
    gradients = torch.autograd.grad((o, final), list(leaves.values()), loss)
    return {"o": o.detach(), "final": final.detach()} | dict(zip(leaves, gradients, strict=True))


def some_resets(shape: tuple[int, ...]) -> Tensor:
    return torch.rand(shape[:2], generator=torch.Generator().manual_seed(7)) < 0.07


def assert_relatively_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    for name, value in expected.items():
        error = (actual[name].double() - value.double()).norm() / value.double().norm().clamp_min(1e-30)
        assert error < tolerance, f"{name}: relative error {error:.2e} exceeds {tolerance:.0e}"


@pytest.mark.parametrize("with_resets", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("implementation", ["torch", "numba"])
def test_float32_equals_the_float64_recurrence(implementation: str, shape: tuple, with_resets: bool) -> None:
    resets = some_resets(shape) if with_resets else None
    expected = results(inputs(shape, torch.float64), resets, "reference")
    actual = results(inputs(shape, torch.float32), resets, implementation)
    assert_relatively_close(actual, expected, 30 * torch.finfo(torch.float32).eps)


def test_chunked_equals_the_recurrence_in_float64() -> None:
    tensors, resets = inputs(SHAPES[-1], torch.float64), some_resets(SHAPES[-1])
    assert_relatively_close(results(tensors, resets, "torch"), results(tensors, resets, "reference"), 1e-13)


def test_kernels_for_gpus_equal_the_float64_recurrence() -> None:
    shape = (1, 20, 1, 3, 2)
    expected = results(inputs(shape, torch.float64), some_resets(shape), "reference")
    actual = results(inputs(shape, torch.float32), some_resets(shape), "triton")
    assert_relatively_close(actual, expected, 30 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("implementation", ["torch", "numba"])
def test_keys_that_resemble_each_other_are_told_apart_to_the_last_digits(implementation: str) -> None:
    """Cosines of 0.9 and steps of 1 over a whole chunk: an inverse by powers is off by 1e7 here."""
    generator = torch.Generator().manual_seed(0)
    common = F.normalize(torch.randn(1, 1, 1, 32, generator=generator), dim=-1)
    own = F.normalize(torch.randn(1, 64, 1, 32, generator=generator), dim=-1)
    own = F.normalize(own - (own * common).sum(-1, keepdim=True) * common, dim=-1)
    k = 0.9**0.5 * common + 0.1**0.5 * own
    v = torch.randn(1, 64, 1, 8, generator=generator)
    arguments = (k, k, v, -k, k, torch.zeros_like(k))
    exact, _ = delta_rule(*(x.double() for x in arguments), implementation="reference")
    o, _ = delta_rule(*arguments, implementation=implementation)  # type: ignore[arg-type]
    assert (o - exact).norm() < 2e-6 * exact.norm()


@pytest.mark.parametrize("implementation", ["torch", "numba"])
def test_a_second_write_replaces_the_first_and_other_keys_keep_theirs(implementation: str) -> None:
    keys = torch.eye(4)[[0, 1, 0, 2]][None, :, None]
    values = torch.randn(1, 4, 1, 3, generator=torch.Generator().manual_seed(0))
    _, state = delta_rule(
        keys,
        keys,
        values,
        -keys,
        keys,
        torch.zeros_like(keys),
        implementation=implementation,  # type: ignore[arg-type]
    )
    torch.testing.assert_close(state[0, 0, :3], values[0, [2, 1, 3], 0], rtol=1e-6, atol=1e-6)


def test_without_removals_it_is_linear_attention() -> None:
    t = inputs((1, 40, 2, 4, 3), torch.float64)
    none = torch.zeros_like(t["a"])
    o, state = delta_rule(t["q"], t["k"], t["v"], none, none, t["g"], initial_state=t["state"])
    expected = gated_linear_attention(t["q"], t["k"], t["v"], t["g"], initial_state=t["state"])
    torch.testing.assert_close((o, state), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("implementation", ["torch", "numba"])
def test_operator_obeys_the_rules_of_torch_library(implementation: str) -> None:
    arguments = [tensor.requires_grad_() for tensor in inputs((2, 5, 1, 3, 2), torch.float32).values()]
    torch.library.opcheck(torch.ops.scaling.delta_rule.default, (*arguments, some_resets((2, 5)), implementation))


def test_wrong_shapes_are_named() -> None:
    *t, _ = inputs((2, 7, 2, 3, 5), torch.float32).values()
    with pytest.raises(ValueError, match=r"b has shape \(2, 6, 2, 3\), expected \(2, 7, 2, 3\)"):
        delta_rule(*t[:4], t[4][:, :6], t[5])
