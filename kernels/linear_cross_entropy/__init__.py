"""A linear map to a vocabulary and the cross-entropy of what it gives, without all logits of a batch at once."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from kernels.dispatch import Implementation, cast_for_autocast, choose, expect_shape, state_dtype
from kernels.linear_cross_entropy import chunks
from kernels.linear_cross_entropy.reference import linear_cross_entropy_reference
from kernels.operator import operator

__all__ = ["linear_cross_entropy"]


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    ignored: int = -100,
    soft_cap: float | None = None,
    z_loss: float = 0.0,
    implementation: Implementation = "auto",
) -> Tensor:
    """-log softmax(hidden weight^T) at the targets, in nats: shape of `targets`, float32 (float64 for float64 inputs).

    `hidden` (…, d), `weight` (vocab, d), `targets` (…) of integers; 0 where the target is `ignored`, a negative number.
    `soft_cap` c bounds logits: c tanh(logit / c). `z_loss` gives each loss the gradient of loss + z_loss log(Z)² and
    leaves its value; Z is the sum of the exponentials of its logits (Chowdhery et al. 2022, arXiv 2204.02311, section
    5). Under autocast, products are in its dtype. Raises ValueError for shapes that do not fit, ImplementationError for
    an implementation that cannot run.
    """
    name = "linear_cross_entropy"
    if weight.ndim != 2:
        raise ValueError(f"{name}: weight has shape {tuple(weight.shape)}, expected (vocab, d)")
    if ignored >= 0:
        raise ValueError(f"{name}: ignored is {ignored}, expected a negative number, which is no token")
    expect_shape(name, "hidden", hidden, (*targets.shape, weight.shape[1]), "(*targets.shape, d)")
    hidden, weight = cast_for_autocast(hidden, weight)
    weight = weight.to(hidden.dtype)
    rows, labels = hidden.reshape(math.prod(targets.shape), -1), targets.flatten()
    chosen = choose(name, implementation, rows)
    if chosen == "reference":
        losses = linear_cross_entropy_reference(rows, weight, labels, ignored, soft_cap, z_loss)
    else:
        losses, _, _ = _linear_cross_entropy(rows, weight, labels, ignored, soft_cap, z_loss, chosen)
    return losses.view(targets.shape)


@operator("linear_cross_entropy")
def _linear_cross_entropy(
    rows: Tensor,
    weight: Tensor,
    labels: Tensor,
    ignored: int,
    soft_cap: float | None,
    z_loss: float,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses; for the backward, logarithms of the partition sums, and of the logits what is kept."""
    return chunks.forward(rows, weight, labels, ignored, soft_cap, implementation)


@_linear_cross_entropy.register_fake
def _(rows: Tensor, weight: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    count, vocab = rows.shape[0], weight.shape[0]
    kept = count if count <= chunks.rows_at_once(vocab) else 0
    losses, log_z = (rows.new_empty(count, dtype=state_dtype(rows)) for _ in range(2))
    return losses, log_z, rows.new_empty(kept, vocab, dtype=chunks.kept_dtype(rows, options[-1]))


@operator("linear_cross_entropy_backward")
def _linear_cross_entropy_backward(
    grads: Tensor,
    rows: Tensor,
    weight: Tensor,
    labels: Tensor,
    log_z: Tensor,
    kept: Tensor,
    ignored: int,
    soft_cap: float | None,
    z_loss: float,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    """Gradients of the rows and of the weight."""
    return chunks.backward(grads, rows, weight, labels, log_z, kept, ignored, soft_cap, z_loss, implementation)


@_linear_cross_entropy_backward.register_fake
def _(grads: Tensor, rows: Tensor, weight: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    return rows.new_empty(rows.shape), weight.new_empty(weight.shape)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    rows, weight, labels, *ctx.options = inputs
    ctx.save_for_backward(rows, weight, labels, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx: Any, grads: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    of_rows, of_weight = _linear_cross_entropy_backward(grads, *ctx.saved_tensors, *ctx.options)
    return of_rows, of_weight, *(None,) * 5


_linear_cross_entropy.register_autograd(_differentiate, keep=_keep_for_backward)


@register_flop_formula(torch.ops.scaling.linear_cross_entropy)
def linear_cross_entropy_flops(rows_shape: Any, weight_shape: Any, *args: Any, **kwargs: Any) -> int:
    """Forward: the product."""
    return 2 * int(rows_shape[0]) * int(weight_shape[0]) * int(weight_shape[1])


@register_flop_formula(torch.ops.scaling.linear_cross_entropy_backward)
def linear_cross_entropy_backward_flops(
    grads_shape: Any, rows_shape: Any, weight_shape: Any, labels_shape: Any, log_z: Any, kept: Any, *args: Any, **_: Any
) -> int:
    """Backward: one product for the rows, one for the weight, and the logits anew where they were not kept."""
    products = 2 if int(kept[0]) == int(rows_shape[0]) else 3
    return products * linear_cross_entropy_flops(rows_shape, weight_shape)
