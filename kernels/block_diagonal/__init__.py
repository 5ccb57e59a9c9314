"""Linear maps with block-diagonal matrices: the mLSTM block's projections (arXiv 2405.04517, figure 11)."""

import math

from torch import Tensor

from kernels import cpu
from kernels.block_diagonal.reference import block_diagonal_reference
from kernels.dispatch import Implementation, cast_for_autocast, choose, expect_shape, modules
from kernels.operator import Operator

__all__ = ["block_diagonal"]

CPU_WIDTH = 4
"""Width of the blocks that the kernels for CPUs are written for."""


def block_diagonal(x: Tensor, weight: Tensor, *, implementation: Implementation = "auto") -> Tensor:
    """`x` (…, channels) to the same shape; `weight` (blocks, width, width), out by in, with blocks * width channels.

    Under autocast both are cast. Raises ValueError for shapes that do not fit, ImplementationError for an
    implementation that cannot run.
    """
    name = "block_diagonal"
    if weight.ndim != 3 or weight.shape[1] != weight.shape[2]:
        raise ValueError(f"{name}: weight has shape {tuple(weight.shape)}, expected (blocks, width, width)")
    blocks, width, _ = weight.shape
    expect_shape(name, "x", x, (*x.shape[:-1], blocks * width), "(…, blocks * width)")
    x, weight = cast_for_autocast(x, weight)
    weight = weight.to(x.dtype)
    chosen = choose(
        name,
        implementation,
        x,
        lambda: _modules("triton").shape_obstacle(width),
        lambda: cpu_obstacle(width, x, weight),
    )
    if chosen == "reference":
        return block_diagonal_reference(x, weight)
    return _block_diagonal(x, weight, chosen)


def cpu_obstacle(width: int, *operands: Tensor) -> str | None:
    """Why the kernels for CPUs refuse blocks of this width, or these operands; None where they do not."""
    if width != CPU_WIDTH:
        return f"blocks of width {width} are not supported; those of width {CPU_WIDTH} are"
    return cpu.obstacle(*operands)


def _flops(x: tuple[int, ...], weight: tuple[int, ...]) -> int:
    """The blocks alone, whatever zeros an implementation multiplies. Backward one product for x, one for the weight."""
    return 2 * math.prod(x) * weight[-1]


_modules = modules(__name__, torch="torch_grouped", numba="numba_blocks", triton="triton_blocks")
_block_diagonal = Operator[Tensor](
    "block_diagonal",
    "(Tensor x, Tensor weight, str implementation) -> Tensor y",
    backward="(grad_y, x, weight, implementation) -> (x, weight)",
    modules=_modules,
    results=lambda x: x.new_empty(x.shape),
    flops=_flops,
)
