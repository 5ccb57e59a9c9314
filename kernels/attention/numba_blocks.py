"""Causal attention for CPUs in blocks of queries and keys (Dao 2023, arXiv 2307.08691): scores never leave the cache.

Keys after a block of queries, or before its documents, cost nothing.
"""

# mypy: disable-error-code="no-untyped-def"

from torch import Tensor

from kernels.attention.reference import by_token
from kernels.cpu import PIECES, kernel, most_threads, rows, run
from kernels.cpu.functions import ONE, ZERO, copy_row, exp, f32, given, inlined, row, stride, thread
from kernels.cpu.products import add_product, after, clear
from kernels.cpu.table import Integers, Rows

AT_ONCE = 64
"""Queries of a block, and keys of a block."""
NEVER = f32(-1e30)
"""Less than any score."""


@inlined
def _turn(out, x, next_, many, head_dim):
    """The first `many` rows of x, `next_` numbers apart, as columns of `out` (head_dim, AT_ONCE); zeros after them."""
    for d in range(head_dim):
        for i in range(many):
            out[d * AT_ONCE + i] = x[i * next_ + d]
        for i in range(many, AT_ONCE):
            out[d * AT_ONCE + i] = ZERO


@kernel
def _forward(
    first, last, heads: int, time: int, head_dim: int, scale: float, qs: Rows, ks: Rows, vs: Rows,
    first_keys: Integers | None, stats: Rows, scratch: Rows, ys: Rows,
):  # fmt: skip
    """Queries, keys, values and `ys` (batch, heads, time, head_dim); `first_keys` (batch, time) of each query.

    `stats` (2, batch, heads, time): a query's greatest score, and the inverse of the sum of its weights; `scratch`
    (threads, rows, AT_ONCE): two blocks of pairs, then what has AT_ONCE columns and head_dim rows, or one.
    """
    blocks = (time + AT_ONCE - 1) // AT_ONCE
    q_next, k_next, v_next, y_next = stride(qs, 2), stride(ks, 2), stride(vs, 2), stride(ys, 2)
    own = thread()
    weights, tops = row(scratch, own), row(scratch, own, AT_ONCE)
    sums, shrinks = row(scratch, own, AT_ONCE + 1), row(scratch, own, AT_ONCE + 2)
    turned = row(scratch, own, 2 * AT_ONCE)
    for piece in range(first, last):
        r, place = piece // blocks, piece % blocks
        block = place // 2 if place % 2 == 0 else blocks - 1 - place // 2  # short and long ones in turn
        b, h, start = r // heads, r % heads, block * AT_ONCE
        queries = min(AT_ONCE, time - start)
        y, begins = row(ys, b, h, start), row(first_keys, b)
        earliest, latest = 0, 0
        if given(first_keys):
            earliest, latest = begins[start], begins[start + queries - 1]
        _turn(turned, row(qs, b, h, start), q_next, queries, head_dim)
        clear(y, y_next, queries, head_dim)
        for i in range(AT_ONCE):
            tops[i], sums[i] = NEVER, ZERO
        for begin in range(earliest // AT_ONCE * AT_ONCE, start + queries, AT_ONCE):
            keys = min(AT_ONCE, time - begin)
            clear(weights, AT_ONCE, keys, AT_ONCE)
            add_product(weights, AT_ONCE, keys, AT_ONCE, row(ks, b, h, begin), k_next, 1, head_dim, turned, AT_ONCE)
            if begin == start:
                for j in range(keys):
                    for i in range(j):
                        weights[j * AT_ONCE + i] = NEVER
            if latest > begin:
                for j in range(keys):
                    for i in range(queries):
                        if begins[start + i] > begin + j:
                            weights[j * AT_ONCE + i] = NEVER
            copy_row(shrinks, tops, 0, AT_ONCE)
            for j in range(keys):
                of_key = after(weights, j * AT_ONCE)
                for i in range(AT_ONCE):
                    tops[i] = of_key[i] if of_key[i] > tops[i] else tops[i]
            for i in range(AT_ONCE):
                shrinks[i] = exp((shrinks[i] - tops[i]) * scale)
                sums[i] *= shrinks[i]
            for j in range(keys):
                of_key = after(weights, j * AT_ONCE)
                for i in range(AT_ONCE):
                    weight = exp((of_key[i] - tops[i]) * scale)
                    of_key[i] = ZERO if of_key[i] == NEVER else weight
                    sums[i] += of_key[i]
            for i in range(queries):
                if shrinks[i] != ONE:
                    of_query = after(y, i * y_next)
                    for d in range(head_dim):
                        of_query[d] *= shrinks[i]
            add_product(y, y_next, queries, head_dim, weights, 1, AT_ONCE, keys, row(vs, b, h, begin), v_next)
        top, inverse = row(stats, 0, b, h), row(stats, 1, b, h)
        for i in range(queries):
            top[start + i], inverse[start + i] = tops[i], ONE / sums[i]
            of_query = after(y, i * y_next)
            for d in range(head_dim):
                of_query[d] *= inverse[start + i]


@kernel
def _backward(
    first, last, heads: int, time: int, head_dim: int, scale: float, qs: Rows, ks: Rows, vs: Rows,
    first_keys: Integers | None, stats: Rows, scratch: Rows, grad_ys: Rows, deltas: Rows, grad_qs: Rows, grad_ks: Rows,
    grad_vs: Rows, groups: int,
):  # fmt: skip
    """As `_forward`; `deltas` (batch, heads, time): the product of a row of y with its gradient.

    `grad_qs` (groups, batch, heads, time, head_dim): what each group of key blocks gives.
    """
    blocks = (time + AT_ONCE - 1) // AT_ONCE
    q_next, k_next, v_next = stride(qs, 2), stride(ks, 2), stride(vs, 2)
    y_next, grad_q_next = stride(grad_ys, 2), stride(grad_qs, 3)
    grad_k_next, grad_v_next = stride(grad_ks, 2), stride(grad_vs, 2)
    own = thread()
    weights, grads = row(scratch, own), row(scratch, own, AT_ONCE)
    k_turned, v_turned = row(scratch, own, 2 * AT_ONCE), row(scratch, own, 2 * AT_ONCE + head_dim)
    for piece in range(first, last):
        r, group = piece // groups, piece % groups
        b, h = r // heads, r % heads
        begins, delta = row(first_keys, b), row(deltas, b, h)
        tops, inverses = row(stats, 0, b, h), row(stats, 1, b, h)
        clear(row(grad_qs, group, b, h), grad_q_next, time, head_dim)
        for block in range(blocks):
            turn = block % (2 * groups)  # each group has early blocks, which many queries see, and late ones
            if turn != group and turn != 2 * groups - 1 - group:
                continue
            begin = block * AT_ONCE
            keys = min(AT_ONCE, time - begin)
            k, grad_k, grad_v = (
                row(ks, b, h, begin),
                row(grad_ks, b, h, begin),
                row(grad_vs, b, h, begin),
            )
            _turn(k_turned, k, k_next, keys, head_dim)
            _turn(v_turned, row(vs, b, h, begin), v_next, keys, head_dim)
            clear(grad_k, grad_k_next, keys, head_dim)
            clear(grad_v, grad_v_next, keys, head_dim)
            for start in range(begin, time, AT_ONCE):
                if given(first_keys) and begins[start] >= begin + keys:
                    break
                queries = min(AT_ONCE, time - start)
                q, grad_y = row(qs, b, h, start), row(grad_ys, b, h, start)
                clear(weights, AT_ONCE, 2 * AT_ONCE, AT_ONCE)
                add_product(weights, AT_ONCE, queries, AT_ONCE, q, q_next, 1, head_dim, k_turned, AT_ONCE)
                add_product(grads, AT_ONCE, queries, AT_ONCE, grad_y, y_next, 1, head_dim, v_turned, AT_ONCE)
                for i in range(queries):
                    low, high = 0, min(start + i + 1 - begin, keys)
                    if given(first_keys):
                        low = min(max(begins[start + i] - begin, 0), high)
                    top, inverse, surplus = tops[start + i], inverses[start + i], delta[start + i]
                    weight, grad = after(weights, i * AT_ONCE), after(grads, i * AT_ONCE)
                    for j in range(AT_ONCE):
                        weight[j] = exp((weight[j] - top) * scale) * inverse
                        grad[j] = weight[j] * (grad[j] - surplus) * scale
                    for j in range(low):
                        weight[j], grad[j] = ZERO, ZERO
                    for j in range(high, AT_ONCE):
                        weight[j], grad[j] = ZERO, ZERO
                add_product(grad_v, grad_v_next, keys, head_dim, weights, 1, AT_ONCE, queries, grad_y, y_next)
                add_product(grad_k, grad_k_next, keys, head_dim, grads, 1, AT_ONCE, queries, q, q_next)
                grad_q = row(grad_qs, group, b, h, start)
                add_product(grad_q, grad_q_next, queries, head_dim, grads, AT_ONCE, 1, keys, k, k_next)


def forward(q: Tensor, k: Tensor, v: Tensor, begins: Tensor | None) -> tuple[Tensor, Tensor]:
    """y as `q`, and what the backward needs of the scores (2, batch, heads, time)."""
    batch, heads, time, head_dim = q.shape
    y, stats = by_token(q), q.new_empty(2, batch, heads, time)
    pieces = batch * heads * -(-time // AT_ONCE)
    scratch = q.new_empty(most_threads(), 2 * AT_ONCE + head_dim, AT_ONCE)
    run(
        _forward, pieces, heads=heads, time=time, head_dim=head_dim, scale=head_dim**-0.5, qs=rows(q), ks=rows(k),
        vs=rows(v), first_keys=None if begins is None else rows(begins), stats=stats, scratch=scratch, ys=y,
    )  # fmt: skip
    return y, stats


def backward(
    grad_y: Tensor, q: Tensor, k: Tensor, v: Tensor, begins: Tensor | None, y: Tensor, stats: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values."""
    batch, heads, time, head_dim = q.shape
    groups = min(-(-PIECES // (batch * heads)), -(-time // (2 * AT_ONCE)))
    pieces = batch * heads * groups
    grad_q = q.new_empty(groups, batch, time, heads, head_dim)
    grad_k, grad_v = by_token(k), by_token(v)
    scratch = q.new_empty(most_threads(), 2 * (AT_ONCE + head_dim), AT_ONCE)
    run(
        _backward, pieces, heads=heads, time=time, head_dim=head_dim, scale=head_dim**-0.5, qs=rows(q), ks=rows(k),
        vs=rows(v), first_keys=None if begins is None else rows(begins), stats=stats, scratch=scratch,
        grad_ys=rows(grad_y), deltas=(grad_y * y).sum(-1), grad_qs=grad_q.transpose(2, 3), grad_ks=grad_k,
        grad_vs=grad_v, groups=groups,
    )  # fmt: skip
    return grad_q.sum(0).transpose(1, 2), grad_k, grad_v
