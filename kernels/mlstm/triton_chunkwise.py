"""The mLSTM in chunks as Triton kernels: two levels of tiling, and every inner loop a matrix product.

The mathematics is that of `torch_chunkwise.py`, whose gate weights are used as they are. The outer level are chunks of
L tokens, between which a state passes; the inner level are tiles of BT tokens and of 16 to 64 channels. The quadratic
form of a chunk, S = (Q K^T) * W, is written to memory once: beside heads of 384 to 1280 channels its L columns are
narrow, and every product that follows is then a plain loop over tiles that no other program repeats.

    forward                                        backward
    states    C, n before each chunk               scores_backward  S, dP = dS * W, sums for the gates
    scores    S, s                                 states_backward  dC, dn after each chunk
    outputs   h = (a q C + S V) / den              inputs_backward  dq, dk, dv: state part, then dP or S part

They stand in `triton_states`, `triton_outputs` and `triton_gradients`; here is what launches them. Lengths, batch and
strides are run-time arguments: only dtypes, head dimensions and tile sizes compile anew.
"""

from typing import Any

import torch
from torch import Tensor

from kernels.mlstm.reference import Inputs, MLSTMState, Options, Saved
from kernels.mlstm.torch_chunkwise import ChunkGates, chunk_gates, gate_gradients
from kernels.mlstm.triton_gradients import inputs_backward_kernel, scores_backward_kernel
from kernels.mlstm.triton_outputs import outputs_kernel, scores_kernel
from kernels.mlstm.triton_states import states_backward_kernel, states_kernel
from kernels.mlstm.triton_tiles import tiling_of


def shape_obstacle(key_dim: int, value_dim: int, chunk: int) -> str | None:
    """Why the kernels refuse these shapes, or None."""
    for name, size in (("key_dim", key_dim), ("value_dim", value_dim), ("chunk_size", chunk)):
        if size % 16:
            return f"{name} {size} is not a multiple of 16"
    return None


def _dense_rows(x: Tensor) -> Tensor:
    """A tensor whose last axis is contiguous: what the kernels need of strides."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _strides(*tensors: Tensor) -> list[int]:
    return [x.stride(axis) for x in tensors for axis in range(3)]


def _inverse(s: Tensor, gates: ChunkGates, options: Options) -> Tensor:
    """1 / den per chunk position, (batch * heads, chunks, L)."""
    if not options.normalize:
        return torch.ones_like(gates.floor)
    rows, chunks, chunk = gates.floor.shape
    s = torch.nn.functional.pad(s, (0, chunks * chunk - s.shape[-1])).view(rows, chunks, chunk)
    return 1.0 / (torch.maximum(s.abs(), gates.floor) + options.eps)


def _segments(gates: ChunkGates) -> Tensor:
    return gates.floor if gates.segment is None else gates.segment.to(torch.int32).contiguous()


def forward(
    inputs: Inputs, state: MLSTMState | None, resets: Tensor | None, options: Options, save_states: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `torch_chunkwise.forward`; the saved states C are in v's dtype."""
    q, k, v = (_dense_rows(x) for x in inputs[:3])
    chunk, normalize = options.chunk, options.normalize
    batch, heads, time, key_dim = q.shape
    value_dim, rows, chunks = v.shape[-1], batch * heads, -(-time // chunk)
    gates = chunk_gates(inputs, None if state is None else state.m, resets, options)
    read = gates.read * gates.row_fine
    tiling = tiling_of(key_dim, value_dim, chunk)
    single: dict[str, Any] = {"dtype": torch.float32}
    states_C = v.new_empty(chunks, rows, key_dim, value_dim)
    states_n = v.new_empty(chunks + 1, rows, key_dim, **single)
    final_C = v.new_zeros(rows, key_dim, value_dim, **single)
    initial_n = v.new_zeros(rows, key_dim, **single)
    if state is not None:
        final_C.copy_(state.C.reshape(final_C.shape))
        initial_n.copy_(state.n.reshape(initial_n.shape))
    states_kernel[(rows, key_dim // tiling["BK"], value_dim // tiling["BV"])](
        k, v, gates.write, gates.carry, states_C, states_n, final_C, initial_n, *_strides(k, v),
        time, chunks, heads, **tiling,
    )  # fmt: skip
    blocks = chunks * (chunk // tiling["BT"])
    scores = v.new_empty(rows, chunks, chunk, chunk)
    s = v.new_empty(rows, time if normalize else 0, **single)
    scores_kernel[(blocks, rows)](
        q, k, gates.row, gates.row_fine, gates.column, gates.column_fine, _segments(gates), read, states_n, scores, s,
        *_strides(q, k), time, chunks, heads,
        **{name: tiling[name] for name in ("L", "BT", "DK", "BK")},
        RESETS=resets is not None, NORMALIZE=normalize,
    )  # fmt: skip
    h = torch.empty_like(v, memory_format=torch.contiguous_format)
    outputs_kernel[(value_dim // tiling["BV"], blocks, rows)](
        q, v, scores, read, _inverse(s, gates, options), states_C, h, *_strides(q, v),
        time, chunks, heads, **tiling,
    )  # fmt: skip
    return (
        h,
        final_C.view(batch, heads, key_dim, value_dim),
        states_n[-1].clone().view(batch, heads, key_dim),
        gates.m[:, -1].clone().view(batch, heads),
        states_C if save_states else states_C.new_empty(0, *states_C.shape[1:]),
        states_n[:-1].clone() if save_states else states_n.new_empty(0, *states_n.shape[1:]),
        s,
    )


def backward(
    grad_h: Tensor,
    grad_C: Tensor | None,
    grad_n: Tensor | None,
    inputs: Inputs,
    m: Tensor | None,
    resets: Tensor | None,
    saved: Saved,
    options: Options,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `torch_chunkwise.backward`."""
    q, k, v, grad_h = (_dense_rows(x) for x in (*inputs[:3], grad_h))
    h, states_C, states_n, s = saved.h.contiguous(), *saved[1:]
    chunk, normalize = options.chunk, options.normalize
    batch, heads, time, key_dim = q.shape
    value_dim, rows, chunks = v.shape[-1], batch * heads, -(-time // chunk)
    gates = chunk_gates(inputs, m, resets, options)
    read = gates.read * gates.row_fine
    inverse = _inverse(s, gates, options)
    sign = torch.zeros_like(inverse)
    if normalize:
        padded = torch.nn.functional.pad(s, (0, chunks * chunk - time)).view(inverse.shape)
        sign = torch.where(padded.abs() > gates.floor, padded.sign(), 0.0)
    tiling = tiling_of(key_dim, value_dim, chunk)
    tiles = chunk // tiling["BT"]
    single: dict[str, Any] = {"dtype": torch.float32}

    scores, d_products = (v.new_empty(rows, chunks, chunk, chunk) for _ in range(2))
    ds, row_sums, diagonal = (torch.empty_like(inverse) for _ in range(3))
    column_sums = v.new_zeros(rows, chunks, tiles, chunk, **single)
    scores_backward_kernel[(chunks * tiles, rows)](
        q, k, v, h, grad_h, gates.row, gates.row_fine, gates.column, gates.column_fine, _segments(gates),
        inverse, sign, scores, d_products, ds, row_sums, column_sums, diagonal,
        *_strides(q, k, v, grad_h), time, chunks, heads, **tiling, RESETS=resets is not None, NORMALIZE=normalize,
    )  # fmt: skip

    grads_C = torch.empty_like(states_C)
    grads_n = v.new_empty(chunks + 1, rows, key_dim, **single)  # first the initial state's, then after each chunk
    dC = v.new_zeros(rows, key_dim, value_dim, **single)
    dn = v.new_zeros(rows, key_dim, **single)
    if grad_C is not None:
        dC.copy_(grad_C.reshape(dC.shape))
    if grad_n is not None:
        dn.copy_(grad_n.reshape(dn.shape))
    grid = (rows, key_dim // tiling["BK"], value_dim // tiling["BV"])
    carried = v.new_empty(rows, chunks, grid[1] * grid[2], **single)
    states_backward_kernel[grid](
        q, grad_h, read, inverse, ds, gates.carry, states_C, states_n, grads_C, grads_n, dC, dn, carried,
        *_strides(q, grad_h), time, chunks, heads, **tiling,
    )  # fmt: skip

    grad_q, grad_k, grad_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    ones = torch.ones_like(inverse)
    BK, BV = tiling["BK"], tiling["BV"]
    shared = {"L": chunk, "BT": tiling["BT"]}
    by_key = {"DX": value_dim, "DO": key_dim, "BX": BV, "BO": BK, "TRANSPOSED_STATE": True, "HAS_DOTS": True}
    reading = v.new_empty(rows, chunks, chunk, key_dim // BK, **single)
    writing = torch.empty_like(reading)
    key_grid, value_grid = ((size, chunks * tiles, rows) for size in (key_dim // BK, value_dim // BV))
    inputs_backward_kernel[key_grid](
        grad_h, states_C, k, d_products, read * inverse, states_n, read * ds, ones, q, grad_q, reading,
        *_strides(grad_h, k, q), time, chunks, heads, **shared, **by_key, LATER=False, HAS_VECTOR=normalize,
    )  # fmt: skip
    inputs_backward_kernel[key_grid](
        v, grads_C, q, d_products, gates.write, grads_n[1:], gates.write, ones, k, grad_k, writing,
        *_strides(v, q, k), time, chunks, heads, **shared, **by_key, LATER=True, HAS_VECTOR=True,
    )  # fmt: skip
    inputs_backward_kernel[value_grid](
        k, grads_C, grad_h, scores, gates.write, ones, ones, inverse, v, grad_v, ones,
        *_strides(k, grad_h, v), time, chunks, heads, **shared,
        DX=key_dim, DO=value_dim, BX=BK, BO=BV, TRANSPOSED_STATE=False, HAS_DOTS=False, LATER=True, HAS_VECTOR=False,
    )  # fmt: skip

    columns, written = column_sums.sum(2), writing.sum(-1)
    grad_i, grad_f = gate_gradients(
        inputs, resets, options, row_sums - columns, columns + diagonal + written,
        reading.sum(-1), written, carried.sum(-1, keepdim=True),
    )  # fmt: skip
    initial = (dC.view(batch, heads, key_dim, value_dim), grads_n[0].clone().view(batch, heads, key_dim))
    return grad_q, grad_k, grad_v, grad_i, grad_f, *initial
