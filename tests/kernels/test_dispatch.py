"""Which implementation a GPU's tensors get, without one being present: fake tensors say that they are there."""

import contextlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from kernels import dispatch
from kernels.attention.flex_blocks import block_mask
from kernels.attention.reference import visible
from kernels.dispatch import ImplementationError, choose
from kernels.linear_cross_entropy import chunks
from kernels.mlstm import mlstm
from kernels.operator import _plainly
from xlstm.models.attention import lay_out
from xlstm.models.configs import LlamaConfig
from xlstm.models.llama import Angles, Block


def on_gpu(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    with FakeTensorMode():
        return torch.empty(shape, dtype=dtype, device="cuda:1")


@pytest.mark.parametrize(
    ("dtype", "of_products", "expected"),
    [(torch.bfloat16, True, "triton"), (torch.float32, True, "torch"), (torch.float32, False, "triton")],
)
def test_products_in_float32_are_the_librarys_on_a_gpu(
    dtype: torch.dtype, of_products: bool, expected: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    tensor = on_gpu(2, dtype=dtype)
    assert choose("mlstm", "auto", tensor, of_products=of_products) == expected
    assert choose("mlstm", "triton", tensor, of_products=of_products) == "triton"


def test_a_compiler_for_a_gpu_fuses_what_llamas_blocks_do_beside_their_products(monkeypatch: Any) -> None:
    config = LlamaConfig(vocab_size=8, embedding_dim=64, num_blocks=1, num_heads=2)
    block, x = Block(config).bfloat16(), torch.randn(1, 4, 64).bfloat16()
    layout = lay_out(x, None, None)
    seen: list[str] = []

    def compiler(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    def names() -> list[str]:
        seen.clear()
        torch.compiler.reset()
        torch.compile(block, backend=compiler, fullgraph=True)(x, layout, None, False, Angles(layout.positions, config))
        return [name for name in seen if name.startswith("scaling.")]

    assert len(names()) == 4
    monkeypatch.setattr(dispatch, "_on_gpu", lambda tensor: True)
    assert names() == []


@pytest.mark.slow
def test_a_compiled_llama_block_is_one_graph_whatever_its_documents(monkeypatch: Any) -> None:
    monkeypatch.setattr(dispatch, "_on_gpu", lambda tensor: True)
    config = LlamaConfig(vocab_size=8, embedding_dim=64, num_blocks=1, num_heads=2)
    block, graphs = Block(config).requires_grad_(False), []  # on CPUs, FlexAttention has no backward

    def compiler(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    compiled = torch.compile(block, backend=compiler, fullgraph=True)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        x, resets = torch.randn(2, 300, 64, generator=generator), torch.rand(2, 300, generator=generator) < 0.02
        layout = lay_out(x, None, resets)
        assert layout.begins is not None
        mask, angles = block_mask(300, 300, layout.begins), Angles(layout.positions, config)
        ours, _ = compiled(x, replace(layout, mask=mask), None, False, angles)
        dense = visible(300, 300, layout.begins, x.device)
        torch.testing.assert_close(ours, block(x, replace(layout, mask=dense), None, False, angles)[0])
    assert len(graphs) == 1


def test_hopper_wants_a_triton_that_was_checked(monkeypatch: Any) -> None:
    monkeypatch.setattr(dispatch.importlib.metadata, "version", lambda package: "3.5.1")
    tensor = on_gpu(2, dtype=torch.bfloat16)
    for capability, obstacle in ((9, "Triton 3.5.1 is below 3.6"), (8, None)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, major=capability: (major, 0))
        assert (dispatch.triton_obstacle(tensor) or "").startswith(obstacle or "")
        assert choose("mlstm", "auto", tensor) == ("torch" if obstacle else "triton")


def test_a_body_runs_on_the_device_of_its_tensors(monkeypatch: Any) -> None:
    seen = []

    def entered(device: torch.device) -> Any:
        seen.append(device)
        return contextlib.nullcontext()

    monkeypatch.setattr(torch.cuda, "device", entered)
    body = _plainly(lambda x: None)
    body(torch.empty(2))
    body(on_gpu(2, dtype=torch.bfloat16))
    assert seen == [torch.device("cuda:1")]


def test_a_loss_on_a_gpu_takes_large_chunks_and_adds_to_float32_within_its_products() -> None:
    assert chunks.rows_at_once(50304, 2, on_gpu=True) == 5120
    assert chunks.rows_at_once(2**27, 2, on_gpu=True) == 256
    assert chunks.rows_at_once(50304, 4, on_gpu=False) == 2**24 // 50304
    with FakeTensorMode():
        total = torch.empty(32, 64, device="cuda")
        left, right = (torch.empty(8, size, device="cuda", dtype=torch.bfloat16) for size in (32, 64))
        added = chunks._plus_product(total, left.t(), right)
    assert added.dtype == torch.float32


def test_an_implementation_that_cannot_run_says_why() -> None:
    tensors = [torch.zeros(shape, dtype=torch.float64) for shape in ((1, 1, 4, 8),) * 3 + ((1, 1, 4),) * 2]
    with pytest.raises(ImplementationError, match="'fast' is none of auto, reference, torch, numba, triton"):
        mlstm(*tensors, implementation="fast")
    with pytest.raises(ImplementationError, match=r"cannot run: torch\.float64 is not supported"):
        mlstm(*tensors, implementation="triton")
    with pytest.raises(ImplementationError, match="'triton' cannot run: key_dim 8 is not a multiple of 16"):
        mlstm(*(tensor.float() for tensor in tensors), implementation="triton")
