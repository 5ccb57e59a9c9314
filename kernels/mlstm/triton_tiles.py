"""What the mLSTM's Triton kernels share: tile sizes, launch options, and how a kernel reads tokens and weights."""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import torch
import triton
import triton.language as tl

RUN_TIME = ["time", "chunks", "heads", "eps"]
"""Arguments whose divisibility must not compile a kernel anew."""

OPTIONS = ((4, 3), (4, 2), (4, 4))
"""Warps and stages, to be chosen from, of results 64 wide: eight warps would read more than they multiply."""
WIDE_OPTIONS = ((8, 3), (8, 2), (4, 2))
"""Of results 128 wide, which four warps hold in their registers beside a short pipeline."""
EIGHT_WARPS = ((8, 3), (8, 2), (8, 4))
"""Where results and what they meet would spill from the registers of four warps."""
DIMENSIONS = ("L", "DK", "DV")


def power_of_two_divisor(size: int, largest: int) -> int:
    """The largest power of two up to `largest` that divides `size`."""
    return min(size & -size, largest)


def tiling_of(key_dim: int, value_dim: int, chunk: int, dtype: torch.dtype) -> dict[str, int]:
    """Tiles of tokens and channels, powers of two that divide the sizes.

    BT, BK and BV make a tile of a result, up to 128 wide: a product then does 64 FLOPs for a byte that it reads, where
    64 wide it does 32. ST, SK and SV make a step of a loop along a product, up to 64. In float32, whose products have
    no tensor cores, wider results would spill.
    """
    widest = 128 if dtype.itemsize == 2 else 64
    sizes = {"T": chunk, "K": key_dim, "V": value_dim}
    results = {f"B{name}": power_of_two_divisor(size, widest) for name, size in sizes.items()}
    steps = {f"S{name}": power_of_two_divisor(size, 64) for name, size in sizes.items()}
    return {"L": chunk, "DK": key_dim, "DV": value_dim} | results | steps


@triton.jit
def _place(c, bh, rows, SIZE: tl.constexpr):
    """Where the state of chunk c of row bh begins among (chunks, rows, SIZE) numbers: int64, they pass 2^31."""
    return (c * rows.to(tl.int64) + bh) * SIZE


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


@triton.jit
def _denominator(s, floor, eps):
    """max(|s|, floor) + eps; NaN where s is."""
    return tl.maximum(tl.abs(s), floor, propagate_nan=tl.PropagateNan.ALL) + eps
