"""What an mLSTM cell takes from its block (arXiv 2405.04517, figure 11): q, k, v, and gates that see them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from kernels import cpu
from kernels.block_diagonal import CPU_WIDTH, block_diagonal
from kernels.dispatch import Implementation, cast_for_autocast, choose, expect_shape
from kernels.operator import operator

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

    Each implementation but `numba` is those of the maps and a product of each part with its columns of `gates`, so that
    the parts are not copied together; the kernels for CPUs read and write every tensor once, each way. Under autocast
    all are cast. Raises ValueError for shapes that do not fit, ImplementationError for one that cannot run.
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

    def obstacle() -> str | None:
        if query.shape[-1] != CPU_WIDTH:
            return f"blocks of width {query.shape[-1]} are not supported; those of width {CPU_WIDTH} are"
        return cpu.obstacle(*operands)

    # What is asked of the maps is for them to accept or refuse, but for kernels that are of this operator alone.
    if choose(name, implementation, operands[0], cpu_obstacle=obstacle) == "numba":
        q, k, v, total = _mlstm_inputs(*operands)
        return q, k, v, total
    q, k, v = (
        block_diagonal(x, weight, implementation=implementation)
        for x, weight in ((convolved, query), (convolved, key), (inner, value))
    )
    dtype = torch.promote_types(q.dtype, torch.float32)
    for_q, for_k, for_v = gates.split(channels, dim=1)
    total = F.linear(q, for_q, bias).to(dtype) + F.linear(k, for_k).to(dtype) + F.linear(v, for_v).to(dtype)
    return q, k, v, total


@operator("mlstm_inputs")
def _mlstm_inputs(
    convolved: Tensor, inner: Tensor, query: Tensor, key: Tensor, value: Tensor, gates: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from kernels.mlstm_inputs import numba_inputs

    return numba_inputs.forward(convolved, inner, query, key, value, gates, bias)


@_mlstm_inputs.register_fake
def _(
    convolved: Tensor, inner: Tensor, query: Tensor, key: Tensor, value: Tensor, gates: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q, k, v = (inner.new_empty(inner.shape) for _ in range(3))
    return q, k, v, inner.new_empty(*inner.shape[:-1], bias.shape[0])


@operator("mlstm_inputs_backward")
def _mlstm_inputs_backward(
    grads: list[Tensor], convolved: Tensor, inner: Tensor, weights: list[Tensor], gates: Tensor, outputs: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of what the forward takes; `outputs` are q, k and v, `weights` query, key and value."""
    from kernels.mlstm_inputs import numba_inputs

    return numba_inputs.backward(grads, convolved, inner, weights, gates, outputs)


@_mlstm_inputs_backward.register_fake
def _(
    grads: list[Tensor], convolved: Tensor, inner: Tensor, weights: list[Tensor], gates: Tensor, outputs: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    like = (convolved, inner, *weights, gates)
    return *(t.new_empty(t.shape) for t in like), gates.new_empty(gates.shape[0])  # type: ignore[return-value]


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    convolved, inner, query, key, value, gates, _ = inputs
    ctx.save_for_backward(convolved, inner, query, key, value, gates, *output[:3])


def _differentiate(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    convolved, inner, query, key, value, gates, *outputs = ctx.saved_tensors
    return tuple(_mlstm_inputs_backward(list(grads), convolved, inner, [query, key, value], gates, outputs))


_mlstm_inputs.register_autograd(_differentiate, keep=_keep_for_backward)


@register_flop_formula(torch.ops.scaling.mlstm_inputs)
def mlstm_inputs_flops(x_shape: Any, _: Any, query_shape: Any, *shapes: Any, **kwargs: Any) -> int:
    """Forward: three block-diagonal maps, and the gates' product with their results."""
    batch, time, channels = x_shape
    num_gates = shapes[2][0]
    return 6 * batch * time * channels * (int(query_shape[-1]) + int(num_gates))


@register_flop_formula(torch.ops.scaling.mlstm_inputs_backward)
def mlstm_inputs_backward_flops(
    _: Any, x_shape: Any, __: Any, weights: Any, gates: Any, *___: Any, **kwargs: Any
) -> int:
    """Backward: the same for the inputs, and for the weights."""
    batch, time, channels = x_shape
    return 12 * batch * time * channels * (int(weights[0][-1]) + int(gates[0]))
