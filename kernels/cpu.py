"""What the kernels compiled for CPUs by Numba share: how they see tensors, and how they run on torch's own threads.

A kernel is `@kernel def name(table)`: its first statement is `first, last = share(table)`, the pieces of work that the
calling thread takes; pieces do not depend on the number of threads, so neither do results. The table holds what `run`
was given: `row(table, k, i, j)` is the start of a row of tensor k, `count(table, k)` the integer and `number(table, k)`
the float. Numba compiles a kernel when it is first called and keeps it in the user's cache (or in NUMBA_CACHE_DIR).

A thread pool of Numba's own would fight with torch's, whose threads spin between two operators. So a kernel is a C
function that runs in a parallel region of the OpenMP library that torch itself has loaded.
"""

import ctypes
import functools
import struct
from collections.abc import Callable

import torch
from torch import Tensor

AXES = 4
"""Leading axes of a tensor that a kernel can step along."""
SLOTS = 1 + AXES
"""Entries of an argument in the table: an address and strides in numbers, or one value."""
PIECES = 32
"""Pieces of work where nothing else suggests a number: more than a laptop's threads, few enough to add up after."""


def missing() -> str | None:
    """What of this machine's software keeps the kernels from running at all, or None."""
    from kernels.cpu_runtime import MISSING

    return MISSING


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
    from kernels.cpu_runtime import OPENMP

    assert OPENMP is not None  # else `missing` says so, and no kernel is chosen
    region: Callable[..., None] = OPENMP.GOMP_parallel
    return region


def run(compiled: Callable[[], int], pieces: int, *arguments: Tensor | int | float | None) -> None:
    """Run a kernel on the pieces of its work. None leaves an entry empty.

    Raises ValueError for a tensor whose numbers are not where the kernel will look: not on a CPU, of too many axes, or
    with rows, the last axis, that are not dense.
    """
    if pieces == 0:
        return
    table = (ctypes.c_int64 * (1 + SLOTS * len(arguments)))(pieces)
    for place, argument in enumerate(arguments):
        at = 1 + SLOTS * place
        if isinstance(argument, Tensor):
            if not argument.is_cpu or argument.ndim > 1 + AXES or not _has_dense_rows(argument):
                raise ValueError(
                    f"argument {place} of a kernel for CPUs is on {argument.device}, of shape {tuple(argument.shape)} "
                    f"and strides {argument.stride()}, expected on a CPU, at most {1 + AXES} axes, the last one dense"
                )
            strides = argument.stride()[:-1]
            table[at : at + 1 + len(strides)] = [argument.data_ptr(), *strides]
        elif isinstance(argument, float):
            (table[at],) = struct.unpack("q", struct.pack("d", argument))
        elif argument is not None:
            table[at] = argument
    threads = min(most_threads(), pieces)
    _parallel()(ctypes.c_void_p(compiled()), table, ctypes.c_uint(threads), ctypes.c_uint(0))


def most_threads() -> int:
    """How many threads a kernel may run on."""
    return torch.get_num_threads()


def _has_dense_rows(tensor: Tensor) -> bool:
    return tensor.stride(-1) == 1 or tensor.shape[-1] == 1 or tensor.numel() == 0


def rows(tensor: Tensor) -> Tensor:
    """The tensor, copied only if the numbers of its rows do not lie next to each other."""
    return tensor if _has_dense_rows(tensor) else tensor.contiguous()


def by_row(tensor: Tensor) -> Tensor:
    """(rows, channels) with dense channels; a view where the strides allow it."""
    return rows(tensor).reshape(tensor.shape[:-1].numel(), tensor.shape[-1])


def empty_rows_like(tensor: Tensor) -> Tensor:
    """An empty tensor that lies as this one does where its rows are dense, else contiguous."""
    same = torch.empty_like(tensor)
    return same if _has_dense_rows(same) else torch.empty_like(tensor, memory_format=torch.contiguous_format)


def kernel(body: Callable[..., None]) -> Callable[[], int]:
    """A function of the table as one that compiles it, once, and gives its address."""

    @functools.cache
    def compiled() -> int:
        from kernels import cpu_functions

        return cpu_functions.compiled(body)

    return compiled
