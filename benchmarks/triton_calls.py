"""Calls of every operator with Triton kernels at the published shapes, on tensors of the CPU, forward and backward."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from kernels.block_diagonal import block_diagonal
from kernels.causal_conv import causal_conv_silu
from kernels.gated_head_norm import gated_head_norm
from kernels.gated_linear_attention import gated_linear_attention
from kernels.linear_cross_entropy import linear_cross_entropy
from kernels.linear_recurrence import linear_recurrence
from kernels.mlstm import mlstm
from kernels.mlstm_inputs import mlstm_inputs
from kernels.rms_norm import rms_norm
from kernels.rotary import rotary
from kernels.selective_scan import selective_scan
from kernels.slstm import slstm, triton_scan
from kernels.squared_relu import squared_relu
from kernels.swiglu import swiglu
from kernels.token_shift import token_shift
from kernels.wkv import wkv

HEADS = (384, 512, 768, 1024, 1280)
"""Head dimensions of the published xLSTM[1:0], of which there are four; half of that the width of the model."""


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A leaf of the autograd graph."""
    return torch.randn(shape).to(dtype).requires_grad_()


def _by_head(batch: int, time: int, heads: int, dim: int, dtype: torch.dtype) -> Tensor:
    return normal(batch, time, heads * dim, dtype=dtype).unflatten(-1, (heads, dim)).transpose(1, 2)


def _resets(batch: int, time: int) -> Tensor:
    return torch.zeros(batch, time, dtype=torch.bool)


def dtypes(some: bool) -> tuple[tuple[str, torch.dtype], ...]:
    """What every shape is compiled for, and how that is called."""
    both = (("", torch.bfloat16), (", float32", torch.float32))
    return both[: 1 if some else None]


def mlstm_shapes(some: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The cell at the published head dimensions, and at those of 16 heads."""
    shapes = [(4, size, size) for size in HEADS] + [(16, 128, 256)]
    for heads, key_dim, value_dim in shapes[:1] if some else shapes:
        for label, dtype in dtypes(some):

            def call(heads: int = heads, key: int = key_dim, value: int = value_dim, dtype: Any = dtype) -> Tensor:
                q, k, v = (_by_head(1, 512, heads, dim, dtype) for dim in (key, key, value))
                i, f = (normal(1, 512, heads, dtype=torch.float32).transpose(1, 2) for _ in range(2))
                return mlstm(q, k, v, i, f, resets=_resets(1, 512), implementation="triton")[0]

            yield f"{heads} × {key_dim}/{value_dim}{label}", call


def slstm_shapes(some: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The sLSTM at the published head dimensions, in one launch and in a launch a step."""
    forms: list[tuple[str, int, torch.dtype]] = [("", 2**20, torch.bfloat16)]
    forms += [(", a launch a step", 0, torch.bfloat16), (", float32", 2**20, torch.float32)]
    for dim in (512,) if some else [size // 2 for size in HEADS]:
        for form, programs, dtype in forms[: 1 if some else None]:

            def call(dim: int = dim, programs: int = programs, dtype: torch.dtype = dtype) -> list[Tensor]:
                tensors = normal(4, 16, 4, 4, dim, dtype=dtype), normal(4, 4, dim, dim, dtype=dtype)
                with mock.patch.object(triton_scan, "programs_at_once", return_value=programs):
                    h, _ = slstm(*tensors, resets=_resets(4, 16), gradient_clip=10.0, implementation="triton")
                    h.backward(torch.randn_like(h))
                return []

            yield f"4 × {dim}{form}", call


def block_shapes(some: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What surrounds the mLSTM cell, in the inner width of four heads."""
    for (label, dtype), size in itertools.product(dtypes(some), (384,) if some else HEADS):

        def call(width: int = 4 * size, size: int = size, dtype: torch.dtype = dtype) -> list[Tensor]:
            drawn = partial(normal, dtype=dtype)
            inner, gate = drawn(2, 64, 2 * width).chunk(2, dim=-1)
            convolved = causal_conv_silu(
                inner, drawn(width, 4), drawn(width), resets=_resets(2, 64), implementation="triton"
            )[0]
            normed = gated_head_norm(
                _by_head(2, 64, 4, size, dtype).transpose(1, 2), drawn(width), gate,
                skipped=convolved, skip=drawn(width), implementation="triton",
            )  # fmt: skip
            maps = [drawn(width // 4, 4, 4) for _ in range(4)]
            mapped = mlstm_inputs(
                convolved, inner, *maps[:3], drawn(8, 3 * width), drawn(8), implementation="triton"
            )  # fmt: skip
            return [block_diagonal(convolved, maps[3], implementation="triton"), normed, *mapped]

        yield f"width {4 * size}{label}", call


def others_shapes(some: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Operators of the other models, in the widths of the published sizes."""
    for (label, dtype), width in itertools.product(dtypes(some), (768,) if some else [2 * size for size in HEADS]):

        def call(width: int = width, dtype: torch.dtype = dtype) -> list[Tensor]:
            drawn = partial(normal, dtype=dtype)
            x, by = drawn(2, 64, width), {"implementation": "triton"}
            angles = torch.randn(64, 32)
            turned = rotary(*(drawn(2, 64, width // 64, 64) for _ in range(2)), angles.cos(), angles.sin(), **by)
            mixed = token_shift(x, drawn(2, width), last=drawn(2, width), resets=_resets(2, 64), **by)
            outputs = [rms_norm(x, drawn(width), **by), swiglu(x, drawn(2, 64, width), **by), squared_relu(x, **by)]
            return [*turned, *mixed, *outputs]

        yield f"width {width}{label}", call


def scan_shapes(some: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Of Mamba and RWKV-4, whose tiles do not depend on the width."""
    for label, dtype in dtypes(some):

        def call(dtype: torch.dtype = dtype) -> list[Tensor]:
            drawn = partial(normal, dtype=dtype)
            by: dict[str, Any] = {"resets": _resets(2, 64), "implementation": "triton"}
            u, delta, B, C = drawn(2, 64, 1536), drawn(2, 64, 1536), drawn(2, 64, 16), drawn(2, 64, 16)
            rates = normal(1536, 16, dtype=torch.float32)
            scanned = selective_scan(u, delta, rates, B, C, **by)[0]
            decay, bonus = (normal(768, dtype=torch.float32) for _ in range(2))
            return [scanned, wkv(drawn(2, 64, 768), drawn(2, 64, 768), decay, bonus, **by)[0]]

        yield f"width 768{label}", call


def linear_attention_shapes(some: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Heads of RWKV, of HGRN2 and of GLA at 350M; and HGRN's recurrence, whose tiles do not depend on the width."""
    shapes = [(16, 64, 64), (8, 128, 128), (4, 128, 256)]
    for (label, dtype), (heads, key_dim, value_dim) in itertools.product(dtypes(some), shapes[: 1 if some else None]):

        def call(
            heads: int = heads, key_dim: int = key_dim, value_dim: int = value_dim, dtype: torch.dtype = dtype
        ) -> list[Tensor]:
            q, k, v = (normal(1, 128, heads, dim, dtype=dtype) for dim in (key_dim, key_dim, value_dim))
            g = normal(1, 128, heads, key_dim, dtype=torch.float32)
            by: dict[str, Any] = {"resets": _resets(1, 128), "implementation": "triton"}
            x, decay = normal(2, 64, 768, dtype=dtype), normal(2, 64, 768, dtype=torch.float32)
            return [
                gated_linear_attention(q, k, v, g, **by)[0],
                linear_recurrence(x, decay, resets=_resets(2, 64), implementation="triton"),
            ]

        yield f"{heads} × {key_dim}/{value_dim}{label}", call


def loss_shapes(some: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Rows of logits of a vocabulary that is a multiple of 16, and of one that is none."""
    for (label, dtype), vocab in itertools.product(dtypes(some), (50304,) if some else (50304, 50257)):

        def call(vocab: int = vocab, dtype: torch.dtype = dtype) -> list[Tensor]:
            hidden, weight = normal(2, 8, 64, dtype=dtype), normal(vocab, 64, dtype=dtype)
            targets, caps = torch.zeros(2, 8, dtype=torch.int64), (None,) if some else (None, 30.0)
            return [linear_cross_entropy(hidden, weight, targets, soft_cap=c, implementation="triton") for c in caps]

        yield f"vocabulary {vocab}{label}", call


GROUPS = {
    "mLSTM": mlstm_shapes,
    "sLSTM": slstm_shapes,
    "block": block_shapes,
    "others": others_shapes,
    "scans": scan_shapes,
    "linear attention": linear_attention_shapes,
    "loss": loss_shapes,
}
