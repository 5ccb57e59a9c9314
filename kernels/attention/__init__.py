"""Causal softmax attention within documents (Vaswani et al. 2017, arXiv 1706.03762)."""

from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.flop_counter import sdpa_flop_count

from kernels import cpu
from kernels.attention import flex_blocks
from kernels.attention.reference import attention_reference, by_token, visible
from kernels.dispatch import Chosen, Implementation, cast_for_autocast, choose, expect_shape, modules
from kernels.operator import Operator

__all__ = ["Mask", "attention", "mask_for"]

Mask: TypeAlias = Tensor | BlockMask
"""What each query sees: (batch or 1, 1, queries, keys), true where seen; on a GPU the blocks of keys."""


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    begins: Tensor | None = None,
    mask: Mask | None = None,
    implementation: Implementation = "auto",
) -> Tensor:
    """softmax(q·k / sqrt(head_dim)) v over each query's own token and those before it, within its document.

    `query` is (batch, heads, queries, head_dim), `key` and `value` (batch, heads, keys, head_dim): the queries are the
    last of the keys' tokens. `begins` (batch, queries, int32), the first key that a query sees, may not fall from one
    query to the next; `mask` is what `mask_for` gave for them, made here where absent. Returns (batch, heads, queries,
    head_dim) in the dtype of `query`; softmax in float32 at least.

    `implementation` is as in `kernels.dispatch`; `torch` is PyTorch's scaled_dot_product_attention, with documents on a
    GPU its FlexAttention, and what runs there: there are no Triton kernels of ours. Those for CPUs take as many queries
    as keys. Raises ValueError for shapes that
    do not fit, ImplementationError for an implementation that cannot run.
    """
    name = "attention"
    if query.ndim != 4:
        raise ValueError(f"{name}: query has shape {tuple(query.shape)}, expected (batch, heads, queries, head_dim)")
    batch, heads, queries, head_dim = query.shape
    if key.ndim != 4 or key.shape[2] < queries:
        raise ValueError(f"{name}: key has shape {tuple(key.shape)}, expected at least the {queries} tokens of query")
    keys = key.shape[2]
    expect_shape(name, "key", key, (batch, heads, keys, head_dim), "(batch, heads, keys, head_dim)")
    expect_shape(name, "value", value, (batch, heads, keys, head_dim), "(batch, heads, keys, head_dim)")
    if begins is not None:
        expect_shape(name, "begins", begins, (batch, queries), "(batch, queries)")
        if begins.dtype != torch.int32:
            raise ValueError(f"{name}: begins is {begins.dtype}, expected torch.int32")
    query, key, value = cast_for_autocast(query, key, value)

    chosen = _choose(implementation, queries, keys, query, key, value)
    if chosen == "reference":
        return attention_reference(query, key, value, begins)
    if chosen == "numba" and query.numel() > 0:
        return _attention(query, key, value, begins)[0]
    if begins is None and _sees_all_before(queries, keys):
        return F.scaled_dot_product_attention(query, key, value, is_causal=queries > 1)
    mask = _mask(query, queries, keys, begins) if mask is None else mask
    if isinstance(mask, BlockMask):
        return flex_blocks.attend(query, key, value, mask)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def mask_for(x: Tensor, queries: int, keys: int, begins: Tensor | None) -> Mask | None:
    """The mask that PyTorch's attention needs, to be made once for all blocks; None where none is looked at.

    `x` is what queries come from: of their device and dtype.
    """
    if begins is None and _sees_all_before(queries, keys):
        return None
    of_none = cast_for_autocast(x.new_empty(0))[0]
    if _choose("auto", queries, keys, of_none) == "numba":
        return None
    return _mask(x, queries, keys, begins)


def _mask(x: Tensor, queries: int, keys: int, begins: Tensor | None) -> Mask:
    """Of all pairs only where they are few: on a CPU, or for one query."""
    if not x.is_cuda or queries == 1:
        return visible(queries, keys, begins, x.device)
    if begins is None:
        begins = torch.zeros(x.shape[0], queries, dtype=torch.int32, device=x.device)
    return flex_blocks.block_mask(queries, keys, begins)


def _sees_all_before(queries: int, keys: int) -> bool:
    return queries in (keys, 1)


def _choose(implementation: Implementation, queries: int, keys: int, *tensors: Tensor) -> Chosen:
    def cpu_obstacle() -> str | None:
        differ = f"{queries} queries and {keys} keys differ in number" if queries != keys else None
        return differ or cpu.obstacle(*tensors)

    return choose("attention", implementation, tensors[0], shape_obstacle=None, cpu_obstacle=cpu_obstacle)


# `scores` (2, batch, heads, queries) is what the backward needs of them. PyTorch counts every pair of query and key,
# whether seen or not; that the backward computes scores once more is how it is done, not what.
_attention = Operator[tuple[Tensor, Tensor]](
    "attention",
    "(Tensor query, Tensor key, Tensor value, Tensor? begins) -> (Tensor y, Tensor scores)",
    backward="(grad_y, query, key, value, begins, y, scores) -> (query, key, value)",
    modules=modules(__name__, numba="numba_blocks"),
    results=lambda query: (by_token(query), query.new_empty(2, *query.shape[:-1])),
    gradients=lambda query, key, value: (by_token(query), by_token(key), by_token(value)),
    flops=lambda query, key, value: sdpa_flop_count(query, key, value),
)
