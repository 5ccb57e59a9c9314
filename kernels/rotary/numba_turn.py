"""Rotary positions for CPUs: queries and keys of a token while its angles lie in the cache."""

# mypy: disable-error-code="no-untyped-def"

from torch import Tensor

from kernels.cpu import PIECES, kernel, rows, run
from kernels.cpu.functions import ONE, inlined, row
from kernels.cpu.products import after
from kernels.cpu.table import Rows


@inlined
def _turn(turned, x, cos, sin, sign, half):
    x_second, turned_second = after(x, half), after(turned, half)
    for j in range(half):
        turned[j] = x[j] * cos[j] - x_second[j] * (sign * sin[j])
        turned_second[j] = x_second[j] * cos[j] + x[j] * (sign * sin[j])


@kernel
def _turn_tokens(
    first, last, batch: int, time: int, heads: int, half: int, back: bool, cosines: Rows, sines: Rows, queries: Rows,
    keys: Rows, turned_queries: Rows, turned_keys: Rows,
):  # fmt: skip
    """Cosines and sines are (batch, time, half), the others (batch, time, heads, 2 half)."""
    total, sign = batch * time, -ONE if back else ONE
    for token in range(total * first // PIECES, total * last // PIECES):
        b, t = token // time, token % time
        cos, sin = row(cosines, b, t), row(sines, b, t)
        for h in range(heads):
            _turn(row(turned_queries, b, t, h), row(queries, b, t, h), cos, sin, sign, half)
            _turn(row(turned_keys, b, t, h), row(keys, b, t, h), cos, sin, sign, half)


def turn(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, back: bool) -> tuple[Tensor, Tensor]:
    """As the reference for both, by the opposite angles where `back`."""
    batch, time, heads, head_dim = query.shape
    cosines, sines = (rows(tensor).expand(batch, time, head_dim // 2) for tensor in (cos, sin))
    turned_query, turned_key = query.new_empty(query.shape), key.new_empty(key.shape)
    run(
        _turn_tokens, PIECES, batch=batch, time=time, heads=heads, half=head_dim // 2, back=back, cosines=cosines,
        sines=sines, queries=rows(query), keys=rows(key), turned_queries=turned_query, turned_keys=turned_key,
    )  # fmt: skip
    return turned_query, turned_key
