"""What the mLSTM's Triton kernels share: tile sizes, launch options, and how a kernel reads tokens and weights."""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl

RUN_TIME = ["time", "chunks", "heads"]
"""Arguments whose divisibility must not compile a kernel anew."""

OPTIONS = ((4, 3), (4, 2), (4, 4), (8, 3), (8, 2))
"""Warps and stages, to be chosen from."""
EIGHT_WARPS = ((8, 3), (8, 2), (8, 4))
"""Where four tiles of BT x BT floats would spill from the registers of four warps."""
DIMENSIONS = ("L", "DK", "DV")


def power_of_two_divisor(size: int, largest: int) -> int:
    """The largest power of two up to `largest` that divides `size`."""
    return min(size & -size, largest)


def tiling_of(key_dim: int, value_dim: int, chunk: int) -> dict[str, int]:
    """The largest tiles of tokens and channels up to 64, powers of two, that divide the sizes."""
    return {
        "L": chunk,
        "BT": power_of_two_divisor(chunk, 64),
        "DK": key_dim,
        "DV": value_dim,
        "BK": power_of_two_divisor(key_dim, 64),
        "BV": power_of_two_divisor(value_dim, 64),
    }


@triton.jit
def _tile(base, t, stride, time, d):
    """Rows t and channels d of a sequence, (len t, len d): 0 after its end."""
    return tl.load(base + t[:, None] * stride + d[None, :], mask=(t < time)[:, None], other=0.0)


@triton.jit
def _weights(row, row_fine, column, column_fine, segment, gate_base, segment_base, rows, columns, RESETS: tl.constexpr):
    """W of chunk positions rows x columns: 0 above the diagonal and across resets."""
    exponent = tl.load(row + gate_base + rows)[:, None] + tl.load(column + gate_base + columns)[None, :]
    fine = tl.load(row_fine + gate_base + rows)[:, None] * tl.load(column_fine + gate_base + columns)[None, :]
    seen = columns[None, :] <= rows[:, None]
    if RESETS:
        of_rows = tl.load(segment + segment_base + rows)
        seen = seen & (of_rows[:, None] == tl.load(segment + segment_base + columns)[None, :])
    return tl.where(seen, tl.exp(exponent) * fine, 0.0)
