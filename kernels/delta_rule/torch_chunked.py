"""The generalised delta rule in chunks, forward and backward, with matrix products and a triangular solve.

With W_t the sum of g over a chunk of L tokens up to t, S the state before it, and u_t = S_{t-1}^T a_t:

    (I - A_ab) U = A_ak V + (a exp(W_{t-1})) S                       A_ab and A_ak of earlier tokens: W_{t-1} - W_s
    O  = A_qk V + A_qb U + (q exp(W_t)) S                            A_qk and A_qb with the token itself: W_t - W_s
    S' = Diag(exp(W_L)) S + (k exp(W_L - W))^T V + (b exp(W_L - W))^T U

The four matrices of pairs are those of linear attention with a decay per key channel, whose forms make them: in pieces,
so that no exponent is positive. U is found by forward substitution in the dtype of the state. An inverse by powers of
A_ab, though it would be products alone, loses all digits where keys resemble each other: with cosines of 0.9 its powers
reach 6e14, while the inverse itself stays below 1. From chunk to chunk U and the states follow from each other; what
does not depend on the state is made of all chunks at once, so that two products a chunk remain.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.delta_rule.reference import Inputs
from kernels.gated_linear_attention import reference as linear_attention
from kernels.gated_linear_attention.torch_chunked import PYTORCH, Chunks, Parts, chunks_of, cut, join


class _Rule(NamedTuple):
    """What forward and backward share, (rows, chunks, tokens, …) with rows = batch * heads."""

    q: Chunks  # queries q with keys k: its v are the values
    a: Chunks  # queries a with keys b
    pairs: Chunks  # the four kinds one after another along the rows: qk, qb, ak, ab
    qk: Tensor  # the matrices of pairs, the first two with their diagonals
    qb: Tensor
    ak: Tensor
    ab: Tensor
    write: Tensor  # exp(W_L - W), 0 before a later reset

    def solve(self, right: Tensor, product: bool = False) -> Tensor:
        """(I - A_ab)^-1 times a matrix, or its transpose times one where `product` is set."""
        identity = torch.eye(self.ab.shape[-1], dtype=self.ab.dtype, device=self.ab.device)
        matrix = (identity - self.ab).mT if product else identity - self.ab
        return torch.linalg.solve_triangular(matrix, right, upper=product, unitriangular=True)


def _rule(inputs: Inputs, resets: Tensor | None, dtype: torch.dtype, by: Parts) -> _Rule:
    q, k, v, a, b, g = inputs
    of_q = chunks_of(linear_attention.Inputs(q, k, v, g, None), resets, dtype, by.shortest_piece)
    tokens = of_q.q.shape[2]
    earlier = F.pad(of_q.b[:, :, :-1], (0, 0, 1, 0))
    of_a = of_q._replace(q=cut(a, tokens, dtype), k=cut(b, tokens, dtype), a=earlier)
    pairs = of_q._replace(
        q=torch.cat((of_q.q, of_q.q, of_a.q, of_a.q)),
        k=torch.cat((of_q.k, of_a.k, of_q.k, of_a.k)),
        b=of_q.b.repeat(4, 1, 1, 1),
        a=torch.cat((of_q.a, of_q.a, earlier, earlier)),
        segment=None if of_q.segment is None else of_q.segment.repeat(4, 1, 1),
    )
    qk, qb, ak, ab = by.scores(pairs).chunk(4)
    for matrix, keys in ((qk, of_q.k), (qb, of_a.k)):
        matrix.diagonal(dim1=-2, dim2=-1).copy_((of_q.q * keys).sum(-1))
    write = of_q.masked((of_q.b[..., -1:, :] - of_q.b).exp().to(dtype), lambda segment: segment < segment[..., -1:])
    return _Rule(of_q, of_a, pairs, qk, qb, ak, ab, write)


def forward(inputs: Inputs, state: Tensor, resets: Tensor | None, by: Parts = PYTORCH) -> tuple[Tensor, Tensor, Tensor]:
    """Output, final state, and the states before each chunk; arguments as in the package's public function."""
    r = _rule(inputs, resets, state.dtype, by)
    values, dtype = r.q.v, r.q.dtype
    key_dim = r.q.q.shape[-1]
    solved = r.solve(torch.cat((r.a.read(), by.product(r.ak, values, dtype)), dim=-1))
    from_state, u = solved.split([key_dim, values.shape[-1]], dim=-1)
    written = by.product((r.write * r.q.k).mT, values, dtype)
    into, carry = r.write * r.a.k, r.q.carry()
    starts, us = [], []
    s = state.flatten(0, 1)
    for c in range(written.shape[1]):
        starts.append(s)
        us.append(torch.baddbmm(u[:, c], from_state[:, c], s))
        s = torch.baddbmm(torch.addcmul(written[:, c], carry[:, c], s), into[:, c].mT, us[-1])
    before, u = torch.stack(starts, dim=1), torch.stack(us, dim=1)
    o = by.product(r.qk, values, dtype) + by.product(r.qb, u, dtype) + by.product(r.q.read(), before, dtype)
    kept = before.movedim(1, 0).unflatten(1, state.shape[:2]).contiguous()
    return join(o, inputs.v), s.view(state.shape).clone(), kept


def backward(
    grad_o: Tensor, grad_state: Tensor, inputs: Inputs, resets: Tensor | None, starts: Tensor, by: Parts = PYTORCH
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, a, b, g and the initial state.

    With R the right side of the solve: dU = A_qb^T dO + (b exp(W_L - W)) dS', dR = (I - A_ab)^-T dU, dA_ab = dR U^T.
    """
    r = _rule(inputs, resets, starts.dtype, by)
    values, dtype = r.q.v, r.q.dtype
    do = cut(grad_o, values.shape[2], starts.dtype)
    before = starts.movedim(0, 2).flatten(0, 1)
    read_q, read_a, carry, into = r.q.read(), r.a.read(), r.q.carry(), r.write * r.a.k
    u = r.solve(by.product(r.ak, values, dtype) + by.product(read_a, before, dtype))

    solved = r.solve(torch.cat((into, by.product(r.qb.mT, do, dtype)), dim=-1), product=True)
    from_after, dr = solved.split([into.shape[-1], values.shape[-1]], dim=-1)
    through = by.product(read_q.mT, do, dtype)
    afters, drs = [], []
    ds = grad_state.flatten(0, 1)
    for c in reversed(range(through.shape[1])):
        afters.append(ds)
        drs.append(torch.baddbmm(dr[:, c], from_after[:, c], ds))
        ds = torch.baddbmm(torch.addcmul(through[:, c], carry[:, c], ds), read_a[:, c].mT, drs[-1])
    after, dr = torch.stack(afters[::-1], dim=1), torch.stack(drs[::-1], dim=1)

    dv = by.product(r.qk.mT, do, dtype) + by.product(r.ak.mT, dr, dtype)
    dv += by.product(r.write * r.q.k, after, dtype)
    of_qk, of_qb = by.product(do, values.mT, dtype), by.product(do, u.mT, dtype)
    own_k, own_b = (x.diagonal(dim1=-2, dim2=-1)[..., None].clone() for x in (of_qk, of_qb))
    of_pairs = torch.cat((of_qk, of_qb, by.product(dr, values.mT, dtype), by.product(dr, u.mT, dtype)))
    as_queries, as_keys = by.scores_backward(r.pairs, of_pairs.masked_fill_(r.pairs.hidden(), 0.0))
    (dq, also_q, da, also_a), (dk, db, also_k, also_b) = as_queries.chunk(4), as_keys.chunk(4)
    dq, da, dk, db = dq + also_q, da + also_a, dk + also_k, db + also_b

    for grads, chunks, upstream in ((dq, r.q, do), (da, r.a, dr)):
        seen = by.product(upstream, before.mT, dtype).mul_(chunks.a.exp().to(dq.dtype))
        grads += chunks.masked(seen, lambda segment: segment > 0)
    later = (r.q.q * dq).double() + F.pad((r.a.q * da).double()[:, :, 1:], (0, 0, 0, 1))
    later -= r.q.k * dk + r.a.k * db
    written_k = by.product(values, after.mT, dtype).mul_(r.write)
    written_b = by.product(u, after.mT, dtype).mul_(r.write)
    stored = (r.q.k * written_k + r.a.k * written_b).double()
    carried = (after * before).sum(-1, keepdim=True).mul_(carry).mT
    earlier = F.pad(stored[:, :, :-1].cumsum(2), (0, 0, 1, 0))
    dg = join(later.flip(2).cumsum(2).flip(2).add_(earlier).add_(carried), inputs.g)
    if resets is not None:
        dg.masked_fill_(resets[..., None, None], 0.0)

    dq += own_k * r.q.k + own_b * r.a.k
    dk += written_k + own_k * r.q.q
    db += written_b + own_b * r.q.q
    grads_in = (join(one, like) for one, like in zip((dq, dk, dv, da, db), inputs[:5], strict=True))
    return *grads_in, dg, ds.view(grad_state.shape).clone()  # type: ignore[return-value]
