"""The mLSTM's Triton kernels: wide tiles, long chunks, offsets beyond 32 bits, few launches, no waits."""

from typing import Any
from unittest import mock

import pytest
import torch
import triton
import triton.language as tl
from test_xlstm_exactness import EXTREME
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile
from xlstm_problems import mlstm_problem, relative_error, some_resets

from benchmarks.ahead_of_time import noting
from kernels.dispatch import prefer
from kernels.mlstm import mlstm, torch_chunkwise, triton_gates
from kernels.mlstm.reference import Inputs, Options
from kernels.mlstm.triton_chunkwise import default_chunk_size
from kernels.mlstm.triton_tiles import _place, tiling_of
from xlstm.models.configs import XLSTMConfig
from xlstm.models.mlstm_block import MLSTMBlock

HALF = 1e-2
"""Relative, per tensor: what float16 loses where signs do not cancel."""


@pytest.mark.parametrize(("input_gate", "resetting"), [("exponential", True), ("sigmoid", False)])
def test_wide_tiles_and_long_chunks_are_the_recurrence(input_gate: Any, resetting: bool) -> None:
    chunk = 256 if resetting else 128
    assert tiling_of(128, 128, chunk, torch.float16)["BT"] == 128
    (q, k, v, i, f), _ = mlstm_problem(1, 1, 300, 128, 128)
    # Positive products: where drawn signs cancel in the denominator, rounding the inputs alone loses more.
    q, k, v = (t.abs().half() for t in (q, k, v))
    # By token, as a block gives them.
    q, k, v = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v))
    options: dict[str, Any] = {"input_gate": input_gate, "resets": some_resets(1, 300, 0.01) if resetting else None}

    def outputs_and_gradients(by: Any, dtype: torch.dtype | None) -> list[torch.Tensor]:
        inputs = [t.detach().to(dtype or t.dtype).requires_grad_() for t in (q, k, v, i.float(), f.float())]
        h, _ = mlstm(*inputs, implementation=by, chunk_size=chunk, **options)
        weight = torch.linspace(0.5, 1.5, h.numel()).view(h.shape).half().to(h.dtype)
        found = torch.autograd.grad(h, inputs, weight)
        if by == "triton":
            assert [t.stride() for t in found[:3]] == [t.stride() for t in inputs[:3]]
        return [h.detach(), *found]

    expected = outputs_and_gradients("torch", torch.float64)
    for a, b in zip(outputs_and_gradients("triton", None), expected, strict=True):
        assert relative_error(a, b) < HALF


@pytest.mark.parametrize("resetting", [False, True])
def test_gates_of_any_size_weigh_as_in_pytorch(resetting: bool) -> None:
    for input_bias, forget_bias in EXTREME:
        tensors, state = mlstm_problem(2, 1, 100, 16, 16)
        q, k, v, i, f = (t.float() for t in tensors)
        inputs = Inputs(q, k, v, 5 * i + input_bias, 5 * (f - 3) + forget_bias)
        resets, options = some_resets(2, 100, 0.05) if resetting else None, Options("exponential", True, 0.0, 48)
        ours = triton_gates.chunk_gates(inputs, state.m.float(), resets, options)
        theirs = torch_chunkwise.chunk_gates(inputs, state.m.float(), resets, options)

        def weights(gates: Any) -> torch.Tensor:
            exponent = gates.row[..., :, None] + gates.column[..., None, :]
            return (exponent.exp() * gates.row_fine[..., :, None] * gates.column_fine[..., None, :]).tril()

        for a, b in (
            (weights(ours), weights(theirs)),
            (ours.read, theirs.read * theirs.row_fine),
            (ours.write, theirs.write),
            (ours.carry, theirs.carry[..., 0, 0]),
            (ours.floor, theirs.floor),
            (ours.m, theirs.m[:, -1]),
        ):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-30)


def test_long_heads_have_long_chunks() -> None:
    assert [default_chunk_size(2048, size, size) for size in (64, 512, 768)] == [64, 128, 256]
    assert default_chunk_size(40, 1024, 1024) == 48


@triton.jit
def _places(out, chunk, SIZE: tl.constexpr):
    row = tl.program_id(0)
    tl.store(out + row, _place(chunk, row.to(tl.int64), tl.num_programs(0), SIZE))


def test_states_beyond_2_to_the_31_have_offsets() -> None:
    rows, chunk, size = 128, 11, 1280 * 1280
    out = torch.empty(rows, dtype=torch.int64)
    _places[(rows,)](out, chunk, SIZE=size)
    assert torch.equal(out, (chunk * rows + torch.arange(rows)) * size)
    assert int(out.min()) > 2**31


WITHOUT_WORK = (
    "empty", "new_empty", "promote_types", "view", "as_strided", "slice", "select", "detach", "reshape", "expand",
    "unsqueeze", "squeeze", "permute", "transpose", "unbind", "split", "chunk", "narrow", "alias", "resolve", "lift",
    "unflatten", "flatten", "result_type", "contiguous", "item", "is_", "set_", "to", "t", "numpy_T", "_unsafe_view",
    "_reshape_alias", "resize_",
)  # fmt: skip
"""Operations, by how their names begin, that launch nothing where they call nothing."""


def works(event: FunctionEvent) -> int:
    """How many operations under a profiler's event launch something on a GPU, of those that call no other."""
    below = sum(works(child) for child in event.cpu_children)
    name = event.name.removeprefix("aten::")
    idle = name in WITHOUT_WORK or name.startswith(tuple(one for one in WITHOUT_WORK if len(one) > 2))
    return below or int(event.name.startswith("aten::") and not idle)


@pytest.mark.parametrize("resetting", [False, True])
def test_a_block_is_few_launches_and_waits_for_nothing(resetting: bool) -> None:
    block = MLSTMBlock(XLSTMConfig(vocab_size=32, embedding_dim=64, num_blocks=1))
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    block.bfloat16()
    x = torch.randn(2, 300, 64).bfloat16().requires_grad_()
    resets = some_resets(2, 300, 0.01) if resetting else None
    noted: list[Any] = []
    waits = {
        name: mock.Mock(side_effect=AssertionError(name)) for name in ("item", "tolist", "__bool__", "cpu", "numpy")
    }

    def step() -> None:
        y, _ = block(x, resets=resets)
        torch.autograd.backward(y, torch.ones_like(y))

    prefer("triton")
    try:
        with (
            noting(lambda kernel, *_: noted.append(kernel)),
            mock.patch.multiple(torch.Tensor, **waits),
            profile(activities=[ProfilerActivity.CPU]) as profiler,
        ):
            step()
    finally:
        prefer("auto")
    others = sum(works(event) for event in profiler.events() if event.cpu_parent is None)
    assert len(noted) == 19
    assert len(noted) + others <= 70
