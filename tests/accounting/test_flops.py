"""The closed forms count the matrix products that PyTorch's own counter of operators sees the built models do.

Nothing is computed: tensors are fake, and of each size's blocks two are built, since the counts add up. The counter
does not look into our operators, so plain forms are counted in their place, with their backward by autograd: the
products of the chunkwise mLSTM as written below, and the sLSTM's recurrence.

By hand, because the counter cannot see them or miscounts: scans and elementwise recurrences (of sLSTM, Mamba, RWKV-4,
LSTM), gates and normaliser of the mLSTM, and depthwise convolutions (whose backward it takes for a dense one).
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kernels.dispatch import prefer
from kernels.slstm import slstm
from xlstm.accounting import flops_per_token
from xlstm.models import build
from xlstm.models.sizes import config_for

TIME, CHUNK = 64, 32
ELSEWHERE = ("aten.convolution", "scaling.")
"""Operators whose count is not taken: convolutions, by hand; our own, from plain forms."""


def counted(counter: FlopCounterMode) -> int:
    counts = counter.get_flop_counts()["Global"]
    return sum(count for operator, count in counts.items() if not str(operator).startswith(ELSEWHERE))


def forward_and_backward(form: Callable[[], Tensor]) -> tuple[int, int]:
    """FLOPs of a plain form, and of its backward pass."""
    with FlopCounterMode(display=False) as forward:
        result = form()
    with FlopCounterMode(display=False) as backward:
        result.sum().backward()
    return counted(forward), counted(backward)


@lru_cache
def mlstm_products(heads: int, key_dim: int, value_dim: int) -> tuple[int, int]:
    """Of the chunkwise mLSTM: each chunk's pairs, its read of the memory before it, and its write to the memory."""
    q, k = (torch.zeros(heads, CHUNK, key_dim, requires_grad=True) for _ in range(2))
    v = torch.zeros(heads, CHUNK, value_dim, requires_grad=True)
    memory = torch.zeros(heads, key_dim, value_dim, requires_grad=True)

    def chunk() -> Tensor:
        h = (q @ k.transpose(-1, -2)) @ v + q @ memory
        return h.sum() + (memory + k.transpose(-1, -2) @ v).sum()

    forward, backward = forward_and_backward(chunk)
    return TIME // CHUNK * forward, TIME // CHUNK * backward


@lru_cache
def slstm_products(heads: int, head_dim: int) -> tuple[int, int]:
    """Of the sLSTM's recurrence, step by step."""
    gates = torch.zeros(1, TIME, 4, heads, head_dim, requires_grad=True)
    matrices = torch.zeros(4, heads, head_dim, head_dim, requires_grad=True)
    return forward_and_backward(lambda: slstm(gates, matrices, implementation="reference")[0])


def cells(config: Any) -> tuple[int, int]:
    """FLOPs, forward and backward, of the plain forms of all cells over TIME tokens."""
    if config.family not in ("xlstm", "xlstm-large"):
        return 0, 0
    d, heads = config.embedding_dim, config.num_heads
    keys, values = (config.key_dim, d) if config.family == "xlstm-large" else (2 * d, 2 * d)
    mlstm = mlstm_products(heads, keys // heads, values // heads)
    recurrence = slstm_products(heads, d // heads)
    num_slstm = len(getattr(config, "slstm_at", ()))
    forward, backward = (
        num_slstm * one + (config.num_blocks - num_slstm) * other for one, other in zip(recurrence, mlstm, strict=True)
    )
    return forward, backward


@pytest.fixture
def plain_attention_and_lstm() -> Iterator[None]:
    """Attention, LSTM and gates as matrix products: their fused forms are not looked into either."""
    prefer("torch")
    with sdpa_kernel(SDPBackend.MATH), torch.backends.mkldnn.flags(enabled=False):
        yield
    prefer("auto")


FAMILIES = [
    "xlstm[1:0]", "xlstm[7:1]", "xlstm[0:1]", "xlstm-large", "llama", "gpt", "mamba", "rwkv4", "lstm", "lstm[residual]",
]  # fmt: skip


SLSTM_AT: dict[str, Any] = {"xlstm[7:1]": {"slstm_at": (1,)}, "xlstm[0:1]": {"slstm_at": (0, 1)}}


@pytest.mark.usefixtures("plain_attention_and_lstm")
@pytest.mark.parametrize("size", ["125M", "350M", "2.7B"])
@pytest.mark.parametrize("family", FAMILIES)
def test_products_are_those_that_the_counter_sees_forward_and_backward(family: str, size: str) -> None:
    config = dataclasses.replace(config_for(family, size, 50_304), num_blocks=2, **SLSTM_AT.get(family, {}))
    with FakeTensorMode():
        model = build(config)
        tokens = torch.zeros(1, TIME, dtype=torch.int64)
        with FlopCounterMode(display=False) as forward:
            logits, _ = model(tokens)
        with FlopCounterMode(display=False) as backward:
            logits.backward(torch.empty_like(logits))
        in_cells = cells(config)
    closed = flops_per_token(config, TIME, causal=False, chunk_size=CHUNK).products
    assert (counted(forward) + in_cells[0]) / TIME == pytest.approx(closed, rel=0.01)
    assert (counted(backward) + in_cells[1]) / TIME == pytest.approx(2 * closed, rel=0.01)


def test_causal_counting_halves_the_pairs() -> None:
    config = config_for("llama", "125M", 50_304)
    squares, pairs = (flops_per_token(config, 1000, causal=causal).products for causal in (False, True))
    attention = 12 * 4 * 768 * 1000  # blocks, two products of 2 d per pair, pairs per token
    assert squares - pairs == pytest.approx(attention * (1 - 1001 / 2000))


def test_head_and_backward_pass_are_counted_when_asked_for() -> None:
    config = config_for("xlstm[7:1]", "125M", 50_304)
    whole = flops_per_token(config, 2048)
    assert whole.products - flops_per_token(config, 2048, include_head=False).products == 2 * 768 * 50_304
    assert flops_per_token(config, 2048, backward=True).flops == 3 * whole.flops
