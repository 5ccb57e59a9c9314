"""Linear attention with a decay per key channel in chunks, forward and backward, with PyTorch's matrix products.

With b_t the sum of g over the chunk up to t, a_t = b_t for the read after the update and b_{t-1} for the one before it,
S the state before a chunk of L tokens, w the bonus (1 for the read after the update):

    o_t = (q_t exp(a_t))^T S + sum_{s<t} A_ts v_s + (q_t w . k_t) v_t        A_ts = sum_c q_tc k_sc exp(a_tc - b_sc)
    S'  = Diag(exp(b_L)) S + sum_s (k_s exp(b_L - b_s)) v_s^T

A does not factor over a chunk: exp(-b_s) overflows (a sum of -174 over 64 tokens is common). So a chunk is cut into
pieces of PIECE tokens (Yang et al. 2024, arXiv 2312.06635, section 4.3). What a piece sees of those before it is a
product about the sum r at its beginning, where both exponents a_t - r and r - b_s are at most 0; within a piece the
sums over channels are written out. Every exponent is a difference of float64, every exponential at most 1.

The gradient of g gathers the pairs that pass it, chunk by chunk, without the diagonal, which passes none.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.gated_linear_attention.reference import CHUNK, Inputs

PIECE = 16
"""Tokens of a piece."""


class Chunks(NamedTuple):
    """A sequence in chunks: (batch * heads, chunks, tokens, …) in the dtype of the state; 0 beyond its end."""

    q: Tensor
    k: Tensor
    v: Tensor
    b: Tensor  # sums of g, float64
    a: Tensor  # those at which the state is read
    w: Tensor | None  # (batch * heads, 1, 1, key_dim)
    segment: Tensor | None  # (batch * heads, chunks, tokens): number of resets so far in the chunk
    piece: int  # tokens of a piece
    dtype: torch.dtype  # of the sequence, before it was cut

    def masked(self, x: Tensor, hidden: Callable[[Tensor], Tensor]) -> Tensor:
        """`x` with 0 at the tokens that `hidden` says from the numbers of resets."""
        return x if self.segment is None else x.masked_fill_(hidden(self.segment)[..., None], 0.0)

    def read(self) -> Tensor:
        """q exp(a): what reads the state before the chunk."""
        return self.masked(self.q * self.a.exp().to(self.q.dtype), lambda segment: segment > 0)

    def write(self) -> Tensor:
        """k exp(b_L - b): what writes the state after the chunk."""
        weight = (self.b[..., -1:, :] - self.b).exp().to(self.k.dtype)
        return self.masked(weight.mul_(self.k), lambda segment: segment < segment[..., -1:])

    def carry(self) -> Tensor:
        """What is kept of the state, (batch * heads, chunks, key_dim, 1)."""
        kept = self.b[..., -1:, :].exp().to(self.k.dtype)
        return self.masked(kept, lambda segment: segment[..., -1:] > 0).mT

    def weigh(self, x: Tensor) -> Tensor:
        """`x` (…, key_dim) times the bonus."""
        return x if self.w is None else x * self.w

    def hidden(self) -> Tensor:
        """The pairs of tokens that do not see each other: not earlier, or of another document."""
        tokens = self.q.shape[2]
        hidden = torch.ones(tokens, tokens, dtype=torch.bool, device=self.q.device).triu()
        if self.segment is None:
            return hidden
        return hidden | (self.segment[..., :, None] != self.segment[..., None, :])


def cut(x: Tensor, tokens: int, dtype: torch.dtype) -> Tensor:
    """(batch, time, heads, dim) as (batch * heads, chunks, tokens, dim)."""
    x = F.pad(x.to(dtype), (0, 0, 0, 0, 0, -x.shape[1] % tokens))
    return x.unflatten(1, (-1, tokens)).permute(0, 3, 1, 2, 4).flatten(0, 1).contiguous()


def join(x: Tensor, like: Tensor) -> Tensor:
    """The other way round, in the shape and dtype of `like`, contiguous."""
    joined = x.unflatten(0, (like.shape[0], -1)).permute(0, 2, 3, 1, 4).flatten(1, 2)[:, : like.shape[1]]
    return joined.to(like.dtype).contiguous()


class Parts(NamedTuple):
    """Who makes what takes the time; the rest is the same for all devices."""

    scores: Callable[[Chunks], Tensor]
    scores_backward: Callable[[Chunks, Tensor], tuple[Tensor, Tensor]]
    pass_on: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    pass_back: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    product: Callable[[Tensor, Tensor, torch.dtype], Tensor]
    """Of matrices in the state's dtype, made of a sequence in another."""
    shortest_piece: int


def chunks_of(inputs: Inputs, resets: Tensor | None, dtype: torch.dtype, shortest_piece: int) -> Chunks:
    """A sequence in chunks of CHUNK tokens, or of all there are in whole pieces."""
    q, k, v, g, bonus = inputs
    batch, time, heads, _ = q.shape
    piece = max(min(PIECE, time), shortest_piece)
    tokens = min(CHUNK, -(-time // piece) * piece)
    b = cut(g, tokens, torch.float64).cumsum(2)
    w = None if bonus is None else bonus.to(dtype).repeat(batch, 1)[:, None, None]
    segment = None
    if resets is not None:
        by_chunk = F.pad(resets, (0, -time % tokens)).unflatten(1, (-1, tokens))
        segment = by_chunk.cumsum(2).repeat_interleave(heads, 0)
    a = b if bonus is None else F.pad(b[:, :, :-1], (0, 0, 1, 0))
    queries, keys, values = (cut(x, tokens, dtype) for x in (q, k, v))
    return Chunks(queries, keys, values, b, a, w, segment, piece, q.dtype)


class Piece(NamedTuple):
    """What a piece sees of the pieces before it: queries and keys, each with its half of the decay."""

    here: slice
    before: slice
    query_decay: Tensor  # exp(a_t - r)
    key_decay: Tensor  # exp(r - b_s)


def _pieces(c: Chunks) -> list[Piece]:
    """Every piece of the chunks but the first, which sees none."""
    found = []
    for begin in range(c.piece, c.q.shape[2], c.piece):
        here, before = slice(begin, begin + c.piece), slice(0, begin)
        r = c.b[:, :, begin - 1 : begin]
        found.append(
            Piece(here, before, (c.a[:, :, here] - r).exp().to(c.q.dtype), (r - c.b[:, :, before]).exp().to(c.q.dtype))
        )
    return found


def _within(x: Tensor, piece: int) -> Tensor:
    """(rows, chunks, tokens, …) as (rows, chunks, pieces, tokens of a piece, …), a view."""
    return x.unflatten(2, (-1, piece))


def _own(scores: Tensor, piece: int) -> Tensor:
    """Of (rows, chunks, tokens, tokens) the pairs within pieces, (rows, chunks, pieces, piece, piece), a view."""
    blocks = scores.unflatten(3, (-1, piece)).unflatten(2, (-1, piece))
    return blocks.diagonal(dim1=2, dim2=4).movedim(-1, 2)


def scores(c: Chunks) -> Tensor:
    """A of every chunk, (rows, chunks, tokens, tokens): 0 on the diagonal and above, and across resets."""
    tokens = c.q.shape[2]
    found = c.q.new_zeros(*c.q.shape[:3], tokens)
    for here, before, query_decay, key_decay in _pieces(c):
        found[:, :, here, before] = (c.q[:, :, here] * query_decay) @ key_decay.mul_(c.k[:, :, before]).mT
    q, k, a, b = (_within(x, c.piece) for x in (c.q, c.k, c.a, c.b))
    own = _own(found, c.piece)
    for t in range(1, c.piece):
        decayed = (a[..., t : t + 1, :] - b[..., :t, :]).to(q.dtype).exp_().mul_(k[..., :t, :])
        own[..., t, :t] = (decayed @ q[..., t, :, None])[..., 0]
    return found if c.segment is None else found.masked_fill_(c.hidden(), 0.0)


def scores_backward(c: Chunks, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of q and k from that of A, 0 where A is."""
    grad_q, grad_k = torch.zeros_like(c.q), torch.zeros_like(c.k)
    for here, before, query_decay, key_decay in _pieces(c):
        block = grad[:, :, here, before]
        grad_q[:, :, here] = (block @ (c.k[:, :, before] * key_decay)).mul_(query_decay)
        grad_k[:, :, before] += (block.mT @ query_decay.mul_(c.q[:, :, here])).mul_(key_decay)
    q, k, a, b, into_q, into_k = (_within(x, c.piece) for x in (c.q, c.k, c.a, c.b, grad_q, grad_k))
    own = _own(grad, c.piece)
    for t in range(1, c.piece):
        decay = (a[..., t : t + 1, :] - b[..., :t, :]).to(q.dtype).exp_()
        weight = own[..., t, :t, None]
        into_k[..., :t, :] += weight * decay * q[..., t : t + 1, :]
        into_q[..., t, :] += (decay.mul_(k[..., :t, :]).mT @ weight)[..., 0]
    return grad_q, grad_k


def pass_on(written: Tensor, carry: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The states before each chunk (chunks, batch, heads, key_dim, value_dim), and the one after the last.

    `written` (rows, chunks, key_dim, value_dim) is what each chunk writes, `carry` what it keeps.
    """
    starts = state.new_empty(written.shape[1], *state.shape)
    for c, start in enumerate(starts.unbind()):
        start.copy_(state)
        state = torch.addcmul(written[:, c].view_as(state), carry[:, c].unflatten(0, state.shape[:2]), state)
    return starts, state


def pass_back(read: Tensor, carry: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the states after each chunk (rows, chunks, key_dim, value_dim), and of the initial one.

    `read` (rows, chunks, key_dim, value_dim) is what reaches the state before a chunk through what the chunk reads.
    """
    grads = torch.empty_like(read)
    for c in reversed(range(read.shape[1])):
        grads[:, c] = grad.flatten(0, 1)
        grad = torch.addcmul(read[:, c].view_as(grad), carry[:, c].unflatten(0, grad.shape[:2]), grad)
    return grads, grad


PYTORCH = Parts(scores, scores_backward, pass_on, pass_back, lambda left, right, _: left @ right, 1)


def forward(inputs: Inputs, state: Tensor, resets: Tensor | None, by: Parts = PYTORCH) -> tuple[Tensor, Tensor, Tensor]:
    """Output, final state, and the states before each chunk; arguments as in the package's public function."""
    c = chunks_of(inputs, resets, state.dtype, by.shortest_piece)
    starts, final = by.pass_on(by.product(c.write().mT, c.v, c.dtype), c.carry(), state)
    o = by.product(by.scores(c), c.v, c.dtype)
    o.addcmul_((c.q * c.weigh(c.k)).sum(-1, keepdim=True), c.v)
    o += by.product(c.read(), starts.movedim(0, 2).flatten(0, 1), c.dtype)
    return join(o, inputs.v), final.clone(), starts


def backward(
    grad_o: Tensor, grad_state: Tensor, inputs: Inputs, resets: Tensor | None, starts: Tensor, by: Parts = PYTORCH
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, g, the bonus (empty without one) and the initial state."""
    q, k, v, g, bonus = inputs
    c = chunks_of(inputs, resets, starts.dtype, by.shortest_piece)
    do = cut(grad_o, c.q.shape[2], starts.dtype)
    before = starts.movedim(0, 2).flatten(0, 1)  # (rows, chunks, key_dim, value_dim)
    read, write, carry = c.read(), c.write(), c.carry()
    after, grad_initial = by.pass_back(by.product(read.mT, do, c.dtype), carry, grad_state)
    carried = (after * before).sum(-1, keepdim=True).mul_(carry).mT  # what passes the chunk

    a_grad = by.product(do, c.v.mT, c.dtype).masked_fill_(c.hidden(), 0.0)
    dv = by.product(by.scores(c).mT, do, c.dtype)
    dv += by.product(write, after, c.dtype)
    own = (c.q * c.weigh(c.k)).sum(-1, keepdim=True)
    dv.addcmul_(own, do)
    dq, dk = by.scores_backward(c, a_grad)

    dq_read = by.product(do, before.mT, c.dtype).mul_(c.a.exp().to(dq.dtype))
    dq_read = c.masked(dq_read, lambda segment: segment > 0)
    dk_write = by.product(c.v, after.mT, c.dtype).mul_((c.b[..., -1:, :] - c.b).exp().to(dk.dtype))
    dk_write = c.masked(dk_write, lambda segment: segment < segment[..., -1:])
    dq += dq_read
    later = (c.q * dq).double()
    if bonus is not None:  # the token's own decay comes after its read
        later = F.pad(later[:, :, 1:], (0, 0, 0, 1))
    later -= c.k * dk
    earlier = F.pad((c.k * dk_write).double()[:, :, :-1].cumsum(2), (0, 0, 1, 0))
    dg = later.flip(2).cumsum(2).flip(2).add_(earlier).add_(carried)
    dg = join(dg, g)
    if resets is not None:
        dg.masked_fill_(resets[..., None, None], 0.0)

    own_grad = (do * c.v).sum(-1, keepdim=True)
    dk += dk_write
    if c.w is None:
        du = q.new_empty(0)
    else:
        assert bonus is not None
        du = (c.q * c.k * own_grad).sum((1, 2)).unflatten(0, (q.shape[0], -1)).sum(0).to(bonus.dtype)
    dq += own_grad * c.weigh(c.k)
    dk += own_grad * c.weigh(c.q)
    return join(dq, q), join(dk, k), join(dv, v), dg, du, grad_initial.contiguous()
