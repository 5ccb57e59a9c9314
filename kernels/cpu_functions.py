"""What kernels for CPUs call, compiled into them: their share of the work, rows of tensors, exponentials.

Imported only where Numba is installed, by the modules that hold kernels.
"""

# mypy: disable-error-code="no-untyped-def, misc"

import ctypes
import functools
import hashlib
import inspect
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding
import numpy as np
from numba import cfunc, config, njit, types
from numba.core.caching import UserWideCacheLocator
from numba.core.registry import cpu_target
from numba.extending import intrinsic
from numba.misc.appdirs import AppDirs

from kernels.cpu import SLOTS
from kernels.cpu_runtime import OPENMP, SYMBOLS

FAST = {"contract", "reassoc", "nsz", "arcp"}
"""Sums may be reordered; no operation is left out on the ground that numbers are finite."""

f32 = np.float32
i32 = np.int32

_thread = types.ExternalFunction("omp_get_thread_num", types.int32())
_threads = types.ExternalFunction("omp_get_num_threads", types.int32())


# Rows that a loop reads and writes may overlap for all the compiler knows: it may check that they do not, for as many
# pairs as a loop of ours has.
llvmlite.binding.set_option("kernels", "--runtime-memory-check-threshold=128")


for _name in SYMBOLS:  # what kernels call, made known to the compiler
    llvmlite.binding.add_symbol(_name, ctypes.cast(getattr(OPENMP, _name), ctypes.c_void_p).value)


@functools.cache
def _stamp() -> str:
    """What a kernel is compiled from and for: all files of this package, and the kind of processor.

    Kernels take functions and numbers from other files than their own, and machines of several kinds may share a home.
    """
    package = Path(__file__).parent
    digest = hashlib.sha256(repr(cpu_target.target_context.codegen().magic_tuple()).encode())
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package)} {file.stat().st_size}\n".encode() + file.read_bytes())
    return digest.hexdigest()


class ByContent(UserWideCacheLocator):  # type: ignore[misc]
    """A kernel is found again by the contents of its sources, wherever they lie, and by the kind of processor."""

    def __init__(self, py_func: Any, py_file: str) -> None:
        self._lineno = py_func.__code__.co_firstlineno
        folder = config.CACHE_DIR or AppDirs(appname="numba", appauthor=False).user_cache_dir
        self._cache_path = str(Path(folder) / f"{Path(py_file).parent.name}-{_stamp()[:16]}")

    def get_source_stamp(self) -> str:
        return _stamp()


_compiling = threading.Lock()


def compiled(body: Callable[..., None]) -> int:
    """The address of a kernel, from the cache where it can be, and kept there where the folder can be written."""
    with _compiling:  # Numba is told of `ByContent` for the whole process
        before, config.CACHE_LOCATOR_CLASSES = config.CACHE_LOCATOR_CLASSES, f"{__name__}.{ByContent.__name__}"
        try:
            keep = ByContent.from_function(body, inspect.getfile(body)) is not None
            try:
                return _address(body, keep)
            except OSError:  # the folder is there, but full
                return _address(body, keep=False)
        finally:
            config.CACHE_LOCATOR_CLASSES = before


def _address(body: Callable[..., None], keep: bool) -> int:
    options: dict[str, Any] = {"cache": keep, "error_model": "numpy", "fastmath": FAST}
    return int(cfunc(types.void(types.CPointer(types.int64)), **options)(body).address)


@intrinsic
def _pointer(typing: Any, address: Any, kind: Any) -> Any:
    """An address as a pointer to numbers of a kind."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(kind.dtype)(types.int64, kind), generate


def inlined(function: Any) -> Any:
    return njit(function, error_model="numpy", fastmath=FAST, inline="always")


@inlined
def share(table):
    """First piece of this thread, and the one after its last."""
    pieces, thread, threads = table[0], _thread(), _threads()
    return pieces * thread // threads, pieces * (thread + 1) // threads


@inlined
def thread():
    """The number of this thread, for what each has of its own; results must not depend on it."""
    return np.int64(_thread())


@inlined
def count(table, k):
    """Argument k, an integer."""
    return table[1 + SLOTS * k]


@inlined
def number(table, k):
    """Argument k, a float, in float32."""
    return f32(np.int64(table[1 + SLOTS * k]).view(np.float64))


@inlined
def stride(table, k, axis):
    """How many numbers lie between two neighbours along an axis of tensor k."""
    return table[2 + SLOTS * k + axis]


@inlined
def given(table, k):
    """Whether argument k is there."""
    return table[1 + SLOTS * k] != 0


@inlined
def _offset(table, k, i, j, l, n):
    at = 1 + SLOTS * k
    return i * table[at + 1] + j * table[at + 2] + l * table[at + 3] + n * table[at + 4]


@inlined
def row(table, k, i=0, j=0, l=0, n=0):
    """Where row (i, j, l, n) of tensor k begins: float32."""
    return _pointer(table[1 + SLOTS * k] + 4 * _offset(table, k, i, j, l, n), f32)


@inlined
def double_row(table, k, i=0, j=0, l=0, n=0):
    """As `row`, of float64."""
    return _pointer(table[1 + SLOTS * k] + 8 * _offset(table, k, i, j, l, n), np.float64)


@inlined
def integers(table, k, i=0, j=0, l=0, n=0):
    """As `row`, of int32."""
    return _pointer(table[1 + SLOTS * k] + 4 * _offset(table, k, i, j, l, n), np.int32)


@inlined
def flags(table, k, i=0, j=0, l=0, n=0):
    """As `row`, of booleans."""
    return _pointer(table[1 + SLOTS * k] + _offset(table, k, i, j, l, n), np.uint8)


# exp(x) = 2^n exp(r) with |r| <= log(2) / 2: the polynomial of Cephes' expf (Moshier), 2 units in the last place.
_LOG2E, _LOG2_HIGH, _LOG2_LOW = f32(1.4426950408889634), f32(0.693359375), f32(-2.12194440e-4)
_P0, _P1, _P2 = f32(1.9875691500e-4), f32(1.3981999507e-3), f32(8.3334519073e-3)
_P3, _P4, _P5 = f32(4.1665795894e-2), f32(1.6666665459e-1), f32(5.0000001201e-1)
_LOWEST, _HIGHEST = f32(-87.3), f32(89.0)
ZERO, HALF, ONE, TWO = f32(0.0), f32(0.5), f32(1.0), f32(2.0)


@inlined
def exp(x):
    """e^x; infinity from 2.4e38 on, where 2^n is; 1e-38 for all that is smaller, so that quotients of it exist."""
    x = _LOWEST if x < _LOWEST else x
    x = _HIGHEST if x > _HIGHEST else x
    n = np.floor(x * _LOG2E + HALF)
    r = (x - n * _LOG2_HIGH) - n * _LOG2_LOW
    p = ((((_P0 * r + _P1) * r + _P2) * r + _P3) * r + _P4) * r + _P5
    return (p * r * r + r + ONE) * i32((i32(n) + i32(127)) << i32(23)).view(np.float32)


@inlined
def split(exponent):
    """A float64 as a multiple of 1/16, which float32 holds to 2^20, and what remains, 0 where it is infinite or NaN.

    The exponential of the first times that of the second is as exact as float32 is, however large the exponent.
    """
    coarse = np.floor(exponent * 16.0 + 0.5) * 0.0625
    fine = exponent - coarse
    return f32(coarse), f32(fine if abs(exponent) < 1e30 else 0.0)


@inlined
def exp_of_double(exponent):
    """e^exponent in float32, from a float64."""
    coarse, fine = split(exponent)
    return exp(coarse) * exp(fine)


@inlined
def sigmoid(x):
    """1 / (1 + e^-x)."""
    return ONE / (ONE + exp(-x))


# tanh(x) = x + x^3 P(x^2) up to 0.625: Cephes' tanhf.
_T0, _T1, _T2 = f32(-5.70498872745e-3), f32(2.06390887954e-2), f32(-5.37397155531e-2)
_T3, _T4 = f32(1.33314422036e-1), f32(-3.33332819422e-1)
_NEAR_ZERO = f32(0.625)


@inlined
def tanh(x):
    """The hyperbolic tangent."""
    square = x * x
    near = x + x * square * ((((_T0 * square + _T1) * square + _T2) * square + _T3) * square + _T4)
    return near if abs(x) < _NEAR_ZERO else ONE - TWO / (ONE + exp(TWO * x))


_L1, _L2, _L3 = f32(1.0 / 3.0), f32(1.0 / 5.0), f32(1.0 / 7.0)
_L4, _L5, _L6 = f32(1.0 / 9.0), f32(1.0 / 11.0), f32(1.0 / 13.0)


@inlined
def log1p(x):
    """log(1 + x) for x from 0 to 1, as 2 artanh(x / (2 + x)), to full relative accuracy."""
    s = x / (TWO + x)
    square = s * s
    rest = ((((_L6 * square + _L5) * square + _L4) * square + _L3) * square + _L2) * square + _L1
    return TWO * s * (ONE + square * rest)


@inlined
def add_rows(out, width, x, begin, end, matrix, stride):
    """out[:width] += x[begin:end] @ matrix[begin:end], rows of `width` numbers that begin `stride` numbers apart."""
    eights = end - (end - begin) % 8
    for j in range(begin, eights, 8):
        x0, x1, x2, x3 = x[j], x[j + 1], x[j + 2], x[j + 3]
        x4, x5, x6, x7 = x[j + 4], x[j + 5], x[j + 6], x[j + 7]
        at = j * stride
        for d in range(width):
            out[d] += (
                x0 * matrix[at + d]
                + x1 * matrix[at + stride + d]
                + x2 * matrix[at + 2 * stride + d]
                + x3 * matrix[at + 3 * stride + d]
                + x4 * matrix[at + 4 * stride + d]
                + x5 * matrix[at + 5 * stride + d]
                + x6 * matrix[at + 6 * stride + d]
                + x7 * matrix[at + 7 * stride + d]
            )
    whole = end - (end - begin) % 4
    for j in range(eights, whole, 4):
        x0, x1, x2, x3 = x[j], x[j + 1], x[j + 2], x[j + 3]
        at = j * stride
        for d in range(width):
            out[d] += (
                x0 * matrix[at + d]
                + x1 * matrix[at + stride + d]
                + x2 * matrix[at + 2 * stride + d]
                + x3 * matrix[at + 3 * stride + d]
            )
    for j in range(whole, end):
        x0, at = x[j], j * stride
        for d in range(width):
            out[d] += x0 * matrix[at + d]
