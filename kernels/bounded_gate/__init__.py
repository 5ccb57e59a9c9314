"""The forget gate that keeps a bound at least (HGRN, arXiv 2311.04823): its logarithm, and what it lets in."""

from torch import Tensor

from kernels import cpu
from kernels.bounded_gate.reference import bounded_gate_reference
from kernels.dispatch import Implementation, choose, modules
from kernels.operator import Operator

__all__ = ["bounded_gate"]


def bounded_gate(logits: Tensor, bound: Tensor, *, implementation: Implementation = "auto") -> tuple[Tensor, Tensor]:
    """log f and 1 - f of f = bound + (1 - bound) sigmoid(logits), each to full relative accuracy.

    `logits` (…, channels), in float32 at least for gates near 1; `bound` (channels,), from 0 on and below 1. Both
    results are as `logits`. Raises ValueError for shapes that do not fit, ImplementationError for an implementation
    that cannot run.
    """
    name = "bounded_gate"
    if bound.shape != logits.shape[-1:]:
        raise ValueError(f"{name}: bound has shape {tuple(bound.shape)}, expected {tuple(logits.shape[-1:])}")
    chosen = choose(name, implementation, logits, cpu_obstacle=lambda: cpu.obstacle(logits, bound), fusible=True)
    if chosen == "reference":
        return bounded_gate_reference(logits, bound)
    return _bounded_gate(logits, bound, chosen)


_bounded_gate = Operator[tuple[Tensor, Tensor]](
    "bounded_gate",
    "(Tensor logits, Tensor bound, str implementation) -> (Tensor kept, Tensor rest)",
    backward="(grad_kept, grad_rest, logits, bound, implementation) -> (logits, bound)",
    modules=modules(__name__, torch="torch_fused", numba="numba_gate"),
    results=lambda logits: (logits.new_empty(logits.shape), logits.new_empty(logits.shape)),
    flops=0,  # as all activations
)
