"""The mLSTM in chunks as Triton kernels: two levels of tiling, and every inner loop a matrix product.

The mathematics is that of `torch_chunkwise.py`. The outer level are chunks of
L tokens, between which a state passes; the inner level are tiles of BT tokens and of 16 to 64 channels. The quadratic
form of a chunk, S = (Q K^T) * W, is written to memory once: beside heads of 384 to 1280 channels its L columns are
narrow, and every product that follows is then a plain loop over tiles that no other program repeats.

    forward                                        backward
    gates     weights within and between chunks    gates            the same weights
    keys      g k, and n before each chunk         scores_backward  S, dP = dS * W, dh / den, sums for the gates
    states    C before each chunk                  queries          a q / den, and dn after each chunk
    scores    S, s                                 states_backward  dC after each chunk
    outputs   h = (a q C + S V) / den              inputs_backward  dq, dk, dv: state part, then dP or S part
                                                   gates_backward   di, df from the sums

They stand in `triton_gates`, `triton_operands`, `triton_states`, `triton_outputs` and `triton_gradients`; here is
what launches them. Lengths and batch are run-time arguments: only dtypes, head dimensions and tile sizes compile
anew, and strides that are no multiples of 16. The gradients of q, k and v lie as these do, so that no copy by head
stands between them and tokens.
"""

from typing import Any

import torch
from torch import Tensor

from kernels.cpu import empty_rows_like
from kernels.mlstm import torch_chunkwise
from kernels.mlstm.reference import Inputs, MLSTMState, Options, Saved, Upstream
from kernels.mlstm.triton_gates import chunk_gates, gate_gradients
from kernels.mlstm.triton_gradients import inputs_backward_kernel, scores_backward_kernel
from kernels.mlstm.triton_operands import keys_kernel, queries_kernel
from kernels.mlstm.triton_outputs import outputs_kernel, scores_kernel
from kernels.mlstm.triton_states import states_backward_kernel, states_kernel
from kernels.mlstm.triton_tiles import tiling_of
from kernels.strides import dense_rows

LONG_HEADS = 768
"""Key and value dimension, on average, from which chunks are twice as long: states are then read and written half as
often, which saves more time than the longer quadratic form costs, and half of what is saved of them is."""


def default_chunk_size(time: int, key_dim: int, value_dim: int) -> int:
    """As `torch_chunkwise`'s, twice as long for long heads."""
    longer = 2 if key_dim + value_dim >= 2 * LONG_HEADS else 1
    balanced = longer * torch_chunkwise.default_chunk_size(2**30, key_dim, value_dim)
    return min(balanced, -(-time // 16) * 16)


def shape_obstacle(key_dim: int, value_dim: int, chunk: int | None) -> str | None:
    """Why the kernels refuse these shapes, or None."""
    for name, size in (("key_dim", key_dim), ("value_dim", value_dim), ("chunk_size", chunk)):
        if size is not None and size % 16:
            return f"{name} {size} is not a multiple of 16"
    return None


def _strides(*tensors: Tensor) -> list[int]:
    return [x.stride(axis) for x in tensors for axis in range(3)]


def _of(tiling: dict[str, int], names: str) -> dict[str, int]:
    """The sizes that a kernel takes."""
    return {name: tiling[name] for name in names.split()}


def forward(
    inputs: Inputs, state: MLSTMState | None, resets: Tensor | None, options: Options, save_states: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `torch_chunkwise.forward`; the saved states C are in v's dtype."""
    q, k, v = (dense_rows(x) for x in inputs[:3])
    chunk, normalize = options.chunk, options.normalize
    batch, heads, time, key_dim = q.shape
    value_dim, rows, chunks = v.shape[-1], batch * heads, -(-time // chunk)
    gates = chunk_gates(inputs, None if state is None else state.m, resets, options)
    tiling = tiling_of(key_dim, value_dim, chunk, v.dtype)
    lengths = (time, chunks, heads)
    single: dict[str, Any] = {"dtype": torch.float32}
    states_C, states_n = v.new_empty(chunks, rows, key_dim, value_dim), v.new_empty(chunks, rows, key_dim, **single)
    final_C, final_n = v.new_empty(rows, key_dim, value_dim, **single), v.new_empty(rows, key_dim, **single)
    written = k.new_empty(rows, chunks, chunk, key_dim)
    keys_kernel[(key_dim // tiling["SK"], rows)](
        k, gates.write, gates.carry, final_n if state is None else state.n.float().contiguous(),
        written, states_n, final_n, *_strides(k), *lengths, **_of(tiling, "L ST DK SK"), HAS_INITIAL=state is not None,
    )  # fmt: skip
    states_kernel[(key_dim // tiling["BK"], value_dim // tiling["BV"], rows)](
        written, v, gates.carry, final_C if state is None else state.C.float().contiguous(), states_C, final_C,
        *_strides(v), *lengths, **_of(tiling, "L ST DK DV BK BV"), HAS_INITIAL=state is not None,
    )  # fmt: skip
    scores = v.new_empty(rows, chunks, chunk, chunk)
    s = v.new_empty(rows, time if normalize else 0, **single)
    scores_kernel[(chunks * (chunk // tiling["ST"]), rows)](
        q, k, gates.row, gates.row_fine, gates.column, gates.column_fine, gates.segment, gates.read, states_n,
        scores, s,
        *_strides(q, k), *lengths, **_of(tiling, "L ST BT DK SK"), RESETS=resets is not None, NORMALIZE=normalize,
    )  # fmt: skip
    h = torch.empty_like(v, memory_format=torch.contiguous_format)
    outputs_kernel[(value_dim // tiling["BV"], chunks * (chunk // tiling["BT"]), rows)](
        q, v, scores, gates.read, s, gates.floor, states_C, h, *_strides(q, v), options.eps, *lengths,
        **_of(tiling, "L BT ST DK SK DV BV"), NORMALIZE=normalize,
    )  # fmt: skip
    return h, final_C, final_n, gates.m, states_C, states_n, s


def backward(
    upstream: Upstream, inputs: Inputs, m: Tensor | None, resets: Tensor | None, saved: Saved, options: Options
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `torch_chunkwise.backward`; the gradients of q, k and v lie as these do."""
    q, k, v, grad_h = (dense_rows(x) for x in (*inputs[:3], upstream.h))
    h, states_C, states_n, s = saved.h.contiguous(), *saved[1:]
    chunk, normalize = options.chunk, options.normalize
    batch, heads, time, key_dim = q.shape
    value_dim, rows, chunks = v.shape[-1], batch * heads, -(-time // chunk)
    gates = chunk_gates(inputs, m, resets, options)
    tiling = tiling_of(key_dim, value_dim, chunk, v.dtype)
    BT, BK, BV = (tiling[name] for name in ("BT", "BK", "BV"))
    steps, lengths = chunk // tiling["ST"], (time, chunks, heads)
    single: dict[str, Any] = {"dtype": torch.float32}

    scores, d_products = (v.new_empty(rows, chunks, chunk, chunk) for _ in range(2))
    outer, through_n, row_sums, diagonal = (torch.empty_like(gates.read) for _ in range(4))
    column_sums = v.new_empty(rows, chunks, steps, chunk, **single)
    grad_y = v.new_empty(rows, chunks, chunk, value_dim) if normalize else grad_h
    scores_backward_kernel[(chunks * steps, rows)](
        q, k, v, h, grad_h, gates.row, gates.row_fine, gates.column, gates.column_fine, gates.segment,
        gates.read, s, gates.floor, scores, d_products, grad_y, outer, through_n, row_sums, column_sums, diagonal,
        *_strides(q, k, v, grad_h), options.eps, *lengths, **_of(tiling, "L ST BT DK DV SK SV"),
        RESETS=resets is not None, NORMALIZE=normalize,
    )  # fmt: skip

    first_C, first_n = v.new_empty(rows, key_dim, value_dim, **single), v.new_empty(rows, key_dim, **single)
    grads_C, grads_n = torch.empty_like(states_C), torch.empty_like(states_n)
    reading = q.new_empty(rows, chunks, chunk, key_dim)
    carried_n = v.new_empty(rows, chunks, key_dim // tiling["SK"], **single)
    queries_kernel[(key_dim // tiling["SK"], rows)](
        q, outer, through_n, gates.carry, states_n, first_n if upstream.n is None else upstream.n.float().contiguous(),
        reading, grads_n, first_n, carried_n, *_strides(q), *lengths, **_of(tiling, "L ST DK SK"),
        HAS_GRAD=upstream.n is not None,
    )  # fmt: skip
    carried_C = v.new_empty(rows, chunks, (key_dim // BK) * (value_dim // BV), **single)
    states_backward_kernel[(key_dim // BK, value_dim // BV, rows)](
        reading, grad_h, gates.carry, first_C if upstream.C is None else upstream.C.float().contiguous(), states_C,
        grads_C, first_C, carried_C, *_strides(grad_h), *lengths, **_of(tiling, "L ST DK DV BK BV"),
        HAS_GRAD=upstream.C is not None,
    )  # fmt: skip

    grad_q, grad_k, grad_v = (empty_rows_like(x) for x in inputs[:3])
    shared = _of(tiling, "L BT ST")
    by_key = {"DX": value_dim, "DO": key_dim, "SX": tiling["SV"], "BO": BK, "TRANSPOSED_STATE": True, "HAS_DOTS": True}
    dots_q, dots_k = (v.new_empty(rows, chunks, chunk, key_dim // BK, **single) for _ in range(2))
    key_grid, value_grid = ((size, chunks * (chunk // BT), rows) for size in (key_dim // BK, value_dim // BV))
    inputs_backward_kernel[key_grid](
        grad_h, states_C, k, d_products, outer, states_n, through_n, q, grad_q, dots_q,
        *_strides(grad_h, k, q, grad_q), *lengths, **shared, **by_key, LATER=False, HAS_VECTOR=normalize,
    )  # fmt: skip
    inputs_backward_kernel[key_grid](
        v, grads_C, q, d_products, gates.write, grads_n, gates.write, k, grad_k, dots_k,
        *_strides(v, q, k, grad_k), *lengths, **shared, **by_key, LATER=True, HAS_VECTOR=True,
    )  # fmt: skip
    by_token = (chunks * chunk * value_dim * heads, chunks * chunk * value_dim, value_dim)
    inputs_backward_kernel[value_grid](
        k, grads_C, grad_y, scores, gates.write, outer, outer, v, grad_v, outer,
        *_strides(k), *(by_token if normalize else _strides(grad_h)), *_strides(v, grad_v), *lengths, **shared,
        DX=key_dim, DO=value_dim, SX=tiling["SK"], BO=BV, TRANSPOSED_STATE=False, HAS_DOTS=False, LATER=True,
        HAS_VECTOR=False,
    )  # fmt: skip

    grad_i, grad_f = gate_gradients(
        inputs, resets, options, (row_sums, column_sums, diagonal), (dots_q, dots_k), (carried_C, carried_n),
        tiling["ST"],
    )  # fmt: skip
    return grad_q, grad_k, grad_v, grad_i, grad_f, first_C, first_n
