"""What an mLSTM cell takes from its block (arXiv 2405.04517, figure 11): q, k, v, and gates that see them."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.block_diagonal import block_diagonal, cpu_obstacle
from kernels.dispatch import Implementation, cast_for_autocast, choose, expect_shape, modules
from kernels.operator import Operator

__all__ = ["mlstm_inputs"]


def mlstm_inputs(
    convolved: Tensor,
    inner: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gates: Tensor,
    bias: Tensor,
    *,
    implementation: Implementation = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries and keys of `convolved`, values of `inner`, and the gates' pre-activations.

    `convolved` and `inner` (batch, time, channels); `query`, `key`, `value` (blocks, width, width) as in
    `block_diagonal`; `gates` (gates, 3 * channels) sees queries, keys and values side by side, `bias` (gates,). Returns
    three tensors (batch, time, channels) and one (batch, time, gates), which is float32 at least.

    `reference` and `torch` are the maps and a product of each part with its columns of `gates`, so that the parts are
    not copied together, and so is `triton` for widths that are no power of two up to 16; the other kernels read and
    write every tensor once, each way. Under autocast all are cast. Raises ValueError for shapes that do not fit,
    ImplementationError for one that cannot run.
    """
    name = "mlstm_inputs"
    batch, time, channels = convolved.shape
    expect_shape(name, "inner", inner, (batch, time, channels), "(batch, time, channels), that of convolved")
    expect_shape(name, "gates", gates, (bias.shape[0], 3 * channels), "(gates, 3 * channels)")
    for label, weight in (("key", key), ("value", value)):
        expect_shape(name, label, weight, tuple(query.shape), "that of query")
    if query.shape[0] * query.shape[-1] != channels:
        raise ValueError(f"{name}: query has shape {tuple(query.shape)}, expected blocks * width = {channels} channels")
    operands = cast_for_autocast(convolved, inner, query, key, value, gates, bias)
    width = query.shape[-1]
    # What is asked of the maps is for them to accept or refuse, but for kernels that are of this operator alone.
    chosen = choose(name, implementation, operands[0], cpu_obstacle=lambda: cpu_obstacle(width, *operands))
    fused = chosen == "triton" and _modules("triton").shape_obstacle(width) is None
    if chosen == "numba" or fused:
        return _mlstm_inputs(*operands, chosen)
    q, k, v = (
        block_diagonal(x, weight, implementation=implementation)
        for x, weight in ((convolved, query), (convolved, key), (inner, value))
    )
    dtype = torch.promote_types(q.dtype, torch.float32)
    for_q, for_k, for_v = gates.split(channels, dim=1)
    total = F.linear(q, for_q, bias).to(dtype) + F.linear(k, for_k).to(dtype) + F.linear(v, for_v).to(dtype)
    return q, k, v, total


def _results(inner: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q, k, v = (inner.new_empty(inner.shape) for _ in range(3))
    dtype = torch.promote_types(inner.dtype, torch.float32)
    return q, k, v, inner.new_empty(*inner.shape[:-1], bias.shape[0], dtype=dtype)


def _gradients(
    convolved: Tensor, inner: Tensor, query: Tensor, key: Tensor, value: Tensor, gates: Tensor
) -> tuple[Tensor, ...]:
    like = (convolved, inner, query, key, value, gates)
    return *(t.new_empty(t.shape) for t in like), gates.new_empty(gates.shape[0])


def _run_backward(module: Any, *operands: Tensor) -> tuple[Tensor, ...]:
    grads, (convolved, inner, *weights), gates, outputs = operands[:4], operands[4:9], operands[9], operands[10:]
    gradients: tuple[Tensor, ...] = module.backward(list(grads), convolved, inner, weights, gates, list(outputs))
    return gradients


def _flops(convolved: tuple[int, ...], query: tuple[int, ...], gates: tuple[int, ...]) -> int:
    """Three maps, and the gates' product with their results. Backward the same for the inputs, and for the weights."""
    return 6 * math.prod(convolved) * (query[-1] + gates[0])


_modules = modules(__name__, numba="numba_inputs", triton="triton_inputs")
_mlstm_inputs = Operator[tuple[Tensor, Tensor, Tensor, Tensor]](
    "mlstm_inputs",
    "(Tensor convolved, Tensor inner, Tensor query, Tensor key, Tensor value, Tensor gates, Tensor bias,"
    " str implementation)"
    " -> (Tensor q, Tensor k, Tensor v, Tensor total)",
    backward="(grad_q, grad_k, grad_v, grad_total, convolved, inner, query, key, value, gates, q, k, v,"
    " implementation)"
    " -> (convolved, inner, query, key, value, gates, bias)",
    modules=_modules,
    run_backward=_run_backward,
    results=_results,
    gradients=_gradients,
    flops=_flops,
)
