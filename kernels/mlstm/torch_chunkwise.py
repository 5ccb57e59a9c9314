"""The mLSTM in chunks, forward and backward, with PyTorch's matrix products: fast on any device.

Within a chunk of L tokens the recurrence is a masked quadratic form, between chunks it is a matrix state (arXiv
2503.14376, section 3; here from the recurrence of `reference.py`). With b_t the sum of log f over the chunk up to t,
C and n, m the state before the chunk, and k divided by sqrt(key_dim):

    W_tj = exp(b_t - b_j + log i_j - m_t) for j <= t                 weight of token j in output t
    a_t  = exp(b_t + m - m_t)                                        weight of the state in output t
    y_t  = a_t q_t C + sum_j W_tj (q_t . k_j) v_j                    numerator
    s_t  = a_t q_t . n + sum_j W_tj (q_t . k_j)                      denominator: max(|s_t|, exp(-m_t)) + eps
    g_j  = exp(b_L - b_j + log i_j - m_L)                            weight of token j in the next state
    C'   = exp(b_L + m - m_L) C + sum_j g_j k_j v_j^T

m_t is exactly the recurrence's running maximum, so states and eps mean the same in every implementation.

Precision: b_t is computed in float64. The exponent of W_tj, (b_t - m_t) + (log i_j - b_j), is a small difference of
numbers that strong forget gates make large, so each bracket is split into a coarse part, a multiple of 1/16 that
float32 adds exactly, and a fine remainder whose exponential scales the rows of y and the rows of k. The quadratic form
then costs one addition and one exponential per pair, in float32, whatever the gates.

The backward recomputes the quadratic forms chunk by chunk from the inputs and the saved chunk states.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.dispatch import state_dtype
from kernels.mlstm.reference import Inputs, MLSTMState, Options, Saved, Upstream

COARSE = 16.0
"""Coarse exponents are multiples of 1/16: exact in float32 up to 2^20, and remainders stay within 1/32."""


class ChunkGates(NamedTuple):
    """What the gates mean for chunks of L tokens, (batch * heads, chunks, L) where not said otherwise."""

    row: Tensor  # coarse part of b_t - m_t
    row_fine: Tensor  # exp(remainder of b_t - m_t)
    column: Tensor  # coarse part of log i_j - b_j
    column_fine: Tensor  # exp(remainder) / sqrt(key_dim)
    read: Tensor  # a_t / row_fine
    write: Tensor  # g_j / sqrt(key_dim)
    carry: Tensor  # exp(b_L + m - m_L), (batch * heads, chunks, 1, 1)
    floor: Tensor  # exp(-m_t)
    m: Tensor  # (batch * heads, time)
    segment: Tensor | None  # number of resets in the chunk up to t, (batch, chunks, L)
    has_reset: list[bool]  # per chunk


def default_chunk_size(time: int, key_dim: int, value_dim: int) -> int:
    """Chunk length that balances the L^2 work within chunks and the states between them, a multiple of 16."""
    balanced = 64 if key_dim + value_dim <= 256 else 128
    return min(balanced, -(-time // 16) * 16)


def running_maximum(log_f: Tensor, log_i: Tensor, m: Tensor, resets: Tensor | None) -> Tensor:
    """m_t = max(log f_t + m_{t-1}, log i_t), starting from `m` and from 0 at resets, for (batch, heads, time) gates.

    A scan by doubling: max-plus combination of longer and longer stretches, in log2(time) steps.
    """
    decay = log_f
    if resets is not None:
        at = resets[:, None, :]
        decay = log_f.masked_fill(at, -torch.inf)
        log_i = torch.where(at, torch.maximum(log_i, log_f), log_i)
    best = log_i.clone()
    best[..., 0] = torch.maximum(best[..., 0], decay[..., 0] + m)
    step = 1
    while step < best.shape[-1]:
        later = torch.maximum(best[..., step:], decay[..., step:] + best[..., :-step])
        best = torch.cat([best[..., :step], later], dim=-1)
        decay = torch.cat([decay[..., :step], decay[..., step:] + decay[..., :-step]], dim=-1)
        step *= 2
    return best


def _split(exponent: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The coarse part of an exponent, and the exponential of the remainder (1 where the exponent is infinite)."""
    coarse = torch.round(exponent * COARSE) / COARSE
    fine = torch.exp(torch.nan_to_num(exponent - coarse, nan=0.0))
    return coarse.to(dtype), fine.to(dtype)


def chunk_gates(inputs: Inputs, m: Tensor | None, resets: Tensor | None, options: Options) -> ChunkGates:
    """All gate weights of a sequence, from the pre-activations, in float64 throughout."""
    i, f, dtype, chunk = inputs.i, inputs.f, state_dtype(inputs.v), options.chunk
    batch, heads, time = i.shape
    root = inputs.q.shape[-1] ** -0.5
    chunks = -(-time // chunk)
    padding = (0, chunks * chunk - time)
    log_f = F.logsigmoid(f.double())
    log_i = i.double() if options.input_gate == "exponential" else F.logsigmoid(i.double())
    start = torch.zeros(batch, heads, dtype=torch.float64, device=i.device) if m is None else m.double()
    scale = running_maximum(log_f, log_i, start, resets) if options.stabilized else torch.zeros_like(log_f)

    log_i = F.pad(log_i, padding, value=-torch.inf)
    segment, has_reset = None, [False] * chunks
    if resets is not None:
        resets = F.pad(resets, padding)
        log_f = F.pad(log_f, padding).masked_fill(resets[:, None, :], 0.0)
        segment = resets.view(batch, chunks, chunk).cumsum(-1)
        has_reset = segment[..., -1].amax(0).bool().tolist()
    else:
        log_f = F.pad(log_f, padding)
    by_chunk = (batch * heads, chunks, chunk)
    b = log_f.reshape(by_chunk).cumsum(-1)
    log_i = log_i.reshape(by_chunk)
    m_t = torch.cat([scale, scale[..., -1:].expand(-1, -1, padding[1])], dim=-1).reshape(by_chunk)
    m_end = m_t[..., -1:]
    m_before = torch.cat([start.reshape(-1, 1, 1), m_end[:, :-1]], dim=1)

    row, row_fine = _split(b - m_t, dtype)
    column, column_fine = _split(log_i - b, dtype)
    read = torch.exp(b + m_before - m_t).to(dtype) / row_fine
    write = torch.exp(b[..., -1:] - b + log_i - m_end)
    carry = torch.exp(b[..., -1:] + m_before - m_end)
    if segment is not None:
        seg = segment[:, None].expand(-1, heads, -1, -1).reshape(by_chunk)
        read = read.masked_fill(seg > 0, 0.0)
        write = write.masked_fill(seg < seg[..., -1:], 0.0)
        carry = carry.masked_fill(seg[..., -1:] > 0, 0.0)
    return ChunkGates(
        row,
        row_fine,
        column,
        column_fine * root,
        read,
        (write * root).to(dtype),
        carry.to(dtype)[..., None],
        torch.exp(-m_t).to(dtype),
        scale.reshape(batch * heads, time).to(dtype),
        segment,
        has_reset,
    )


def _weights(gates: ChunkGates, c: int, size: int) -> Tensor:
    """exp of chunk c's coarse exponents, 0 above the diagonal and across resets; (batch * heads, size, size)."""
    weights = (gates.row[:, c, :size, None] + gates.column[:, c, None, :size]).exp_().tril_()
    if gates.segment is not None and gates.has_reset[c]:
        segment = gates.segment[:, c, :size]
        other = segment[:, :, None] != segment[:, None, :]  # (batch, size, size)
        weights.view(other.shape[0], -1, size, size).masked_fill_(other[:, None], 0.0)
    return weights


def _chunk(x: Tensor, c: int, chunk: int, dtype: torch.dtype) -> Tensor:
    """Chunk c of (batch, heads, time, dim) as (batch * heads, size, dim) in `dtype`; a view where strides allow it."""
    part = x[:, :, c * chunk : (c + 1) * chunk]
    return part.reshape(-1, *part.shape[2:]).to(dtype)


def forward(
    inputs: Inputs, state: MLSTMState | None, resets: Tensor | None, options: Options, save_states: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """h, the final state (C, n, m), and for the backward: the states before each chunk and s, all but h by row.

    A row is a head of a sequence, (batch * heads, …). Without `save_states`, the states are of no use.
    """
    q, k, v, chunk = *inputs[:3], options.chunk
    batch, heads, time, key_dim = q.shape
    value_dim, rows, dtype = v.shape[-1], batch * heads, state_dtype(v)
    chunks = -(-time // chunk)
    gates = chunk_gates(inputs, None if state is None else state.m, resets, options)
    slots = chunks if save_states else 2
    states_C = q.new_empty(slots, rows, key_dim, value_dim, dtype=dtype)
    states_n = q.new_empty(slots, rows, key_dim, dtype=dtype)
    final_C, final_n = torch.empty_like(states_C[0]), torch.empty_like(states_n[0])
    h = torch.empty_like(v, memory_format=torch.contiguous_format)
    s = q.new_empty(rows, time if options.normalize else 0, dtype=dtype)
    if state is not None:
        states_C[0].copy_(state.C.reshape(rows, key_dim, value_dim))
        states_n[0].copy_(state.n.reshape(rows, key_dim))
    elif save_states:
        states_C[0].zero_()
        states_n[0].zero_()

    for c in range(chunks):
        start, end = c * chunk, min(time, (c + 1) * chunk)
        size = end - start
        q_c, k_c, v_c = (_chunk(x, c, chunk, dtype) for x in (q, k, v))
        has_state = c > 0 or state is not None
        C_c, n_c = states_C[c % slots], states_n[c % slots]

        scores = torch.bmm(q_c, (k_c * gates.column_fine[:, c, :size, None]).mT)
        scores.mul_(_weights(gates, c, size))
        y = torch.bmm(scores, v_c)
        row_scale = gates.row_fine[:, c, :size]
        if has_state:
            q_read = q_c * gates.read[:, c, :size, None]
            y.baddbmm_(q_read, C_c)
        if options.normalize:
            weight = scores.sum(-1)
            if has_state:
                weight += torch.bmm(q_read, n_c[..., None])[..., 0]
            weight *= row_scale
            s[:, start:end] = weight
            row_scale = row_scale / torch.maximum(weight.abs_(), gates.floor[:, c, :size]).add_(options.eps)
        y.mul_(row_scale[..., None])
        h[:, :, start:end] = y.view(batch, heads, size, value_dim)

        last = c + 1 == chunks
        C_next = final_C if last else states_C[(c + 1) % slots]
        n_next = final_n if last else states_n[(c + 1) % slots]
        k_write = k_c * gates.write[:, c, :size, None]
        if has_state:
            torch.mul(C_c, gates.carry[:, c], out=C_next)
            C_next.baddbmm_(k_write.mT, v_c)
            torch.mul(n_c, gates.carry[:, c, 0], out=n_next)
            n_next += k_write.sum(1)
        else:
            torch.bmm(k_write.mT, v_c, out=C_next)
            torch.sum(k_write, 1, out=n_next)
    return h, final_C, final_n, gates.m[:, -1].clone(), states_C, states_n, s


def gate_gradients(
    inputs: Inputs,
    resets: Tensor | None,
    options: Options,
    passing: Tensor,
    grad_log_i: Tensor,
    reading: Tensor,
    writing: Tensor,
    carrying: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of the gates' pre-activations from sums over chunk positions, each (batch * heads, chunks, L).

    The gradient of log f at token u gathers every pair (t, j) with j < u <= t whose weight passes it: pairs within the
    chunk (`passing`: plus at their row, minus at their column), reads of the state after u, writes to the state before
    u, and the state `carrying` across the chunk, (batch * heads, chunks, 1). Each is summed within the chunk only,
    which keeps large terms from cancelling over the whole sequence.
    """
    i, f = inputs.i, inputs.f
    batch, heads, time = i.shape
    later = (passing + reading).double()
    earlier = F.pad(writing[..., :-1].double().cumsum(-1), (1, 0))  # a token's own write may dwarf all before it
    grad_log_f = later.flip(-1).cumsum(-1).flip(-1) + earlier + carrying
    grad_log_f = grad_log_f.view(batch, heads, -1)[..., :time]
    if resets is not None:
        grad_log_f = grad_log_f.masked_fill(resets[:, None, :], 0.0)
    grad_i = grad_log_i.view(batch, heads, -1)[..., :time]
    if options.input_gate == "sigmoid":
        grad_i = grad_i * torch.sigmoid(-i.to(grad_i.dtype))
    return grad_i.to(i.dtype, copy=True), (grad_log_f * torch.sigmoid(-f.double())).to(f.dtype)


def backward(
    upstream: Upstream, inputs: Inputs, m: Tensor | None, resets: Tensor | None, saved: Saved, options: Options
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, i, f and of the initial C and n, by row, walking the chunks from the last to the first."""
    q, k, v, chunk = *inputs[:3], options.chunk
    grad_h, grad_C, grad_n = upstream
    h, states_C, states_n, s = saved
    batch, heads, time, key_dim = q.shape
    value_dim, rows, dtype = v.shape[-1], batch * heads, state_dtype(v)
    chunks = -(-time // chunk)
    gates = chunk_gates(inputs, m, resets, options)
    grad_q, grad_k, grad_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    by_chunk = (rows, chunks, chunk)
    passing = q.new_zeros(by_chunk, dtype=dtype)  # pairs within the chunk: + at their row, - at their column
    reading, writing, grad_log_i = torch.zeros_like(passing), torch.zeros_like(passing), torch.zeros_like(passing)
    carrying = q.new_zeros(rows, chunks, 1, dtype=dtype)
    has_carry = grad_C is not None or grad_n is not None
    dC = torch.zeros_like(states_C[0]) if grad_C is None else grad_C.reshape(states_C[0].shape).to(dtype, copy=True)
    dn = torch.zeros_like(states_n[0]) if grad_n is None else grad_n.reshape(states_n[0].shape).to(dtype, copy=True)

    for c in reversed(range(chunks)):
        start, end = c * chunk, min(time, (c + 1) * chunk)
        size = end - start
        q_c, k_c, v_c, dh, h_c = (_chunk(x, c, chunk, dtype) for x in (q, k, v, grad_h, h))
        has_state = c > 0 or m is not None
        column_fine, write = gates.column_fine[:, c, :size, None], gates.write[:, c, :size, None]
        k_fine = k_c * column_fine
        weights = _weights(gates, c, size)
        scores = torch.bmm(q_c, k_fine.mT).mul_(weights)

        scale = gates.row_fine[:, c, :size]
        if options.normalize:
            weight, floor = s[:, start:end], gates.floor[:, c, :size]
            scale = scale / (torch.maximum(weight.abs(), floor) + options.eps)
            ds = (dh * h_c).sum(-1).mul_(scale).mul_(-weight.sign()).masked_fill_(weight.abs() <= floor, 0.0)
        dy = dh * scale[..., None]
        d_scores = torch.bmm(dy, v_c.mT)
        if options.normalize:
            d_scores += ds[..., None]

        pairs = d_scores * scores
        diagonal = pairs.diagonal(dim1=-2, dim2=-1)
        grad_log_i[:, c, :size] = diagonal
        diagonal.zero_()
        columns = pairs.sum(1)
        passing[:, c, :size] = pairs.sum(2) - columns
        grad_log_i[:, c, :size] += columns

        d_products = d_scores.mul_(weights)
        dq = torch.bmm(d_products, k_fine)
        dk = torch.bmm(d_products.mT, q_c).mul_(column_fine)
        dv = torch.bmm(scores.mT, dy)

        if has_carry:  # the state after this chunk has a gradient
            k_write = k_c * write
            dv.baddbmm_(k_write, dC)
            dk_write = torch.bmm(v_c, dC.mT).add_(dn[:, None])
            into = (dk_write * k_write).sum(-1)
            writing[:, c, :size] = into
            grad_log_i[:, c, :size] += into
            dk.addcmul_(dk_write, write)
            if has_state:
                carried = (dC * states_C[c]).sum((1, 2)) + (dn * states_n[c]).sum(1)
                carrying[:, c, 0] = carried * gates.carry[:, c, 0, 0]
                dC.mul_(gates.carry[:, c])
                dn.mul_(gates.carry[:, c, 0])
        if has_state:
            read = gates.read[:, c, :size, None]
            q_read = q_c * read
            dq_read = torch.bmm(dy, states_C[c].mT)
            if options.normalize:
                dq_read.addcmul_(ds[..., None], states_n[c][:, None])
                dn += torch.bmm(ds[:, None], q_read)[:, 0]
            reading[:, c, :size] = (dq_read * q_read).sum(-1)
            dq.addcmul_(dq_read, read)
            dC.baddbmm_(q_read.mT, dy)
            has_carry = True
        grad_q[:, :, start:end] = dq.view(batch, heads, size, key_dim)
        grad_k[:, :, start:end] = dk.view(batch, heads, size, key_dim)
        grad_v[:, :, start:end] = dv.view(batch, heads, size, value_dim)

    grad_i, grad_f = gate_gradients(inputs, resets, options, passing, grad_log_i, reading, writing, carrying)
    return grad_q, grad_k, grad_v, grad_i, grad_f, dC, dn
