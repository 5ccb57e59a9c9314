"""The fast forms of mLSTM and sLSTM against the float64 recurrence: outputs, final states and every gradient."""

from unittest import mock

import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from xlstm_problems import FLOAT32_BOUND, mlstm_problem, relative_error, run, slstm_problem, some_resets

from kernels.mlstm import MLSTMState, mlstm, numba_chunkwise, numba_heads
from kernels.slstm import SLSTMState, slstm


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
