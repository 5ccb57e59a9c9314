"""Squared ReLU (So et al. 2021, arXiv 2109.08668): what RWKV-4's channel mixing has between its matrices."""

from torch import Tensor

from kernels import cpu
from kernels.dispatch import Implementation, choose, modules
from kernels.operator import Operator
from kernels.squared_relu.reference import squared_relu_reference

__all__ = ["squared_relu"]


def squared_relu(x: Tensor, *, implementation: Implementation = "auto") -> Tensor:
    """max(x, 0)², number by number; only `x` is kept for the gradient. Computed in float32 at least.

    Raises ImplementationError for an implementation that cannot run.
    """
    chosen = choose("squared_relu", implementation, x, cpu_obstacle=lambda: cpu.obstacle(x))
    return squared_relu_reference(x) if chosen == "reference" else _squared_relu(x, chosen)


_squared_relu = Operator[Tensor](
    "squared_relu",
    "(Tensor x, str implementation) -> Tensor y",
    backward="(grad_y, x, implementation) -> (x)",
    modules=modules(__name__, torch="torch_fused", numba="numba_relu", triton="triton_relu"),
    results=lambda x: x.new_empty(x.shape),
    flops=0,  # as all activations
)
