"""SwiGLU (Shazeer 2020, arXiv 2002.05202): the gated half of a Llama feed-forward layer."""

from torch import Tensor

from kernels import cpu
from kernels.dispatch import Implementation, cast_for_autocast, choose, expect_shape, modules
from kernels.operator import Operator
from kernels.swiglu.reference import swiglu_reference

__all__ = ["swiglu"]


def swiglu(gate: Tensor, up: Tensor, *, implementation: Implementation = "auto") -> Tensor:
    """silu(gate) * up, number by number; both of one shape (…, channels), which the result has too.

    Under autocast both are cast; computed in float32 at least. Raises ValueError for shapes or dtypes that do not fit,
    ImplementationError for an implementation that cannot run.
    """
    name = "swiglu"
    expect_shape(name, "up", up, tuple(gate.shape), "that of gate")
    gate, up = cast_for_autocast(gate, up)
    if gate.dtype != up.dtype:
        raise ValueError(f"{name}: gate and up are {gate.dtype} and {up.dtype}, expected one dtype")
    chosen = choose(name, implementation, gate, cpu_obstacle=lambda: cpu.obstacle(gate, up), fusible=True)
    return swiglu_reference(gate, up) if chosen == "reference" else _swiglu(gate, up, chosen)


_swiglu = Operator[Tensor](
    "swiglu",
    "(Tensor gate, Tensor up, str implementation) -> Tensor y",
    backward="(grad_y, gate, up, implementation) -> (gate, up)",
    modules=modules(__name__, torch="torch_fused", numba="numba_swiglu", triton="triton_swiglu"),
    results=lambda gate: gate.new_empty(gate.shape),
    flops=0,  # as all activations
)
