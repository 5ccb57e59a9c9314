"""What the kernels compiled for CPUs by Numba share: how they see tensors, and how they run on torch's own threads.

A kernel is `@kernel def name(first, last, time: int, xs: Rows, eps: float)`: it does the pieces of work from `first` to
`last`, which the calling thread takes; pieces do not depend on the number of threads, so neither do results.
Annotations say what the arguments are (`kernels.cpu.table`), `run(name, pieces, time=…, xs=…, eps=…)` gives them, and
`row(xs, i)` is where a row of a tensor begins. Numba compiles a kernel when it is first called and keeps it in the
user's cache (or in NUMBA_CACHE_DIR).

A thread pool of Numba's own would fight with torch's, whose threads spin between two operators. So a kernel is a C
function that runs in a parallel region of the OpenMP library that torch itself has loaded.
"""

import ctypes
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from kernels.cpu.table import Argument, Layout, has_dense_rows

PIECES = 32
"""Pieces of work where nothing else suggests a number: more than a laptop's threads, few enough to add up after."""


def missing() -> str | None:
    """What of this machine's software keeps the kernels from running at all, or None."""
    from kernels.cpu.runtime import MISSING

    return MISSING


def prepare() -> None:
    """Load what the first kernel of this process, or of one that is forked from it, would wait for."""
    if missing() is None:
        from kernels.cpu import compiler

        compiler.prepare()


def obstacle(*tensors: Tensor) -> str | None:
    """Why the kernels cannot take these tensors, or None where they can."""
    for tensor in tensors:
        if tensor.device.type != "cpu":
            return f"the tensors are on {tensor.device}; it is for CPUs"
        if tensor.dtype != torch.float32:
            return f"{tensor.dtype} is not supported; float32 is"
    return missing()


@functools.cache
def _parallel() -> Callable[..., None]:
    """OpenMP's function that runs another on all threads of a parallel region."""
    from kernels.cpu.runtime import OPENMP

    assert OPENMP is not None  # else `missing` says so, and no kernel is chosen
    region = OPENMP.GOMP_parallel
    region.argtypes, region.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return region


class Kernel:
    """What a body is compiled to, when it first runs, and how its arguments are laid out for it."""

    def __init__(self, body: Callable[..., None]) -> None:
        self.body, self.layout = body, Layout(body)

    @functools.cached_property
    def address(self) -> int:
        """Where the compiled kernel begins."""
        from kernels.cpu import compiler

        return compiler.compiled(self.body)


def kernel(body: Callable[..., None]) -> Kernel:
    """A body, whose first two parameters are its share of the pieces, as a kernel; see the top of this module."""
    return Kernel(body)


def run(kernel: Kernel, pieces: int, **arguments: Argument) -> None:
    """Run a kernel on the pieces of its work; raises as `Layout.table` does for what it would misread."""
    if pieces == 0:
        return
    table, _alive = kernel.layout.table(pieces, arguments)
    _parallel()(kernel.address, table, min(most_threads(), pieces), 0)


def pieces_of(x: Tensor, at_once: int) -> int:
    """How many pieces of work (batch, time, channels) are, so many channels of a sequence each."""
    return x.shape[0] * -(-x.shape[2] // at_once)


def most_threads() -> int:
    """How many threads a kernel may run on."""
    return torch.get_num_threads()


def rows(tensor: Tensor) -> Tensor:
    """The tensor, copied only if the numbers of its rows do not lie next to each other."""
    return tensor if has_dense_rows(tensor) else tensor.contiguous()


def by_row(tensor: Tensor) -> Tensor:
    """(rows, channels) with dense channels; a view where the strides allow it."""
    return rows(tensor).reshape(tensor.shape[:-1].numel(), tensor.shape[-1])


def empty_rows_like(tensor: Tensor) -> Tensor:
    """An empty tensor that lies as this one does where its rows are dense, else contiguous."""
    same = torch.empty_like(tensor)
    return same if has_dense_rows(same) else torch.empty_like(tensor, memory_format=torch.contiguous_format)
