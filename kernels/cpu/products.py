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

from kernels.cpu.functions import FAST, f32

ROWS = 4
"""Rows of a tile."""
COLUMNS = 32 if "+avx512f" in cpu_target.target_context.codegen().magic_tuple()[2] else 16
"""Columns of a tile: with ROWS, eight vector registers, which is enough not to wait for a sum."""
NARROW = 8
"""Columns of the tiles that take what wide ones leave."""

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


_wide, _narrow = _tile(ROWS, COLUMNS), _tile(ROWS, NARROW)
_wide_row, _narrow_row = _tile(1, COLUMNS), _tile(1, NARROW)


@intrinsic
def after(typing: Any, pointer: Any, offset: Any) -> Any:
    """The pointer that lies `offset` numbers after another."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.gep(arguments[0], [arguments[1]])

    return pointer(pointer, types.int64), generate


@njit(error_model="numpy", fastmath=FAST)
def add_product(out, stride, rows, columns, x, x_row, x_step, steps, matrix, next_):
    """out[r][c] += sum over j < steps of x[r, j] * matrix[j][c], for `rows` and `columns` of the result.

    Rows of the result begin `stride` numbers apart, those of the matrix `next_`; x[r, j] at x_row * r + x_step * j.
    """
    for r in range(0, rows - ROWS + 1, ROWS):
        into, by, done = after(out, r * stride), after(x, r * x_row), 0
        for c in range(0, columns - COLUMNS + 1, COLUMNS):
            _wide(after(into, c), stride, by, x_row, x_step, steps, after(matrix, c), next_)
            done = c + COLUMNS
        for c in range(done, columns - NARROW + 1, NARROW):
            _narrow(after(into, c), stride, by, x_row, x_step, steps, after(matrix, c), next_)
            done = c + NARROW
    whole = rows - rows % ROWS
    for r in range(whole, rows):
        into, by = after(out, r * stride), after(x, r * x_row)
        for c in range(0, columns - COLUMNS + 1, COLUMNS):
            _wide_row(after(into, c), stride, by, x_row, x_step, steps, after(matrix, c), next_)
        for c in range(columns - columns % COLUMNS, columns - NARROW + 1, NARROW):
            _narrow_row(after(into, c), stride, by, x_row, x_step, steps, after(matrix, c), next_)
    for c in range(columns - columns % NARROW, columns):
        for r in range(rows):
            total = f32(0.0)
            for j in range(steps):
                total += x[r * x_row + j * x_step] * matrix[j * next_ + c]
            out[r * stride + c] += total
