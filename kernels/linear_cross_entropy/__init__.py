"""A linear map to a vocabulary and the cross-entropy of what it gives, without all logits of a batch at once."""

import math

from torch import Tensor

from kernels.dispatch import Chosen, Implementation, cast_for_autocast, choose, expect_shape, modules, state_dtype
from kernels.linear_cross_entropy import chunks
from kernels.linear_cross_entropy.reference import linear_cross_entropy_reference
from kernels.operator import Operator

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


def _results(rows: Tensor, weight: Tensor, implementation: Chosen) -> tuple[Tensor, Tensor, Tensor]:
    count, vocab = rows.shape[0], weight.shape[0]
    kept = count if count <= chunks.rows_at_once(vocab, rows.itemsize, rows.is_cuda) else 0
    losses, log_z = (rows.new_empty(count, dtype=state_dtype(rows)) for _ in range(2))
    return losses, log_z, rows.new_empty(kept, vocab, dtype=_modules(implementation).kept_dtype(rows))


def _backward_flops(rows: tuple[int, ...], weight: tuple[int, ...], kept: tuple[int, ...]) -> int:
    """One product for the rows, one for the weight, and the logits anew where they were not kept."""
    products = 2 if kept[0] == rows[0] else 3
    return products * 2 * rows[0] * math.prod(weight)


# `log_z` are the logarithms of the partition sums; `kept` is what is kept of the logits, all or nothing.
_modules = modules(__name__, torch="torch_rows", triton="triton_rows")
_linear_cross_entropy = Operator[tuple[Tensor, Tensor, Tensor]](
    "linear_cross_entropy",
    "(Tensor rows, Tensor weight, Tensor labels, SymInt ignored, float? soft_cap, float z_loss, str implementation)"
    " -> (Tensor losses, Tensor log_z, Tensor kept)",
    backward="(grad_losses, rows, weight, labels, log_z, kept, ignored, soft_cap, z_loss, implementation)"
    " -> (rows, weight)",
    modules=_modules,
    run_forward=chunks.forward,
    run_backward=chunks.backward,
    results=_results,
    flops=lambda rows, weight: 2 * rows[0] * math.prod(weight),
    backward_flops=_backward_flops,
)
