"""Rotary positions for CPUs: queries and keys of a token while its angles lie in the cache."""

# mypy: disable-error-code="no-untyped-def"

from torch import Tensor

from kernels.cpu import PIECES, kernel, rows, run
from kernels.cpu_functions import ONE, count, inlined, row, share
from kernels.cpu_products import after

BATCH, TIME, HEADS, HALF, BACK, COS, SIN, QUERY, KEY, TURNED_QUERY, TURNED_KEY = range(11)
"""`COS` and `SIN` (batch, time, half), the last four (batch, time, heads, 2 half)."""


@inlined
def _turn(turned, x, cos, sin, sign, half):
    x_second, turned_second = after(x, half), after(turned, half)
    for j in range(half):
        turned[j] = x[j] * cos[j] - x_second[j] * (sign * sin[j])
        turned_second[j] = x_second[j] * cos[j] + x[j] * (sign * sin[j])


@kernel
def _turn_tokens(table):
    first, last = share(table)
    time, heads, half = count(table, TIME), count(table, HEADS), count(table, HALF)
    total, sign = count(table, BATCH) * time, -ONE if count(table, BACK) else ONE
    for token in range(total * first // PIECES, total * last // PIECES):
        b, t = token // time, token % time
        cos, sin = row(table, COS, b, t), row(table, SIN, b, t)
        for h in range(heads):
            _turn(row(table, TURNED_QUERY, b, t, h), row(table, QUERY, b, t, h), cos, sin, sign, half)
            _turn(row(table, TURNED_KEY, b, t, h), row(table, KEY, b, t, h), cos, sin, sign, half)


def turn(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, back: bool) -> tuple[Tensor, Tensor]:
    """As the reference for both, by the opposite angles where `back`."""
    batch, time, heads, head_dim = query.shape
    angles = (rows(tensor).expand(batch, time, head_dim // 2) for tensor in (cos, sin))
    turned_query, turned_key = query.new_empty(query.shape), key.new_empty(key.shape)
    run(
        _turn_tokens, PIECES, batch, time, heads, head_dim // 2, int(back), *angles,
        rows(query), rows(key), turned_query, turned_key,
    )  # fmt: skip
    return turned_query, turned_key
