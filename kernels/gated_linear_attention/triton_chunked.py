"""Linear attention with a decay per key channel on GPUs: pairs and states as Triton kernels, products by the library.

The equations are `torch_chunked`'s. What PyTorch would make in many passes over memory are four kernels: the scores of
a piece of tokens with those before it and with itself, their gradients, and the states' way from chunk to chunk, each
way. Between pieces scores are products of 16 tokens, whose operands are weighted in registers: Triton makes them with
the products of single warps, which Hopper's warp groups do not replace below 64 rows.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gated_linear_attention import torch_chunked
from kernels.gated_linear_attention.torch_chunked import PIECE, Chunks, Parts

CHANNELS = 32
"""Key channels that a program weighs at a time."""
COLUMNS = 128
"""Columns of a state that a program carries, of one warp: four numbers a thread."""


@triton.jit
def _load(ptr, rows, c, key_dim):
    inside = (c < key_dim)[None, :]
    return tl.load(ptr + rows[:, None] * key_dim + c[None, :], mask=inside, other=0.0)


@triton.jit
def _reference(b_ptr, row, c, key_dim, first):
    """The sum of decays before a chunk's token `first`, (channels,), float64."""
    return tl.load(b_ptr + (row - 1) * key_dim + c, mask=(c < key_dim) & (first > 0), other=0.0)


@triton.jit
def scores_kernel(
    q_ptr, k_ptr, a_ptr, b_ptr, scores_ptr, key_dim, num_pieces,
    P: tl.constexpr, BC: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """A of one piece of P tokens with every token of its chunk up to itself, (P, tokens)."""
    piece = tl.program_id(0) % num_pieces
    tokens = num_pieces * P
    base = (tl.program_id(0) // num_pieces).to(tl.int64) * tokens
    local = tl.arange(0, P)
    here = base + piece * P + local
    for other in range(piece):
        there = base + other * P + local
        total = tl.zeros((P, P), tl.float32)
        for start in range(0, key_dim, BC):
            c = start + tl.arange(0, BC)
            r = _reference(b_ptr, base + piece * P, c, key_dim, piece)
            q_decay = tl.exp((_load(a_ptr, here, c, key_dim) - r[None, :]).to(tl.float32))
            k_decay = tl.exp((r[None, :] - _load(b_ptr, there, c, key_dim)).to(tl.float32))
            q = _load(q_ptr, here, c, key_dim).to(tl.float32) * q_decay
            k = _load(k_ptr, there, c, key_dim).to(tl.float32) * k_decay
            total += tl.dot(q.to(DTYPE), tl.trans(k.to(DTYPE)), input_precision="ieee")
        at = scores_ptr + here[:, None] * tokens + (other * P + local)[None, :]
        tl.store(at, total.to(scores_ptr.dtype.element_ty))
    own = tl.zeros((P, P), tl.float32)
    for start in range(0, key_dim, BC):
        c = start + tl.arange(0, BC)
        q = _load(q_ptr, here, c, key_dim).to(tl.float32)
        a = _load(a_ptr, here, c, key_dim)
        for s in range(P):
            at = base + piece * P + s
            k = tl.load(k_ptr + at * key_dim + c, mask=c < key_dim, other=0.0).to(tl.float32)
            b = tl.load(b_ptr + at * key_dim + c, mask=c < key_dim, other=0.0)
            seen = (local > s)[:, None]
            decay = tl.exp(tl.where(seen, a - b[None, :], 0.0).to(tl.float32))
            products = tl.sum(tl.where(seen, q * decay * k[None, :], 0.0), 1)
            own += tl.where((local == s)[None, :], products[:, None], 0.0)
    at = scores_ptr + here[:, None] * tokens + (piece * P + local)[None, :]
    tl.store(at, own.to(scores_ptr.dtype.element_ty))
    for other in range(piece + 1, num_pieces):
        at = scores_ptr + here[:, None] * tokens + (other * P + local)[None, :]
        tl.store(at, tl.zeros((P, P), scores_ptr.dtype.element_ty))


@triton.jit
def scores_backward_kernel(
    q_ptr, k_ptr, a_ptr, b_ptr, grad_ptr, grad_q_ptr, grad_k_ptr, key_dim, num_pieces,
    P: tl.constexpr, BC: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Gradients of q and k of one piece and some channels, from that of A."""
    piece = tl.program_id(0) % num_pieces
    tokens = num_pieces * P
    base = (tl.program_id(0) // num_pieces).to(tl.int64) * tokens
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    local = tl.arange(0, P)
    here = base + piece * P + local
    a, b = _load(a_ptr, here, c, key_dim), _load(b_ptr, here, c, key_dim)

    grad_q = tl.zeros((P, BC), tl.float32)
    r = _reference(b_ptr, base + piece * P, c, key_dim, piece)
    for other in range(piece):
        there = base + other * P + local
        weighed = _load(k_ptr, there, c, key_dim).to(tl.float32)
        weighed *= tl.exp((r[None, :] - _load(b_ptr, there, c, key_dim)).to(tl.float32))
        grad = tl.load(grad_ptr + here[:, None] * tokens + (other * P + local)[None, :])
        grad_q += tl.dot(grad.to(DTYPE), weighed.to(DTYPE), input_precision="ieee")
    grad_q *= tl.exp((a - r[None, :]).to(tl.float32))

    grad_k = tl.zeros((P, BC), tl.float32)
    for other in range(piece + 1, num_pieces):
        there = base + other * P + local
        r = _reference(b_ptr, base + other * P, c, key_dim, other)
        weighed = _load(q_ptr, there, c, key_dim).to(tl.float32)
        weighed *= tl.exp((_load(a_ptr, there, c, key_dim) - r[None, :]).to(tl.float32))
        grad = tl.load(grad_ptr + there[:, None] * tokens + (piece * P + local)[None, :])
        product = tl.dot(tl.trans(grad).to(DTYPE), weighed.to(DTYPE), input_precision="ieee")
        grad_k += product * tl.exp((r[None, :] - b).to(tl.float32))

    for s in range(P):
        at = base + piece * P + s
        q_s = tl.load(q_ptr + at * key_dim + c, mask=c < key_dim, other=0.0).to(tl.float32)
        k_s = tl.load(k_ptr + at * key_dim + c, mask=c < key_dim, other=0.0).to(tl.float32)
        a_s = tl.load(a_ptr + at * key_dim + c, mask=c < key_dim, other=0.0)
        b_s = tl.load(b_ptr + at * key_dim + c, mask=c < key_dim, other=0.0)
        later, earlier = (local > s)[:, None], (local < s)[:, None]
        of_column = tl.load(grad_ptr + here * tokens + piece * P + s).to(tl.float32)
        of_row = tl.load(grad_ptr + at * tokens + piece * P + local).to(tl.float32)
        decay = tl.exp(tl.where(later, a - b_s[None, :], 0.0).to(tl.float32))
        grad_q += tl.where(later, of_column[:, None] * decay * k_s[None, :], 0.0)
        decay = tl.exp(tl.where(earlier, a_s[None, :] - b, 0.0).to(tl.float32))
        grad_k += tl.where(earlier, of_row[:, None] * decay * q_s[None, :], 0.0)
    position = here[:, None] * key_dim + c[None, :]
    tl.store(grad_q_ptr + position, grad_q, mask=(c < key_dim)[None, :])
    tl.store(grad_k_ptr + position, grad_k, mask=(c < key_dim)[None, :])


@triton.jit
def pass_on_kernel(
    written_ptr, carry_ptr, state_ptr, starts_ptr, final_ptr, key_dim, value_dim, chunks,
    BV: tl.constexpr,
):  # fmt: skip
    """The states before each chunk, and the last, of one row of a head's state and some of its columns."""
    row = (tl.program_id(0) // key_dim).to(tl.int64)
    channel = tl.program_id(0) % key_dim
    column = tl.program_id(1) * BV + tl.arange(0, BV)
    mask = column < value_dim
    at = (row * key_dim + channel) * value_dim + column
    state = tl.load(state_ptr + at, mask=mask, other=0.0)
    of_chunks = tl.num_programs(0).to(tl.int64)  # rows of all heads' states
    for c in range(chunks):
        tl.store(starts_ptr + c * of_chunks * value_dim + at, state, mask=mask)
        cell = (row * chunks + c) * key_dim + channel
        kept = tl.load(carry_ptr + cell)
        state = state * kept + tl.load(written_ptr + cell * value_dim + column, mask=mask, other=0.0)
    tl.store(final_ptr + at, state, mask=mask)


@triton.jit
def pass_back_kernel(
    read_ptr, carry_ptr, grad_ptr, grads_ptr, initial_ptr, key_dim, value_dim, chunks,
    BV: tl.constexpr,
):  # fmt: skip
    """The gradients of the states after each chunk, and of the initial one, likewise."""
    row = (tl.program_id(0) // key_dim).to(tl.int64)
    channel = tl.program_id(0) % key_dim
    column = tl.program_id(1) * BV + tl.arange(0, BV)
    mask = column < value_dim
    at = (row * key_dim + channel) * value_dim + column
    grad = tl.load(grad_ptr + at, mask=mask, other=0.0)
    for step in range(chunks):
        cell = (row * chunks + chunks - 1 - step) * key_dim + channel
        tl.store(grads_ptr + cell * value_dim + column, grad, mask=mask)
        kept = tl.load(carry_ptr + cell)
        grad = grad * kept + tl.load(read_ptr + cell * value_dim + column, mask=mask, other=0.0)
    tl.store(initial_ptr + at, grad, mask=mask)


_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def _pieces(c: Chunks) -> tuple[int, dict[str, Any]]:
    """Pieces of a chunk, and what a program is compiled for."""
    channels = max(min(CHANNELS, triton.next_power_of_2(c.q.shape[-1])), PIECE)
    return c.q.shape[2] // c.piece, {"P": c.piece, "BC": channels, "DTYPE": _DTYPES[c.dtype]}


def scores(c: Chunks) -> Tensor:
    """As `torch_chunked.scores`."""
    rows, chunks, tokens, key_dim = c.q.shape
    num_pieces, options = _pieces(c)
    found = c.q.new_empty(rows, chunks, tokens, tokens)
    scores_kernel[(rows * chunks * num_pieces,)](c.q, c.k, c.a, c.b, found, key_dim, num_pieces, **options)
    return found if c.segment is None else found.masked_fill_(c.hidden(), 0.0)


def scores_backward(c: Chunks, grad: Tensor) -> tuple[Tensor, Tensor]:
    """As `torch_chunked.scores_backward`."""
    rows, chunks, _, key_dim = c.q.shape
    num_pieces, options = _pieces(c)
    grad_q, grad_k = torch.empty_like(c.q), torch.empty_like(c.k)
    scores_backward_kernel[(rows * chunks * num_pieces, triton.cdiv(key_dim, options["BC"]))](
        c.q, c.k, c.a, c.b, grad.contiguous(), grad_q, grad_k, key_dim, num_pieces, **options
    )
    return grad_q, grad_k


def pass_on(written: Tensor, carry: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """As `torch_chunked.pass_on`."""
    rows, chunks, key_dim, value_dim = written.shape
    starts, final = state.new_empty(chunks, *state.shape), state.new_empty(state.shape)
    pass_on_kernel[(rows * key_dim, triton.cdiv(value_dim, COLUMNS))](
        written.contiguous(), carry.contiguous(), state.contiguous(), starts, final, key_dim, value_dim, chunks,
        BV=COLUMNS, num_warps=1,
    )  # fmt: skip
    return starts, final


def pass_back(read: Tensor, carry: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """As `torch_chunked.pass_back`."""
    rows, chunks, key_dim, value_dim = read.shape
    read = read.contiguous()
    grads, initial = torch.empty_like(read), grad.new_empty(grad.shape)
    pass_back_kernel[(rows * key_dim, triton.cdiv(value_dim, COLUMNS))](
        read, carry.contiguous(), grad.contiguous(), grads, initial, key_dim, value_dim, chunks, BV=COLUMNS, num_warps=1
    )
    return grads, initial


def product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Matrices of float32 multiplied as `dtype`, which tensor cores take, and added in float32."""
    if dtype == torch.float32:
        return left @ right
    left, right = left.to(dtype), right.to(dtype)
    if not left.is_cuda:
        return left.float() @ right.float()
    return torch.bmm(left.flatten(0, 1), right.flatten(0, 1), out_dtype=torch.float32).unflatten(0, left.shape[:2])


KERNELS = Parts(scores, scores_backward, pass_on, pass_back, product, PIECE)

forward = functools.partial(torch_chunked.forward, by=KERNELS)
backward = functools.partial(torch_chunked.backward, by=KERNELS)
