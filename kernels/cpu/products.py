"""Small matrix products inside kernels for CPUs: a tile of the result stays in vector registers while terms are added.

Imported only where Numba is installed, by the modules that hold kernels.
"""

# mypy: disable-error-code="no-untyped-def, misc"

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from kernels.cpu.functions import FAST, ZERO

ROWS = 4
"""Rows of a tile; of one with few columns, twice as many."""
COLUMNS = 32 if "+avx512f" in cpu_target.target_context.codegen().magic_tuple()[2] else 16
"""Columns of a tile: with ROWS, eight vector registers, which is enough not to wait for a sum."""
NARROW = 8
"""Few columns: what tiles of this width, and of 4, 2 and 1, take of what wide ones leave."""

FLAGS = tuple(sorted(FAST))


def _tile(num_rows: int, num_columns: int) -> Callable[..., None]:
    """A function that adds x @ matrix to a tile of this size; both are addressed as `add_product` says."""

    @intrinsic
    def tile(
        typing: Any, out: Any, stride: Any, x: Any, x_row: Any, x_step: Any, steps: Any, matrix: Any, next_: Any
    ) -> Any:
        numbers, integer = types.CPointer(types.float32), types.int64
        signature = types.void(numbers, integer, numbers, integer, integer, integer, numbers, integer)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            out, stride, x, x_row, x_step, steps, matrix, next_ = arguments
            vector = ir.VectorType(ir.FloatType(), num_columns)

            def at(base: Any, offset: Any, kind: Any) -> Any:
                return builder.bitcast(builder.gep(base, [offset]), kind.as_pointer())

            places = [at(out, builder.mul(stride, context.get_constant(integer, r)), vector) for r in range(num_rows)]
            sums = [cgutils.alloca_once_value(builder, builder.load(place, align=4)) for place in places]
            with cgutils.for_range(builder, steps) as loop:
                row = builder.load(at(matrix, builder.mul(loop.index, next_), vector), align=4)
                step = builder.mul(loop.index, x_step)
                for r, total in enumerate(sums):
                    offset = builder.add(step, builder.mul(x_row, context.get_constant(integer, r)))
                    single = builder.insert_element(
                        ir.Constant(vector, ir.Undefined),
                        builder.load(builder.gep(x, [offset])),
                        ir.Constant(ir.IntType(32), 0),
                    )
                    zeros = ir.Constant(ir.VectorType(ir.IntType(32), num_columns), None)
                    factor = builder.shuffle_vector(single, ir.Constant(vector, ir.Undefined), zeros)
                    term = builder.fmul(factor, row, flags=FLAGS)
                    builder.store(builder.fadd(builder.load(total), term, flags=FLAGS), total)
            for place, total in zip(places, sums, strict=True):
                builder.store(builder.load(total), place, align=4)
            return context.get_dummy_value()

        return signature, generate

    return tile


@intrinsic
def after(typing: Any, pointer: Any, offset: Any) -> Any:
    """The pointer that lies `offset` numbers after another."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.gep(arguments[0], [arguments[1]])

    return pointer(pointer, types.int64), generate


def _columns(num: int) -> Callable[..., int]:
    """A function that adds to columns from `begin` on, `num` at once, and says where it left off."""
    num_rows = ROWS if num > NARROW else 2 * ROWS
    tile, single = _tile(num_rows, num), _tile(1, num)

    def columns(out, stride, rows, begin, end, x, x_row, x_step, steps, matrix, next_):
        whole = rows - rows % num_rows
        for c in range(begin, end - num + 1, num):
            into, part = after(out, c), after(matrix, c)
            for r in range(0, whole, num_rows):
                tile(after(into, r * stride), stride, after(x, r * x_row), x_row, x_step, steps, part, next_)
            for r in range(whole, rows):
                single(after(into, r * stride), stride, after(x, r * x_row), x_row, x_step, steps, part, next_)
        return end - (end - begin) % num

    return njit(columns, error_model="numpy", fastmath=FAST)


_wide, _half, _narrow = _columns(COLUMNS), _columns(COLUMNS // 2), _columns(NARROW)
_four, _two, _one = _columns(4), _columns(2), _columns(1)


@njit(error_model="numpy", fastmath=FAST)
def add_product(out, stride, rows, columns, x, x_row, x_step, steps, matrix, next_):
    """out[r][c] += sum over j < steps of x[r, j] * matrix[j][c], for `rows` and `columns` of the result.

    Rows of the result begin `stride` numbers apart, those of the matrix `next_`; x[r, j] at x_row * r + x_step * j.
    """
    done = _wide(out, stride, rows, 0, columns, x, x_row, x_step, steps, matrix, next_)
    done = _half(out, stride, rows, done, columns, x, x_row, x_step, steps, matrix, next_)
    done = _narrow(out, stride, rows, done, columns, x, x_row, x_step, steps, matrix, next_)
    if done < columns:
        done = _four(out, stride, rows, done, columns, x, x_row, x_step, steps, matrix, next_)
        done = _two(out, stride, rows, done, columns, x, x_row, x_step, steps, matrix, next_)
        _one(out, stride, rows, done, columns, x, x_row, x_step, steps, matrix, next_)


@njit(error_model="numpy", fastmath=FAST)
def clear(out, stride, rows, columns):
    """Zeros in `rows` rows, `stride` numbers apart."""
    for r in range(rows):
        for c in range(columns):
            out[r * stride + c] = ZERO


@njit(error_model="numpy", fastmath=FAST)
def turn(out, stride, x, next_, rows, columns):
    """out[c][r] = x[r][c]; rows of x begin `next_` numbers apart, those of the result `stride`."""
    for c in range(columns):
        for r in range(rows):
            out[c * stride + r] = x[r * next_ + c]
