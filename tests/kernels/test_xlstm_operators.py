"""The fast forms of mLSTM and sLSTM against the float64 recurrence: outputs, final states and every gradient."""

from unittest import mock

import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from kernels.mlstm import MLSTMState, mlstm, numba_chunkwise, numba_heads
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


@examples(15)
@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    time=st.integers(1, 70),
    key_dim=st.sampled_from([4, 8, 24]),
    value_dim=st.sampled_from([4, 12]),
    chunk_size=st.sampled_from([16, 32, 48]),
    input_gate=st.sampled_from(["exponential", "sigmoid"]),
    normalize=st.booleans(),
    resetting=st.booleans(),
)
def test_chunkwise_mlstm_is_the_recurrence(
    batch: int, heads: int, time: int, key_dim: int, value_dim: int, chunk_size: int, input_gate: str,
    normalize: bool, resetting: bool,
) -> None:  # fmt: skip
    tensors, state = mlstm_problem(batch, heads, time, key_dim, value_dim)
    options = {"normalize": normalize, "input_gate": input_gate, "eps": 0.0}
    options["resets"] = some_resets(batch, time, 0.05) if resetting else None
    expected = run(mlstm, tensors, state, "reference", torch.float64, **options)
    exact = run(mlstm, tensors, state, "torch", torch.float64, chunk_size=chunk_size, **options)
    single = run(mlstm, tensors, state, "torch", torch.float32, chunk_size=chunk_size, **options)
    by_way = []
    for way in (False, True):  # spans of chunks, and heads by themselves
        with mock.patch.object(numba_heads, "fits", lambda *_, way=way: way):
            by_way.append(run(mlstm, tensors, state, "numba", torch.float32, chunk_size=chunk_size, **options))
    plain = run(mlstm, tensors, state, "reference", torch.float32, **options)
    for a, b, c, *compiled, e in zip(expected, exact, single, *by_way, plain, strict=True):
        assert relative_error(b, a) < 1e-10
        # Drawn signs may cancel in the denominator; then the recurrence itself loses digits.
        bound = max(FLOAT32_BOUND, 4 * relative_error(e, a))
        assert all(relative_error(d, a) < bound for d in (c, *compiled))


def test_spans_of_one_chunk_equal_one_span(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, state = mlstm_problem(2, 2, 70, 8, 12)
    options = {"chunk_size": 16, "resets": some_resets(2, 70, 0.05)}
    whole = run(mlstm, tensors, state, "numba", torch.float32, **options)
    monkeypatch.setattr(numba_chunkwise, "SPAN_ELEMENTS", 1)
    for a, b in zip(run(mlstm, tensors, state, "numba", torch.float32, **options), whole, strict=True):
        assert relative_error(a, b) < FLOAT32_BOUND


@pytest.mark.parametrize(("heads", "dims"), [(16, (8, 12)), (16, (37, 130)), (3, (8, 12))])
def test_many_small_heads_are_taken_one_by_one(heads: int, dims: tuple[int, int]) -> None:
    tensors, state = mlstm_problem(1, heads, 70, *dims)
    with mock.patch.object(numba_heads, "run", wraps=numba_heads.run) as kernel:
        run(mlstm, tensors, state, "numba", torch.float32)
    assert kernel.call_count == (2 if heads >= numba_heads.FEWEST and max(dims) <= numba_heads.WIDEST else 0)


@pytest.mark.parametrize("dims", [(37, 64), (128, 33)])
def test_heads_taken_one_by_one_equal_spans_at_any_width(dims: tuple[int, int]) -> None:
    tensors, state = mlstm_problem(4, 4, 150, *dims)
    alone = run(mlstm, tensors, state, "numba", torch.float32, resets=some_resets(4, 150, 0.02))
    with mock.patch.object(numba_heads, "fits", return_value=False):
        spans = run(mlstm, tensors, state, "numba", torch.float32, resets=some_resets(4, 150, 0.02))
    for a, b in zip(alone, spans, strict=True):
        assert relative_error(a, b) < FLOAT32_BOUND


def test_an_mlstm_that_keeps_nothing_for_a_gradient_is_the_mlstm() -> None:
    tensors, state = mlstm_problem(2, 2, 70, 8, 12)
    start = MLSTMState(*(part.float() for part in state))
    for implementation in ("torch", "numba"):
        inputs = [t.float() for t in tensors]
        h, after = mlstm(*inputs, initial_state=start, chunk_size=16, implementation=implementation)
        inputs[0].requires_grad_()
        kept, after_kept = mlstm(*inputs, initial_state=start, chunk_size=16, implementation=implementation)
        for a, b in zip((h, *after), (kept, *after_kept), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "chunk_size", "input_gate", "normalize"),
    [
        ((1, 1, 16, 16, 16), 16, "exponential", True),
        ((2, 2, 41, 32, 48), 32, "exponential", True),
        ((1, 2, 33, 48, 16), 32, "sigmoid", True),
        ((1, 1, 20, 16, 16), 16, "sigmoid", False),
    ],
)
def test_mlstm_in_triton_is_the_recurrence(shape: tuple, chunk_size: int, input_gate: str, normalize: bool) -> None:
    tensors, state = mlstm_problem(*shape)
    options = {"normalize": normalize, "input_gate": input_gate, "resets": some_resets(shape[0], shape[2], 0.05)}
    expected = run(mlstm, tensors, state, "reference", torch.float64, **options)
    single = run(mlstm, tensors, state, "triton", torch.float32, chunk_size=chunk_size, **options)
    for a, b in zip(expected, single, strict=True):
        assert relative_error(b, a) < FLOAT32_BOUND


@pytest.mark.parametrize(("batch", "time"), [(1, 1), (3, 7), (2, 140)])
@pytest.mark.parametrize("gradient_clip", [None, 0.05])
def test_looped_slstm_is_the_recurrence(batch: int, time: int, gradient_clip: float | None) -> None:
    tensors, state = slstm_problem(batch, time, 2, 8)
    options = {"gradient_clip": gradient_clip, "resets": some_resets(batch, time, 0.1)}
    expected = run(slstm, tensors, state, "reference", torch.float64, **options)
    exact = run(slstm, tensors, state, "torch", torch.float64, **options)
    single = run(slstm, tensors, state, "torch", torch.float32, **options)
    compiled = run(slstm, tensors, state, "numba", torch.float32, **options)
    for a, b, c, d in zip(expected, exact, single, compiled, strict=True):
        assert relative_error(b, a) < 1e-10
        assert relative_error(c, a) < FLOAT32_BOUND
        assert relative_error(d, a) < FLOAT32_BOUND


@pytest.mark.parametrize(
    ("batch", "time", "heads", "head_dim", "gradient_clip"), [(3, 5, 2, 16, None), (17, 3, 1, 48, 0.05)]
)
@pytest.mark.parametrize("implementation", ["numba", "triton"])
def test_compiled_slstm_is_the_recurrence(
    implementation: str, batch: int, time: int, heads: int, head_dim: int, gradient_clip: float | None
) -> None:
    tensors, state = slstm_problem(batch, time, heads, head_dim)
    options = {"gradient_clip": gradient_clip, "resets": some_resets(batch, time, 0.2)}
    expected = run(slstm, tensors, state, "reference", torch.float64, **options)
    single = run(slstm, tensors, state, implementation, torch.float32, **options)
    for a, b in zip(expected, single, strict=True):
        assert relative_error(b, a) < FLOAT32_BOUND


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


@pytest.mark.parametrize("axes", [(1, 2), (2, -1), (0, -1)])
@pytest.mark.parametrize("implementation", ["torch", "numba"])
def test_strided_inputs_give_what_contiguous_ones_give(implementation: str, axes: tuple[int, int]) -> None:
    tensors = [t.float() for t in mlstm_problem(2, 3, 40, 8, 12)[0]]
    strided = [t.transpose(*axes).contiguous().transpose(*axes) for t in tensors]
    assert not strided[0].is_contiguous()

    def outputs_and_gradients(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        inputs = [t.detach().requires_grad_() for t in tensors]
        h, _ = mlstm(*inputs, implementation=implementation)
        return [h, *torch.autograd.grad(h.square().sum(), inputs)]

    for a, b in zip(outputs_and_gradients(strided), outputs_and_gradients(tensors), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("implementation", ["torch", "numba"])
def test_a_state_of_another_dtype_is_the_state(implementation: str, dtype: torch.dtype) -> None:
    for operator, (tensors, state) in ((mlstm, mlstm_problem(2, 2, 20, 8, 12)), (slstm, slstm_problem(2, 20, 2, 8))):
        inputs = [t.float() for t in tensors]
        start = type(state)(*(part.to(dtype) for part in state))
        h, after = operator(*inputs, initial_state=start, implementation=implementation)
        same = type(state)(*(part.float() for part in start))
        expected, expected_after = operator(*inputs, initial_state=same, implementation=implementation)
        for a, b in zip((h, *after), (expected, *expected_after), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_gradcheck_holds_in_float64() -> None:
    tensors, state = mlstm_problem(1, 2, 9, 4, 3)
    inputs = [t.requires_grad_() for t in (*tensors, state.C, state.n)]

    def run_mlstm(implementation, *inputs):  # type: ignore[no-untyped-def]
        start = MLSTMState(*inputs[5:], state.m)
        h, after = mlstm(*inputs[:5], initial_state=start, chunk_size=16, implementation=implementation)
        scale = after.m.detach().exp()
        return h, after.C * scale[..., None, None], after.n * scale[..., None]

    for implementation in ("reference", "torch"):
        assert torch.autograd.gradcheck(lambda *x, by=implementation: run_mlstm(by, *x), inputs, fast_mode=True)
    tensors, start = slstm_problem(2, 4, 1, 3)
    inputs = [t.requires_grad_() for t in (*tensors, *start[:3])]

    def run_slstm(implementation, *inputs):  # type: ignore[no-untyped-def]
        first = SLSTMState(*inputs[2:], start.m)
        h, after = slstm(*inputs[:2], initial_state=first, implementation=implementation)
        scale = after.m.detach().exp()
        return h, after.h, after.c * scale, after.n * scale

    for implementation in ("reference", "torch"):
        assert torch.autograd.gradcheck(lambda *x, by=implementation: run_slstm(by, *x), inputs, fast_mode=True)


def test_operators_keep_the_rules_of_torch_library() -> None:
    tensors, state = mlstm_problem(1, 2, 20, 4, 4)
    inputs = [t.requires_grad_() for t in tensors]
    options = (some_resets(1, 20, 0.1), "exponential", True, 1e-6, 16, True, "torch")
    torch.library.opcheck(torch.ops.scaling.mlstm.default, (*inputs, state.C, state.n, state.m, *options))
    inputs = [t.float().detach().requires_grad_() for t in tensors]
    state = MLSTMState(*(part.float() for part in state))
    options = (*options[:-1], "numba")
    torch.library.opcheck(torch.ops.scaling.mlstm.default, (*inputs, state.C, state.n, state.m, *options))
    tensors, state = mlstm_problem(1, 2, 20, 16, 16)
    inputs = [t.float().requires_grad_() for t in tensors]
    state = MLSTMState(*(part.float() for part in state))
    options = (*options[:-1], "triton")
    torch.library.opcheck(torch.ops.scaling.mlstm.default, (*inputs, state.C, state.n, state.m, *options))
    tensors, start = slstm_problem(2, 3, 1, 4)
    inputs = [t.requires_grad_() for t in tensors]
    torch.library.opcheck(torch.ops.scaling.slstm.default, (*inputs, *start, some_resets(2, 3, 0.2), None, "torch"))
    inputs = [t.float().detach().requires_grad_() for t in tensors]
    start = type(start)(*(part.float() for part in start))
    torch.library.opcheck(torch.ops.scaling.slstm.default, (*inputs, *start, some_resets(2, 3, 0.2), None, "numba"))


def test_operators_are_one_node_under_torch_compile() -> None:
    tensors, _ = mlstm_problem(1, 2, 20, 4, 4)
    inputs = [t.float().requires_grad_() for t in tensors]
    compiled = torch.compile(lambda *x: mlstm(*x)[0], backend="aot_eager", fullgraph=True)
    torch.autograd.backward(compiled(*inputs).sum())
    gradients = [t.grad.clone() for t in inputs if t.grad is not None]
    eager = torch.autograd.grad(mlstm(*inputs)[0].sum(), inputs)
    for a, b in zip(gradients, eager, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_gates_stay_float32_under_autocast() -> None:
    tensors, _ = mlstm_problem(1, 2, 40, 16, 16)
    single = [t.float() for t in tensors]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h, after = mlstm(*single)
    assert h.dtype == torch.bfloat16
    assert after.C.dtype == torch.float32
    rounded = [t.bfloat16().double() for t in single[:3]]
    expected, _ = mlstm(*rounded, *tensors[3:], implementation="reference")
    assert relative_error(h, expected) < 1e-2


def test_flops_are_counted_from_the_shapes() -> None:
    tensors, _ = mlstm_problem(2, 3, 64, 8, 12)
    inputs = [t.float() for t in tensors]
    with FlopCounterMode(display=False) as counter:
        mlstm(*inputs, chunk_size=32)
    products = 2 * 3 * (2 * 32 * 32) * (8 + 12) + 2 * (2 * 3 * 64 * 8 * 12)
    assert counter.get_total_flops() == 2 * products
