"""What surrounds the mLSTM cell, each operator against its float64 definition: outputs and every gradient."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from block_problems import (
    Problem,
    convolution,
    gated,
    inputs_of_mlstm,
    loss,
    mixtures,
    norm,
    normal,
    positions,
    positive,
    projection,
    rows_norm,
    strided,
)
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from kernels.block_diagonal import block_diagonal
from kernels.causal_conv import causal_conv_silu
from kernels.dispatch import ImplementationError
from kernels.linear_cross_entropy import chunks, linear_cross_entropy
from kernels.rotary import rotary

FLOAT32_BOUND = 1e-5
BFLOAT16_BOUND = 1e-2
"""Relative, per tensor, on well-conditioned inputs."""

SMALL = [
    projection(2, 5, 3, 4),
    projection(1, 1, 9, 8),
    convolution(2, 41, 20, resetting=True),
    convolution(1, 2, 3, resetting=False),
    norm(2, 5, 2, 24, skipping=True),
    norm(1, 70, 1, 16, skipping=False),
    rows_norm(2, 70, 24),
    gated(2, 5, 24),
    positive(2, 5, 24),
    positions(2, 70, 2, 12, packed=True),
    positions(2, 5, 3, 2, packed=False),
    inputs_of_mlstm(2, 37, 6, 4),
    mixtures(2, 70, 20, 3, resetting=True),
    mixtures(2, 1, 3, 2, resetting=False),
    loss(2, 5, 8, 33),
    loss(1, 3, 5, 2100, soft_cap=3.0),
]
NAMES = [
    "projection",
    "wider blocks",
    "convolution with resets",
    "two tokens",
    "norm with skip",
    "norm",
    "norm of rows",
    "gated",
    "squared ReLU",
    "positions of packed documents",
    "positions",
    "inputs of the mLSTM",
    "token shift with resets",
    "token shift",
    "loss",
    "capped loss",
]
every_operator = pytest.mark.parametrize("problem", SMALL, ids=NAMES)
SEVERAL = [(problem, name) for problem, name in zip(SMALL, NAMES, strict=True) if problem.tensors[0].shape[0] > 1]


def assert_close(actual: list[Tensor], expected: list[Tensor], bound: float) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert float((a - b).norm() / b.norm().clamp_min(1e-30)) < bound


@examples(12)
@given(
    batch=st.integers(1, 3),
    time=st.integers(1, 300),
    heads=st.integers(1, 4),
    width=st.sampled_from([1, 3, 4, 16, 40]),
    flag=st.booleans(),
)
def test_pytorch_forms_are_their_definitions(batch: int, time: int, heads: int, width: int, flag: bool) -> None:
    for problem in (
        projection(batch, time, 3 * heads, width),
        convolution(batch, time, heads * width, flag),
        norm(batch, time, heads, 2 * width + 1, flag),
        rows_norm(batch, time, heads * width + 2),
        gated(batch, time, heads * width),
        positive(batch, time, heads * width),
        positions(batch, time, heads, 2 * width, flag),
        mixtures(batch, time, heads * width, 1 + heads % 3, flag),
        loss(batch, time, width, 30 * heads, 2.0 if flag else None),
    ):
        expected = problem.run("reference")
        assert_close(problem.run("torch"), expected, 1e-11)
        assert_close(problem.run("torch", torch.float32), expected, FLOAT32_BOUND)


def has_kernels_for_cpus(problem: Problem) -> bool:
    """Whether an operator has them, for its shapes."""
    return problem not in (SMALL[1], *SMALL[-2:])


@examples(12)
@given(
    batch=st.integers(1, 3),
    time=st.integers(1, 300),
    heads=st.integers(1, 4),
    width=st.sampled_from([1, 3, 4, 16, 40]),
    flag=st.booleans(),
)
def test_forms_compiled_for_cpus_are_their_definitions(
    batch: int, time: int, heads: int, width: int, flag: bool
) -> None:
    for problem in (
        projection(batch, time, heads * width, 4),
        # The bias of one channel has one number as its gradient, a sum over tokens that may cancel to any size.
        convolution(batch, time, max(3, heads * width), flag),
        norm(batch, time, heads, 2 * width + 1, flag),
        rows_norm(batch, time, heads * width + 2),
        gated(batch, time, heads * width),
        positive(batch, time, heads * width),
        positions(batch, time, heads, 2 * width, flag),
        inputs_of_mlstm(batch, time, width, heads + 1),
        mixtures(batch, time, heads * width, 1 + heads % 3, flag),
    ):
        expected = problem.run("reference")
        assert_close(problem.run("numba", torch.float32), expected, FLOAT32_BOUND)
        if heads * width > 1:  # one number is contiguous however it lies
            assert_close(strided(problem).run("numba", torch.float32), expected, FLOAT32_BOUND)


@every_operator
@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_operators_are_their_definitions_in_either_precision_and_strided(problem: Problem, implementation: str) -> None:
    expected = problem.run("reference")
    assert_close(problem.run(implementation, torch.float32), expected, FLOAT32_BOUND)
    assert_close(strided(problem).run(implementation, torch.float32), expected, FLOAT32_BOUND)
    half = problem.rounded(torch.bfloat16).run("reference")
    assert_close(problem.run(implementation, torch.bfloat16), half, BFLOAT16_BOUND)


@pytest.mark.parametrize("soft_cap", [None, 3.0])
@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_a_loss_in_chunks_is_the_loss(implementation: str, soft_cap: float | None, monkeypatch: Any) -> None:
    monkeypatch.setattr(chunks, "CHUNK_LOGITS", 3 * 40)
    problem = loss(2, 5, 8, 40, soft_cap)
    expected = problem.run("reference")
    assert_close(problem.run(implementation, torch.float32), expected, FLOAT32_BOUND)
    half = problem.rounded(torch.bfloat16).run("reference")
    assert_close(problem.run(implementation, torch.bfloat16), half, BFLOAT16_BOUND)


@pytest.mark.parametrize(
    ("problem", "implementation"),
    [
        pytest.param(problem, implementation, id=f"{implementation}-{name}")
        for problem, name in SEVERAL
        for implementation in ("reference", "torch", "numba", "triton")
        if implementation != "numba" or has_kernels_for_cpus(problem)
    ],
)
def test_nan_and_infinity_stay_in_their_sequence(problem: Problem, implementation: str) -> None:
    inputs = [t.float() for t in problem.tensors]

    def outputs() -> tuple[Tensor, ...]:
        given = problem.function(*inputs, implementation=implementation)
        return given if isinstance(given, tuple) else (given,)

    clean = outputs()
    for bad in (float("nan"), float("inf")):
        inputs[0][1, -1, -1] = bad
        spoiled = outputs()
        for a, b in zip(spoiled, clean, strict=True):
            assert torch.equal(a[0], b[0])
        assert not torch.equal(spoiled[0][1], clean[0][1])


@pytest.mark.parametrize("implementation", ["reference", "torch", "numba", "triton"])
def test_scores_of_turned_queries_and_keys_know_only_their_distance(implementation: Any) -> None:
    query, key = (normal(seed, 1, 7, 2, 12).float() for seed in (0, 1))
    scores = []
    for first in (0, 40):
        angles = torch.arange(first, first + 7)[:, None] * 100.0 ** (-torch.arange(6) / 6)
        turned = rotary(query, key, angles.cos(), angles.sin(), implementation=implementation)
        scores.append(torch.einsum("bihd,bjhd->bhij", *turned))
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scores[0].diagonal(dim1=2, dim2=3), (query * key).sum(-1).transpose(1, 2))


@every_operator
def test_gradcheck_holds_in_float64(problem: Problem) -> None:
    inputs = [t.clone().requires_grad_() for t in problem.tensors]
    for implementation in ("reference", "torch"):

        def function(*x: Tensor, by: str = implementation) -> Any:
            return problem.function(*x, implementation=by)

        assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize(("implementation", "dtype"), [("torch", torch.float64), ("numba", torch.float32)])
def test_operators_keep_the_rules_of_torch_library(implementation: str, dtype: torch.dtype) -> None:
    ops, by = torch.ops.scaling, implementation

    def leaves(problem: Problem) -> list[Tensor]:
        return [t.to(dtype).requires_grad_() for t in problem.tensors]

    x, weight = leaves(projection(2, 5, 3, 4))
    torch.library.opcheck(ops.block_diagonal.default, (x, weight, by))
    tensors = leaves(convolution(2, 9, 6, False))
    for documents in (None, torch.ones(2, 9, dtype=torch.int32)):
        torch.library.opcheck(ops.causal_conv_silu.default, (*tensors, documents, by))
    h, *rest = leaves(norm(2, 5, 2, 6, True))
    torch.library.opcheck(ops.gated_head_norm.default, (h.transpose(1, 2), *rest, 1e-5, by))
    torch.library.opcheck(ops.gated_head_norm.default, (h.transpose(1, 2), *rest[:2], None, None, 1e-5, by))
    torch.library.opcheck(ops.rms_norm.default, (*leaves(rows_norm(2, 5, 6)), 1e-6, by))
    x, shares, last = leaves(mixtures(2, 5, 6, 2, False))
    torch.library.opcheck(ops.token_shift.default, (x, shares, last, torch.rand(2, 5) < 0.5, by))
    torch.library.opcheck(ops.squared_relu.default, (*leaves(positive(2, 5, 6)), by))
    torch.library.opcheck(ops.swiglu.default, (*leaves(gated(2, 5, 6)), by))
    angles = torch.rand(2, 5, 3, dtype=dtype)
    torch.library.opcheck(ops.rotary.default, (*leaves(positions(2, 5, 2, 6, True)), angles.cos(), angles.sin(), by))
    if by == "numba":  # elsewhere it is made of other operators
        for implementation in ("numba", "triton"):
            torch.library.opcheck(ops.mlstm_inputs.default, (*leaves(inputs_of_mlstm(2, 5, 3, 4)), implementation))


def test_the_loss_keeps_the_rules_of_torch_library() -> None:
    ops = torch.ops.scaling
    hidden, weight = (t[0].requires_grad_() for t in (loss(1, 6, 8, 33).tensors[0], loss(1, 6, 8, 33).tensors[1][None]))
    labels = torch.tensor([3, -100, 0, 32, 5, 5])
    torch.library.opcheck(ops.linear_cross_entropy.default, (hidden, weight, labels, -100, None, 1e-4, "torch"))


def test_flops_are_those_of_the_blocks_alone() -> None:
    x, weight = projection(2, 5, 3, 4).tensors
    with FlopCounterMode(display=False) as counter:
        block_diagonal(x.requires_grad_(), weight.requires_grad_()).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * (2 * 5 * 12) * 4


def test_states_make_pieces_equal_to_the_whole() -> None:
    x, weight, bias, past = convolution(2, 11, 6, False).tensors
    whole, end = causal_conv_silu(x, weight, bias, past=past)
    pieces = []
    for piece in x.split([1, 2, 5, 3], dim=1):
        y, past = causal_conv_silu(piece, weight, bias, past=past)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-14, atol=1e-14)
    assert torch.equal(past, end)


def test_wide_blocks_in_triton_are_refused_with_the_reason() -> None:
    x, weight = projection(1, 2, 1, 48).tensors
    with pytest.raises(ImplementationError, match="blocks of 48 channels are wider than 32"):
        block_diagonal(x.float(), weight.float(), implementation="triton")
    x, weight = projection(1, 2, 2, 6).tensors
    with pytest.raises(ImplementationError, match="blocks of 6 channels are no power of two"):
        block_diagonal(x.float(), weight.float(), implementation="triton")


def test_what_kernels_for_cpus_cannot_take_is_refused_with_the_reason() -> None:
    x, weight = projection(1, 2, 1, 8).tensors
    with pytest.raises(ImplementationError, match="blocks of width 8 are not supported; those of width 4 are"):
        block_diagonal(x.float(), weight.float(), implementation="numba")
    x, weight = projection(1, 2, 1, 4).tensors
    with pytest.raises(ImplementationError, match="float64 is not supported; float32 is"):
        block_diagonal(x, weight, implementation="numba")
    hidden, weight = loss(1, 2, 4, 5).tensors
    with pytest.raises(ImplementationError, match="no kernels for CPUs"):
        linear_cross_entropy(hidden, weight, torch.zeros(1, 2, dtype=torch.long), implementation="numba")


THREADS = """
import sys, torch
torch.set_num_threads(int(sys.argv[1]))
sys.path[:0] = [sys.argv[2], sys.argv[2] + "/tests"]
from block_problems import convolution, mixtures, norm, projection, rows_norm
problems = projection(3, 50, 12, 4), convolution(3, 50, 200, True), norm(3, 50, 4, 24, True), rows_norm(3, 50, 24)
problems = *problems, mixtures(3, 50, 20, 3, True)
for problem in problems:
    for tensor in problem.run("numba", torch.float32):
        print(tensor.flatten().tolist())
"""


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    folder = Path(__file__).parent

    def printed(threads: int) -> str:
        command = [sys.executable, "-c", THREADS, str(threads), str(folder)]
        return subprocess.run(command, check=True, text=True, capture_output=True).stdout

    assert printed(1) == printed(3)
