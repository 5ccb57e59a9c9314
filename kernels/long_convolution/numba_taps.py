"""The long convolution for CPUs tap by tap: quadratic in time, but at rates of matrix products, which transforms miss.

A piece of work is one sequence in as many channels as a vector has. What it reads is packed, a vector a token, a
document at a time between zeros, so that each is convolved as if it stood alone. A tile of ROWS outputs stays in vector
registers while STEP taps at a time are added. Both gradients are the same sum: that of x over the reversed gradient of
y, that of the filters of the gradient of y over the reversed x.
"""

# mypy: disable-error-code="no-untyped-def, misc"

from typing import Any

import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic
from torch import Tensor

from kernels.cpu import kernel, most_threads, pieces_of, rows, run
from kernels.cpu.functions import clear_row, copy_row, given, inlined, row, thread
from kernels.cpu.products import FLAGS, after
from kernels.cpu.table import Flags, Rows

LANES = 16 if "+avx512f" in cpu_target.target_context.codegen().magic_tuple()[2] else 8
"""Channels of a piece: one vector register."""
ROWS = 8
"""Outputs of a tile."""
STEP = 4
"""Taps that are added to a tile at a time: they share the inputs that are read for one another."""
BLOCK = 64
"""Taps whose sum is formed by itself, so that rounding does not grow with their number."""
MARGIN = 16
"""Rows of zeros before a document, more than a tile and its last taps reach beyond its beginning."""


@intrinsic
def _tile(typing: Any, out: Any, known: Any, factors: Any, turns: Any) -> Any:
    """out[r] += sum over l < STEP * turns of factors[l] * known[r - l], for r < ROWS; rows are LANES apart."""
    numbers, integer = types.CPointer(types.float32), types.int64

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out, known, factors, turns = arguments
        vector = ir.VectorType(ir.FloatType(), LANES)

        def at(base: Any, offset: Any) -> Any:
            return builder.bitcast(builder.gep(base, [offset]), vector.as_pointer())

        def number(value: int) -> Any:
            return context.get_constant(integer, value)

        zero = ir.Constant(vector, [0.0] * LANES)
        sums = [cgutils.alloca_once_value(builder, zero) for _ in range(ROWS)]
        with cgutils.for_range(builder, turns) as loop:
            first = builder.mul(loop.index, number(STEP * LANES))
            taps = [builder.load(at(factors, builder.add(first, number(i * LANES))), align=4) for i in range(STEP)]
            window = {
                place: builder.load(at(known, builder.sub(number(place * LANES), first)), align=4)
                for place in range(1 - STEP, ROWS)
            }
            for r, total in enumerate(sums):
                for i, tap in enumerate(taps):
                    term = builder.fmul(tap, window[r - i], flags=FLAGS)
                    builder.store(builder.fadd(builder.load(total), term, flags=FLAGS), total)
        for r, total in enumerate(sums):
            place = at(out, number(r * LANES))
            builder.store(builder.fadd(builder.load(place, align=4), builder.load(total), flags=FLAGS), place, align=4)
        return context.get_dummy_value()

    return types.void(numbers, numbers, numbers, integer), generate


@inlined
def _add(out, known, factors, begin, end):
    """A tile of sums over l from `begin` to `end`, block by block; `known` is at the tile's first row less `begin`."""
    for l in range(begin, end, BLOCK):
        turns = (min(BLOCK, end - l) + STEP - 1) // STEP
        _tile(out, after(known, (begin - l) * LANES), after(factors, l * LANES), turns)


@inlined
def _pack(out, view, sequence, begin, end, left, width, reverse):
    """Rows of a tensor from `begin` to `end`, or the last row first, a vector each, and zeros for a tile beyond."""
    for t in range(begin, end):
        place = (end - 1 - t if reverse else t - begin) * LANES
        copy_row(after(out, place), after(row(view, sequence, t), left), 0, width)
    clear_row(out, (end - begin) * LANES, (end - begin + ROWS) * LANES)


@inlined
def _document(resets, sequence, begin, time):
    """Where the document that begins at `begin` ends."""
    end = begin + 1
    if given(resets):
        starts = row(resets, sequence)
        while end < time and starts[end] == 0:
            end += 1
    else:
        end = time
    return end


@kernel
def _forward(
    first, last, time: int, taps: int, channels: int, xs: Rows, filters: Rows, resets: Flags | None, ys: Rows,
    work: Rows,
):  # fmt: skip
    """`xs` and `ys` (batch, time, channels), `filters` (1, taps, channels), `work` (thread, 3, rows of vectors)."""
    blocks = (channels + LANES - 1) // LANES
    known = after(row(work, thread(), 0), MARGIN * LANES)
    factors, out = row(work, thread(), 1), row(work, thread(), 2)
    for piece in range(first, last):
        sequence, left = piece // blocks, piece % blocks * LANES
        width = min(LANES, channels - left)
        _pack(factors, filters, 0, 0, taps, left, width, False)
        begin = 0
        while begin < time:
            end = _document(resets, sequence, begin, time)
            _pack(known, xs, sequence, begin, end, left, width, False)
            for t in range(0, end - begin, ROWS):
                clear_row(out, 0, ROWS * LANES)
                _add(out, after(known, t * LANES), factors, 0, min(taps, t + ROWS))
                for r in range(min(ROWS, end - begin - t)):
                    copy_row(after(row(ys, sequence, begin + t + r), left), after(out, r * LANES), 0, width)
            begin = end


@kernel
def _backward(
    first, last, time: int, taps: int, channels: int, xs: Rows, filters: Rows, resets: Flags | None, grad_ys: Rows,
    grad_xs: Rows, grad_filters: Rows, work: Rows,
):  # fmt: skip
    """As `_forward`; `grad_filters` (batch, taps, channels), `work` (thread, 6, rows of vectors)."""
    blocks, mine = (channels + LANES - 1) // LANES, thread()
    upstream = after(row(work, mine, 0), MARGIN * LANES)
    known = after(row(work, mine, 1), MARGIN * LANES)
    factors, grads = row(work, mine, 2), row(work, mine, 3)
    out, of_filters = row(work, mine, 4), row(work, mine, 5)
    for piece in range(first, last):
        sequence, left = piece // blocks, piece % blocks * LANES
        width = min(LANES, channels - left)
        _pack(factors, filters, 0, 0, taps, left, width, False)
        clear_row(of_filters, 0, (taps + ROWS) * LANES)
        begin = 0
        while begin < time:
            end = _document(resets, sequence, begin, time)
            length = end - begin
            _pack(upstream, grad_ys, sequence, begin, end, left, width, True)
            _pack(known, xs, sequence, begin, end, left, width, True)
            _pack(grads, grad_ys, sequence, begin, end, left, width, False)
            for t in range(0, length, ROWS):
                clear_row(out, 0, ROWS * LANES)
                _add(out, after(upstream, t * LANES), factors, 0, min(taps, t + ROWS))
                for r in range(min(ROWS, length - t)):
                    grad_x = row(grad_xs, sequence, end - 1 - t - r)
                    copy_row(after(grad_x, left), after(out, r * LANES), 0, width)
            for lag in range(0, min(taps, length), ROWS):  # sum over t of grads[t] * known[length - 1 + lag - t]
                _add(after(of_filters, lag * LANES), after(known, (length - 1) * LANES), grads, lag, length)
            begin = end
        for lag in range(taps):
            grad = row(grad_filters, sequence, lag)
            copy_row(after(grad, left), after(of_filters, lag * LANES), 0, width)


def _shared(x: Tensor, filters: Tensor, resets: Tensor | None, buffers: int) -> dict[str, Any]:
    time, channels = x.shape[1:]
    length = max(time, len(filters)) + 2 * MARGIN
    return {
        "time": time, "taps": len(filters), "channels": channels, "xs": rows(x), "filters": rows(filters)[None],
        "resets": None if resets is None else rows(resets),
        "work": x.new_zeros(most_threads(), buffers, length * LANES),
    }  # fmt: skip


def forward(x: Tensor, filters: Tensor, resets: Tensor | None) -> Tensor:
    """Arguments as in the package's public function."""
    y = x.new_empty(x.shape)
    run(_forward, pieces_of(x, LANES), **_shared(x, filters[: x.shape[1]], resets, 3), ys=y)
    return y


def backward(grad_y: Tensor, x: Tensor, filters: Tensor, resets: Tensor | None) -> tuple[Tensor, Tensor]:
    """Gradients of x and the filters."""
    used = filters[: x.shape[1]]
    grad_x, by_sequence = x.new_empty(x.shape), x.new_empty(x.shape[0], *used.shape)
    run(
        _backward, pieces_of(x, LANES), **_shared(x, used, resets, 6), grad_ys=rows(grad_y), grad_xs=grad_x,
        grad_filters=by_sequence,
    )  # fmt: skip
    grad_filters = torch.zeros_like(filters, memory_format=torch.contiguous_format)
    torch.sum(by_sequence, 0, out=grad_filters[: len(used)])
    return grad_x, grad_filters
