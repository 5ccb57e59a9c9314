"""Rotary positions (Su et al. 2021, arXiv 2104.09864): queries and keys turned by angles of their positions."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from kernels import cpu
from kernels.dispatch import Implementation, choose, expect_shape
from kernels.operator import modules, operator
from kernels.rotary.reference import rotary_reference

__all__ = ["rotary"]


def rotary(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *, implementation: Implementation = "auto"
) -> tuple[Tensor, Tensor]:
    """Each pair (x_j, x_{j + head_dim/2}) of each head turned by its token's j-th angle, in queries and in keys.

    `query` and `key` (batch, time, heads, head_dim), and so the results. `cos` and `sin` of the angles, ([batch,] time,
    head_dim/2), float32 at least, carry no gradient: that of queries and keys is turned back, and nothing else is kept.
    Computed in float32 at least, also under autocast. Raises ValueError for shapes or dtypes that do not fit,
    ImplementationError for an implementation that cannot run.
    """
    name = "rotary"
    if query.ndim != 4 or query.shape[-1] % 2:
        raise ValueError(f"{name}: query has shape {tuple(query.shape)}, expected (batch, time, heads, even head_dim)")
    batch, time, _, head_dim = query.shape
    expect_shape(name, "key", key, tuple(query.shape), "that of query")
    ours = (batch, time, head_dim // 2) if cos.ndim == 3 else (time, head_dim // 2)
    expect_shape(name, "cos", cos, ours, "([batch,] time, head_dim / 2)")
    expect_shape(name, "sin", sin, ours, "that of cos")
    if query.dtype != key.dtype:
        raise ValueError(f"{name}: query and key are {query.dtype} and {key.dtype}, expected one dtype")
    for label, angles in (("cos", cos), ("sin", sin)):  # half precision tells no more than 256 positions apart
        if angles.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name}: {label} is {angles.dtype}, expected torch.float32 or torch.float64")
    chosen = choose(name, implementation, query, cpu_obstacle=lambda: cpu.obstacle(query, key, cos, sin))
    if chosen == "reference":
        return rotary_reference(query, cos, sin), rotary_reference(key, cos, sin)
    return _rotary(query, key, cos, sin, chosen)


_module = modules(__name__, torch="torch_fused", numba="numba_turn", triton="triton_turn")


@operator("rotary")
def _rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, implementation: str) -> tuple[Tensor, Tensor]:
    turned_query, turned_key = _module(implementation).turn(query, key, cos, sin, False)
    return turned_query, turned_key


@operator("rotary_backward")
def _rotary_backward(
    grad_query: Tensor, grad_key: Tensor, cos: Tensor, sin: Tensor, implementation: str
) -> tuple[Tensor, Tensor]:
    """Gradients of query and key: turned back."""
    turned_query, turned_key = _module(implementation).turn(grad_query, grad_key, cos, sin, True)
    return turned_query, turned_key


@_rotary.register_fake
@_rotary_backward.register_fake
def _(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, implementation: str) -> tuple[Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, _, cos, sin, ctx.implementation = inputs
    ctx.save_for_backward(cos, sin)


def _differentiate(ctx: Any, grad_query: Tensor, grad_key: Tensor) -> tuple[Tensor | None, ...]:
    return *_rotary_backward(grad_query, grad_key, *ctx.saved_tensors, ctx.implementation), None, None, None


_rotary.register_autograd(_differentiate, keep=_keep_for_backward)


@register_flop_formula([torch.ops.scaling.rotary, torch.ops.scaling.rotary_backward])
def rotary_flops(*args: Any, **kwargs: Any) -> int:
    """Positions count as nothing, as norms."""
    return 0
