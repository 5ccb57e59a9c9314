"""Attention within documents, each implementation against its definition in float64: outputs and every gradient."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import flex_attention
from torch.nn.attention.flex_attention import BlockMask
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import kernels.attention
from kernels.attention import attention, mask_for
from kernels.attention.flex_blocks import BLOCK, attend, block_mask
from kernels.attention.reference import attention_reference, visible
from kernels.dispatch import ImplementationError

BOUND = 2e-6
"""In float32, relative to each tensor, or to a tenth of the largest: a gradient may all but cancel."""


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(
    batch: int, heads: int, time: int, head_dim: int, many_documents: bool
) -> tuple[list[Tensor], Tensor | None]:
    """Queries, keys, values and a gradient, laid as models lay them; and where documents begin."""
    tensors = [normal(seed, batch, time, heads, head_dim).transpose(1, 2) for seed in range(4)]
    if not many_documents:
        return tensors, None
    starts = torch.rand(batch, time, generator=torch.Generator().manual_seed(5)) < 4 / time
    begins = torch.where(starts, torch.arange(time), 0).cummax(dim=1).values
    return tensors, begins.to(torch.int32)


def results(tensors: list[Tensor], begins: Tensor | None, implementation: str, dtype: torch.dtype) -> list[Tensor]:
    """Output and gradients of query, key and value."""
    *inputs, weight = (t.to(dtype) for t in tensors)
    inputs = [t.detach().requires_grad_() for t in inputs]
    y = attention(*inputs, begins=begins, implementation=implementation)  # type: ignore[arg-type]
    return [y.detach(), *torch.autograd.grad(y, inputs, weight)]


def minuends_of_gradients(tensors: list[Tensor], begins: Tensor | None) -> list[Tensor]:
    """The output, and of each gradient what it would be if softmax's sums were constants.

    A softmax's gradient is the difference of this and of what the sums contribute (Dao 2023, arXiv 2307.08691,
    algorithm 2: P (dP - delta)); float32 rounds both, however small their difference.
    """
    query, key, value = (t.detach().requires_grad_() for t in tensors[:3])
    scores = query @ key.mT * query.shape[-1] ** -0.5
    scores = scores.masked_fill(~visible(query.shape[2], key.shape[2], begins, query.device), float("-inf"))
    y = (scores - scores.logsumexp(-1, keepdim=True).detach()).exp() @ value
    return [y.detach(), *torch.autograd.grad(y, (query, key, value), tensors[3])]


def assert_close(
    actual: list[Tensor], expected: list[Tensor], bound: float, minuends: list[Tensor] | None = None
) -> None:
    """Equal to `bound` of each tensor, of a tenth of the largest, or of what its subtraction began with."""
    largest = max(float(b.norm()) for b in expected)
    for a, b, c in zip(actual, expected, minuends or expected, strict=True):
        assert float((a.double() - b.double()).norm()) < bound * max(float(b.norm()), 0.1 * largest, float(c.norm()))


def test_the_definition_is_pytorchs() -> None:
    tensors, _ = problem(2, 3, 20, 8, many_documents=False)
    ours = attention(*tensors[:3], implementation="reference")
    torch.testing.assert_close(
        ours, F.scaled_dot_product_attention(*tensors[:3], is_causal=True), rtol=1e-13, atol=1e-13
    )


@examples(40)
@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 4),
    time=st.integers(2, 300),
    head_dim=st.sampled_from([1, 3, 8, 20, 32, 40, 64, 100]),
    many_documents=st.booleans(),
)
def test_every_form_is_the_definition(batch: int, heads: int, time: int, head_dim: int, many_documents: bool) -> None:
    tensors, begins = problem(batch, heads, time, head_dim, many_documents)
    expected = results(tensors, begins, "reference", torch.float64)
    assert_close(results(tensors, begins, "torch", torch.float64), expected, 1e-12)
    minuends = minuends_of_gradients(tensors, begins)
    assert_close(results(tensors, begins, "numba", torch.float32), expected, BOUND, minuends)
    swapped = [t.mT.contiguous().mT for t in tensors]  # numbers of a row far apart
    assert_close(results(swapped, begins, "numba", torch.float32), expected, BOUND, minuends)


@pytest.mark.parametrize("implementation", ["reference", "torch", "numba"])
def test_gradients_of_lone_tokens_vanish_to_rounding(implementation: str) -> None:
    """Where each token is its own document, queries and keys change nothing: what is subtracted is equal but rounded.

    PyTorch's attention, which subtracts the same numbers, leaves as much.
    """
    tensors, begins = problem(1, 3, 3, 64, many_documents=True)
    assert begins is not None
    assert begins.tolist() == [[0, 1, 2]]
    minuends = minuends_of_gradients(tensors, begins)
    got = results(tensors, begins, implementation, torch.float32)
    for gradient, minuend in zip(got[1:3], minuends[1:3], strict=True):
        assert float(gradient.norm()) < BOUND * float(minuend.norm())


@pytest.mark.parametrize("implementation", ["reference", "torch", "numba"])
def test_a_lone_token_gets_its_value(implementation: str) -> None:
    tensors, _ = problem(1, 2, 1, 8, many_documents=False)
    y, grad_query, grad_key, grad_value = results(tensors, None, implementation, torch.float32)
    torch.testing.assert_close(y, tensors[2].float())
    torch.testing.assert_close(grad_value, tensors[3].float())
    assert float(grad_query.abs().max()) < 1e-6
    assert float(grad_key.abs().max()) < 1e-6


@pytest.mark.parametrize("implementation", ["torch", "numba"])
def test_large_scores_neither_overflow_nor_vanish(implementation: str) -> None:
    tensors, begins = problem(1, 2, 150, 16, many_documents=True)
    tensors[0] = tensors[0] * 300
    expected = results([t.float().double() for t in tensors], begins, "reference", torch.float64)
    assert all(bool(t.isfinite().all()) for t in expected)
    assert_close(results(tensors, begins, implementation, torch.float32), expected, 1e-3)  # scores of 10³ in float32


@pytest.mark.parametrize("implementation", ["reference", "torch", "numba"])
def test_documents_do_not_see_one_another(implementation: str) -> None:
    time, cut = 200, 77
    tensors, _ = problem(1, 2, time, 24, many_documents=False)
    begins = torch.where(torch.arange(time) < cut, 0, cut)[None].to(torch.int32)
    whole = results(tensors, begins, implementation, torch.float32)
    for piece in (slice(0, cut), slice(cut, time)):
        alone = results([t[:, :, piece] for t in tensors], None, implementation, torch.float32)
        assert_close([t[:, :, piece] for t in whole], alone, BOUND)


@pytest.mark.parametrize("implementation", ["reference", "torch", "numba"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_stay_in_their_sequence_and_are_seen(implementation: str, bad: float) -> None:
    tensors, _ = problem(2, 2, 130, 16, many_documents=False)
    query, key, value = (t.float().contiguous() for t in tensors[:3])
    clean = attention(query, key, value, implementation=implementation)  # type: ignore[arg-type]
    key[1, 0, 70, 3] = bad
    spoiled = attention(query, key, value, implementation=implementation)  # type: ignore[arg-type]
    assert torch.equal(spoiled[0], clean[0])
    assert torch.equal(spoiled[1, 1], clean[1, 1])
    assert torch.equal(spoiled[1, 0, :64], clean[1, 0, :64])
    assert not bool(spoiled[1, 0, 70:].isfinite().all())


def test_pieces_with_a_past_are_the_whole() -> None:
    (query, key, value, _), begins = problem(2, 3, 30, 8, many_documents=True)
    assert begins is not None
    whole = attention(query, key, value, begins=begins)
    for first, last in ((0, 11), (11, 12), (12, 30)):
        piece = attention(query[:, :, first:last], key[:, :, :last], value[:, :, :last], begins=begins[:, first:last])
        torch.testing.assert_close(piece, whole[:, :, first:last], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_mask_is_made_once_where_one_is_looked_at(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, begins = problem(2, 3, 30, 8, many_documents=True)
    query, key, value = (t.to(dtype) for t in tensors[:3])
    mask = mask_for(query, 30, 30, begins)
    assert (mask is None) == (dtype == torch.float32)  # kernels for CPUs take the first keys themselves
    assert mask_for(query, 30, 30, None) is None
    expected = attention(query, key, value, begins=begins)
    monkeypatch.setattr("kernels.attention.visible", None)
    assert torch.equal(attention(query, key, value, begins=begins, mask=mask), expected)


def test_blocks_of_keys_are_what_documents_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    queries, keys = 300, 500
    (query, key, value, _), _ = problem(2, 2, keys, 8, many_documents=False)
    position = torch.arange(keys - queries, keys)
    begins = torch.stack([torch.where(position < 450, 150, 450), position * 0]).to(torch.int32)
    query = query[:, :, -queries:]
    mask = block_mask(queries, keys, begins)
    expected = visible(queries, keys, begins, query.device)
    torch.testing.assert_close(attend(query, key, value, mask), attention_reference(query, key, value, begins))

    def dense(counts: Tensor | None, numbers: Tensor | None) -> Tensor:
        assert counts is not None
        assert numbers is not None
        places = torch.arange(numbers.shape[-1]) < counts[..., None]
        return torch.zeros(numbers.shape, dtype=torch.bool).scatter(-1, numbers.long(), places)

    pad = (0, -keys % BLOCK, 0, -queries % BLOCK)
    blocks = F.pad(expected, pad).unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK)).transpose(3, 4)
    inside = F.pad(torch.ones_like(expected), pad).unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK)).transpose(3, 4)
    whole = dense(mask.full_kv_num_blocks, mask.full_kv_indices)
    assert torch.equal(whole | dense(mask.kv_num_blocks, mask.kv_indices), blocks.any(4).any(4))
    assert (blocks | ~inside)[whole].all()
    assert whole.any()


def test_a_gpu_gets_no_mask_of_all_pairs_and_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
            made = function(*arguments, **(options or {}))
            sizes.extend(t.numel() for t in pytree.tree_leaves(made) if isinstance(t, Tensor))
            return made

    with FakeTensorMode(), Sizes():  # fake tensors refuse to tell a number
        begins = torch.empty(2, 3000, dtype=torch.int32)
        assert isinstance(block_mask(3000, 3000, begins), BlockMask)
    assert max(sizes) <= 2 * 3000
    monkeypatch.setattr(kernels.attention, "visible", None)
    monkeypatch.setattr(kernels.attention.flex_blocks, "block_mask", lambda *given: given)
    with FakeTensorMode():
        x = torch.empty(2, 3000, 64, device="cuda", dtype=torch.bfloat16)
        queries, keys, given = mask_for(x, 3000, 3000, begins)  # type: ignore[misc]
        assert (queries, keys) == (3000, 3000)
        assert given is begins


def test_the_operator_keeps_the_rules_of_torch_library() -> None:
    tensors, begins = problem(2, 3, 70, 8, many_documents=True)
    inputs = [t.float().requires_grad_() for t in tensors[:3]]
    torch.library.opcheck(torch.ops.scaling.attention.default, (*inputs, begins))
    torch.library.opcheck(torch.ops.scaling.attention.default, (*inputs, None))


def test_what_cannot_run_is_refused_with_the_reason() -> None:
    query, key, value = (t.float() for t in problem(1, 2, 6, 8, False)[0][:3])
    with pytest.raises(ImplementationError, match="2 queries and 6 keys differ in number"):
        attention(query[:, :, 4:], key, value, implementation="numba")
    with pytest.raises(ImplementationError, match="no Triton kernels"):
        attention(query, key, value, implementation="triton")
    with pytest.raises(ValueError, match="key has shape"):
        attention(query, key[:, :, :3], value)
    with pytest.raises(ValueError, match=r"begins is torch\.int64, expected torch\.int32"):
        attention(query, key, value, begins=torch.zeros(1, 6, dtype=torch.int64))


THREADS = """
import sys, torch
torch.set_num_threads(int(sys.argv[1]))
sys.path[:0] = [sys.argv[2], sys.argv[2] + "/tests"]
from tests.kernels.test_attention import problem, results
for tensor in results(*problem(1, 3, 500, 24, True), "numba", torch.float32):
    print(tensor.flatten().tolist())
"""


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    root = Path(__file__).parents[2]

    def printed(threads: int) -> str:
        command = [sys.executable, "-c", THREADS, str(threads), str(root)]
        return subprocess.run(command, check=True, text=True, capture_output=True).stdout

    assert printed(1) == printed(3)
