"""mLSTM and sLSTM where float32 and half precision are hard: no form may lose more than the recurrence itself does."""

import pytest
import torch
from xlstm_problems import FLOAT32_BOUND, mlstm_problem, relative_error, run, slstm_problem

from kernels.mlstm import mlstm
from kernels.slstm import slstm

ROUNDING = 2.0**-24
"""Relative error of one rounding to float32: what even a result that is computed exactly has."""


def error_over_sequences(actual: torch.Tensor, expected: torch.Tensor, batch: int) -> float:
    """Root mean square of the relative errors of the sequences: no single one, by luck or by its scale, decides."""
    per_sequence = expected.shape[0] == batch
    actual, expected = (t.reshape(batch if per_sequence else 1, -1) for t in (actual, expected))
    errors = (actual - expected).norm(dim=1) / expected.norm(dim=1).clamp_min(1e-30)
    return float(errors.square().mean().sqrt())


def assert_no_less_exact_than_the_recurrence(operator, tensors, state, exact: str = "reference") -> None:  # type: ignore[no-untyped-def]
    """Finite, and at most four times as far from the recurrence in float64 as the recurrence in float32 is."""
    batch = tensors[0].shape[0]
    expected = run(operator, tensors, state, exact, torch.float64)
    plain = run(operator, tensors, state, "reference", torch.float32)
    for implementation in ("torch", "numba"):
        fast = run(operator, tensors, state, implementation, torch.float32)
        for place, (a, b, c) in enumerate(zip(expected, plain, fast, strict=True)):
            assert torch.isfinite(c).all(), (implementation, place)
            allowed = 4 * max(error_over_sequences(b, a, batch), ROUNDING)
            assert error_over_sequences(c, a, batch) <= allowed, (implementation, place)


EXTREME = [(0.0, -30.0), (0.0, 30.0), (30.0, 0.0), (-30.0, 2.0), (-30.0, 30.0), (30.0, -30.0), (-30.0, -30.0)]


@pytest.mark.parametrize(("input_bias", "forget_bias"), EXTREME)
@pytest.mark.parametrize("operator", [mlstm, slstm])
def test_extreme_gates_lose_no_more_than_the_recurrence_does(operator, input_bias: float, forget_bias: float) -> None:  # type: ignore[no-untyped-def]
    if operator is mlstm:
        tensors, state = mlstm_problem(16, 2, 100, 8, 12)
        tensors[3] = 5 * tensors[3] + input_bias
        tensors[4] = 5 * (tensors[4] - 3) + forget_bias
    else:
        tensors, state = slstm_problem(16, 100, 2, 8)
        tensors[0][:, :, 0] = 5 * tensors[0][:, :, 0] + input_bias
        tensors[0][:, :, 1] = 5 * tensors[0][:, :, 1] + forget_bias
    assert_no_less_exact_than_the_recurrence(operator, tensors, state)


def test_the_slstms_recurrence_has_gradients_at_input_gates_of_any_size() -> None:
    tensors, _ = slstm_problem(2, 5, 2, 8)
    tensors[0][:, ::2, 0], tensors[0][:, 1::2, 0] = -100.0, 100.0
    gates, recurrent = (tensor.float().requires_grad_() for tensor in tensors)
    h, _ = slstm(gates, recurrent, implementation="reference")
    assert all(torch.isfinite(found).all() for found in torch.autograd.grad(h.sum(), (gates, recurrent)))


@pytest.mark.parametrize("operator", [mlstm, slstm])
def test_a_vanishing_normaliser_loses_no_more_than_the_recurrence_does(operator) -> None:  # type: ignore[no-untyped-def]
    if operator is mlstm:
        tensors, state = mlstm_problem(16, 2, 100, 8, 12)
        tensors[0] = 1e-4 * tensors[0]
        tensors[3] = tensors[3] - 30
    else:
        tensors, state = slstm_problem(16, 100, 2, 8)
        tensors[0][:, :, :2] -= 30
    state = type(state)(*(torch.zeros_like(part) for part in state))
    assert_no_less_exact_than_the_recurrence(operator, tensors, state)


@pytest.mark.slow
@pytest.mark.parametrize("operator", [mlstm, slstm])
def test_16384_tokens_lose_no_more_than_the_recurrence_does_forward_and_backward(operator) -> None:  # type: ignore[no-untyped-def]
    tensors, state = mlstm_problem(2, 1, 16_384, 2, 2) if operator is mlstm else slstm_problem(2, 16_384, 1, 2)
    if operator is slstm:
        tensors[0][:, :, 1] += 5  # open forget gates, as the deeper blocks have
    # In float64 the fast forms are the recurrence to 1e-10, as shown above, and much sooner done.
    assert_no_less_exact_than_the_recurrence(operator, tensors, state, exact="torch")


@pytest.mark.parametrize("implementation", ["torch", "numba"])
def test_what_a_reset_forgets_may_be_of_any_size(implementation: str) -> None:
    tensors, state = mlstm_problem(2, 2, 40, 8, 12)
    resets = torch.arange(40).expand(2, 40) == 20
    tensors[3] = tensors[3] + torch.where(resets.cumsum(1) > 0, 0.0, 90.0)[:, None]
    expected = run(mlstm, tensors, state, "reference", torch.float64, resets=resets)
    actual = run(mlstm, tensors, state, implementation, torch.float32, resets=resets, chunk_size=16)
    for a, b in zip(expected[:1], actual[:1], strict=True):
        assert relative_error(b, a) < 4 * FLOAT32_BOUND
    assert all(torch.isfinite(part).all() for part in actual)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("implementation", ["reference", "torch", "numba", "triton"])
def test_nan_and_infinity_stay_in_their_sequence(bad: float, implementation: str) -> None:
    tensors, _ = mlstm_problem(3, 2, 20, 16, 16)
    tensors = [t.float() for t in tensors]
    clean, _ = mlstm(*tensors, implementation=implementation)
    for tensor in tensors:
        tensor[1, 0, 5] = bad
    spoiled, _ = mlstm(*tensors, implementation=implementation)
    assert torch.equal(spoiled[[0, 2]], clean[[0, 2]])
    gates, recurrent = (t.float() for t in slstm_problem(3, 5, 2, 16)[0])
    clean, _ = slstm(gates, recurrent, implementation=implementation)
    gates[1, 4] = bad
    spoiled, _ = slstm(gates, recurrent, implementation=implementation)
    assert torch.equal(spoiled[[0, 2]], clean[[0, 2]])


# Triton's interpreter multiplies the bits of bfloat16 as integers in tl.dot, so float16 stands for it there.
@pytest.mark.parametrize(("implementation", "half"), [("torch", torch.bfloat16), ("triton", torch.float16)])
def test_half_precision_loses_no_more_than_a_hundredth(implementation: str, half: torch.dtype) -> None:
    (q, k, v, i, f), _ = mlstm_problem(1, 2, 40, 16, 32)
    # Positive products: where drawn signs cancel in the denominator, rounding the inputs alone loses more.
    q, k, v = (t.abs().to(half) for t in (q, k, v))
    gates = [i.float(), f.float()]

    def outputs_and_gradients(by: str, dtype: torch.dtype | None) -> list[torch.Tensor]:
        inputs = [t.to(dtype or t.dtype).requires_grad_() for t in (q, k, v, *gates)]
        h, _ = mlstm(*inputs, implementation=by)
        weight = torch.linspace(0.5, 1.5, h.numel()).view(h.shape).to(half).to(h.dtype)
        return [h, *torch.autograd.grad(h, inputs, weight)]

    expected = outputs_and_gradients("reference", torch.float64)
    for a, b in zip(outputs_and_gradients(implementation, None), expected, strict=True):
        assert relative_error(a.detach(), b.detach()) < 1e-2
