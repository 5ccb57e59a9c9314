"""Rotary positions (Su et al. 2021, arXiv 2104.09864): queries and keys turned by angles of their positions."""

import torch
from torch import Tensor

from kernels import cpu
from kernels.dispatch import Implementation, choose, expect_shape, modules
from kernels.operator import Operator
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
    chosen = choose(name, implementation, query, cpu_obstacle=lambda: cpu.obstacle(query, key, cos, sin), fusible=True)
    if chosen == "reference":
        return rotary_reference(query, cos, sin), rotary_reference(key, cos, sin)
    return _rotary(query, key, cos, sin, chosen)


def _two_like(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape)


_rotary = Operator[tuple[Tensor, Tensor]](
    "rotary",
    "(Tensor query, Tensor key, Tensor cos, Tensor sin, str implementation)"
    " -> (Tensor turned_query, Tensor turned_key)",
    backward="(grad_turned_query, grad_turned_key, cos, sin, implementation) -> (query, key)",
    modules=modules(__name__, torch="torch_fused", numba="numba_turn", triton="triton_turn"),
    run_forward=lambda module, *operands: module.turn(*operands, back=False),
    run_backward=lambda module, *operands: module.turn(*operands, back=True),
    results=_two_like,
    gradients=lambda grad_turned_query, grad_turned_key: _two_like(grad_turned_query, grad_turned_key),
    flops=0,  # as norms
)
