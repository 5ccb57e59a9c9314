"""What follows an mLSTM cell (arXiv 2405.04517, figure 11): head-wise norm, learnable skip and output gate, as one."""

from torch import Tensor

from kernels import cpu
from kernels.dispatch import Chosen, Implementation, choose, expect_shape, modules, state_dtype
from kernels.gated_head_norm.reference import Inputs, gated_head_norm_reference
from kernels.operator import Operator

__all__ = ["gated_head_norm"]


def gated_head_norm(
    h: Tensor,
    weight: Tensor,
    gate: Tensor,
    *,
    skipped: Tensor | None = None,
    skip: Tensor | None = None,
    eps: float = 1e-5,
    implementation: Implementation = "auto",
) -> Tensor:
    """(weight * norm(h) + skip * skipped) * silu(gate), (batch, time, channels) in the gate's dtype.

    `h` (batch, time, heads, head_dim), each head normed to mean 0 and variance 1; `weight` and `skip` (channels,) with
    channels = heads * head_dim; `gate` and `skipped` (batch, time, channels). `skip` and `skipped` come together or not
    at all. Computed in float32 at least, also under autocast. Raises ValueError for shapes that do not fit,
    ImplementationError for an implementation that cannot run.
    """
    name = "gated_head_norm"
    if h.ndim != 4:
        raise ValueError(f"{name}: h has shape {tuple(h.shape)}, expected (batch, time, heads, head_dim)")
    batch, time, heads, head_dim = h.shape
    channels = heads * head_dim
    expect_shape(name, "weight", weight, (channels,), "(heads * head_dim,)")
    expect_shape(name, "gate", gate, (batch, time, channels), "(batch, time, heads * head_dim)")
    if (skip is None) != (skipped is None):
        raise ValueError(f"{name}: one of skip and skipped is None, expected both or neither")
    if skip is not None and skipped is not None:
        expect_shape(name, "skip", skip, (channels,), "(heads * head_dim,)")
        expect_shape(name, "skipped", skipped, (batch, time, channels), "(batch, time, heads * head_dim)")
    inputs = Inputs(h, weight, gate, skipped, skip)
    operands = [t for t in inputs if t is not None]
    chosen = choose(
        name, implementation, h, lambda: _modules("triton").shape_obstacle(head_dim), lambda: cpu.obstacle(*operands)
    )
    if chosen == "reference":
        return gated_head_norm_reference(inputs, eps)
    return _gated_head_norm(*inputs, eps, chosen)[0]


def _results(h: Tensor, gate: Tensor, implementation: Chosen) -> tuple[Tensor, Tensor, Tensor]:
    shape, dtype = ((0,), h.dtype) if implementation == "triton" else ((*h.shape[:-1], 1), state_dtype(h))
    return gate.new_empty(gate.shape), h.new_empty(shape, dtype=dtype), h.new_empty(shape, dtype=dtype)


# `mean` and `deviation`, the reciprocal one, are what the implementation keeps for its backward, or nothing.
_modules = modules(__name__, torch="torch_fused", numba="numba_norm", triton="triton_norm")
_gated_head_norm = Operator[tuple[Tensor, Tensor, Tensor]](
    "gated_head_norm",
    "(Tensor h, Tensor weight, Tensor gate, Tensor? skipped, Tensor? skip, float eps, str implementation)"
    " -> (Tensor y, Tensor mean, Tensor deviation)",
    backward="(grad_y, h, weight, gate, skipped, skip, mean, deviation, eps, implementation)"
    " -> (h, weight, gate, skipped, skip)",
    modules=_modules,
    bundles=[Inputs],
    results=_results,
    flops=0,  # as all norms and activations
)
