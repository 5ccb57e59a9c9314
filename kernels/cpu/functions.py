"""What kernels for CPUs call, compiled into them: their share of the work, rows of tensors, exponentials.

Imported only where Numba is installed, by the modules that hold kernels.
"""

# mypy: disable-error-code="no-untyped-def, misc"

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from kernels.cpu import Kernel
from kernels.cpu.table import Doubles, Flags, Integers, Rows

FAST = {"contract", "reassoc", "nsz", "arcp"}
"""Sums may be reordered; no operation is left out on the ground that numbers are finite."""

f32 = np.float32
i32 = np.int32

_thread = types.ExternalFunction("omp_get_thread_num", types.int32())
_threads = types.ExternalFunction("omp_get_num_threads", types.int32())


NUMBERS = {Rows: types.float32, Doubles: types.float64, Integers: types.int32, Flags: types.uint8}
"""What kernels see the numbers of a tensor as."""


@intrinsic
def _pointer(typing: Any, view: Any, offset: Any) -> Any:
    """Where the number lies that `offset` others lie before."""
    kind = NUMBERS[view.instance_class]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = builder.extract_value(arguments[0], 0)
        size = context.get_constant(types.int64, kind.bitwidth // 8)
        return builder.inttoptr(
            builder.add(address, builder.mul(arguments[1], size)), context.get_value_type(signature.return_type)
        )

    return types.CPointer(kind)(view, types.int64), generate


def inlined(function: Any) -> Any:
    return njit(function, error_model="numpy", fastmath=FAST, inline="always")


def called(kernel: Kernel) -> Any:
    """A kernel's body as a function, for another kernel to call on pieces that it chooses."""
    return njit(kernel.body, error_model="numpy", fastmath=FAST)


@inlined
def share(table):
    """First piece of this thread, and the one after its last."""
    pieces, thread, threads = table[0], _thread(), _threads()
    return pieces * thread // threads, pieces * (thread + 1) // threads


@inlined
def own_channels(piece, channels, at_once):
    """The sequence of a piece that is so many of its channels, the first of these, and the one after the last."""
    blocks = (channels + at_once - 1) // at_once
    begin = piece % blocks * at_once
    return piece // blocks, begin, min(begin + at_once, channels)


@inlined
def thread():
    """The number of this thread, for what each has of its own; results must not depend on it."""
    return np.int64(_thread())


@inlined
def stride(view, axis):
    """How many numbers lie between two neighbours along an axis of a tensor."""
    return view[1 + axis]


@inlined
def given(view):
    """Whether a tensor is there."""
    return view.address != 0


@inlined
def row(view, i=0, j=0, l=0, n=0):
    """Where row (i, j, l, n) of a tensor begins."""
    return _pointer(view, i * view.first + j * view.second + l * view.third + n * view.fourth)


@inlined
def clear_row(out, begin, end):
    """Zeros from number `begin` of a row to the one before `end`."""
    for d in range(begin, end):
        out[d] = ZERO


@inlined
def copy_row(out, x, begin, end):
    """A row's numbers from `begin` to the one before `end` as those of another."""
    for d in range(begin, end):
        out[d] = x[d]


@inlined
def nth(views, n):
    """Tensor n of a list."""
    at = 5 * n
    return Rows(views[at], views[at + 1], views[at + 2], views[at + 3], views[at + 4])


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


_SQRT_HALF, _MANTISSA = i32(0x3F3504F3), i32(23)


@inlined
def log(x):
    """The logarithm of a positive normal number: of its power of two, and 2 artanh((m - 1) / (m + 1)) of the rest."""
    bits = f32(x).view(np.int32)
    power = (bits - _SQRT_HALF) >> _MANTISSA
    m = i32(bits - (power << _MANTISSA)).view(np.float32)  # from sqrt(1/2) to sqrt(2)
    s = (m - ONE) / (m + ONE)
    square = s * s
    rest = (((_L4 * square + _L3) * square + _L2) * square + _L1) * square
    return f32(power) * _LOG2_HIGH + (f32(power) * _LOG2_LOW + TWO * s * (ONE + rest))


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
