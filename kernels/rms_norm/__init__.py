"""RMSNorm (Zhang & Sennrich 2019, arXiv 1910.07467)."""

from torch import Tensor

from kernels import cpu
from kernels.dispatch import Implementation, choose, expect_shape, modules, state_dtype
from kernels.operator import Operator
from kernels.rms_norm.reference import rms_norm_reference

__all__ = ["rms_norm"]


def rms_norm(x: Tensor, weight: Tensor, *, eps: float = 1e-6, implementation: Implementation = "auto") -> Tensor:
    """y = x / sqrt(mean(x²) + eps) * weight over the last dimension, as `x` (…, channels); `weight` (channels,).

    Computed in float32 at least, also under autocast. Raises ValueError for shapes that do not fit,
    ImplementationError for an implementation that cannot run.
    """
    name = "rms_norm"
    expect_shape(name, "weight", weight, (x.shape[-1],), "(channels,)")
    chosen = choose(
        name, implementation, x, lambda: _modules("triton").shape_obstacle(x.shape[-1]),
        lambda: cpu.obstacle(x, weight), fusible=True,
    )  # fmt: skip
    if chosen == "reference":
        return rms_norm_reference(x, weight, eps)
    return _rms_norm(x, weight, eps, chosen)[0]


_modules = modules(__name__, torch="torch_fused", numba="numba_norm", triton="triton_norm")
_rms_norm = Operator[
    tuple[Tensor, Tensor]
](
    "rms_norm",
    "(Tensor x, Tensor weight, float eps, str implementation) -> (Tensor y, Tensor scale)",  # a scale for each row
    backward="(grad_y, x, weight, scale, implementation) -> (x, weight)",
    modules=_modules,
    results=lambda x: (x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=state_dtype(x))),
    flops=0,  # as all norms
)
