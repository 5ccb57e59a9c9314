"""Causal attention by definition: softmax over the keys that a query sees."""

import torch
from torch import Tensor


def visible(queries: int, keys: int, begins: Tensor | None, device: torch.device) -> Tensor:
    """(batch or 1, 1, queries, keys): whether the key is the query's or before it, and not before its document."""
    key, query = torch.arange(keys, device=device), torch.arange(keys - queries, keys, device=device)
    mask = (key <= query[:, None])[None, None]
    return mask if begins is None else mask & (key >= begins[:, None, :, None])


def attention_reference(query: Tensor, key: Tensor, value: Tensor, begins: Tensor | None) -> Tensor:
    """softmax(q·k / sqrt(head_dim)) v over the visible keys; in float32 at least, as `query`."""
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = query.to(wide) @ key.to(wide).transpose(-1, -2) * query.shape[-1] ** -0.5
    seen = visible(query.shape[2], key.shape[2], begins, query.device)
    weights = scores.masked_fill(~seen, float("-inf")).softmax(dim=-1)
    return (weights @ value.to(wide)).to(query.dtype)


def by_token(x: Tensor) -> Tensor:
    """Room for what is shaped as `x` (batch, heads, time, head_dim), the heads of a token next to each other."""
    batch, heads, time, head_dim = x.shape
    return x.new_empty(batch, time, heads, head_dim).transpose(1, 2)
