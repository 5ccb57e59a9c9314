"""Head-wise norm, skip and gate as Triton kernels: one pass over each tensor, forward and backward.

A program takes some tokens of one head, all of its channels. In the backward it walks over a stretch of tokens, so that
the gradients of weight and skip are summed in registers and leave few partial sums, added in a fixed order.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gated_head_norm.reference import Inputs
from kernels.rms_norm.triton_norm import ROWS_PER_SUM, tiling_of
from kernels.strides import by_row, dense_rows

RUN_TIME = ["time", "rows", "eps"]
"""Arguments whose values must not compile a kernel anew."""
LARGEST_HEAD = 4096


def shape_obstacle(head_dim: int) -> str | None:
    """Why the kernels refuse these shapes, or None."""
    if head_dim > LARGEST_HEAD:
        return f"heads of {head_dim} channels are larger than {LARGEST_HEAD}"
    return None


@triton.jit
def _places(r, time, of_sequence, of_token, head):
    """Where rows begin; divided in 32 bits, since a division of 64 is a call, with a stack."""
    return (r // time).to(tl.int64) * of_sequence + (r % time).to(tl.int64) * of_token + head


@triton.jit
def _normed(h, at, inside, eps, D: tl.constexpr):
    value = tl.load(h + at, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(value, 1) / D
    centred = tl.where(inside, value - mean[:, None], 0.0)
    deviation = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / D + eps)
    return centred * deviation[:, None], deviation


@triton.jit(do_not_specialize=RUN_TIME)
def forward_kernel(
    h, weight, gate, skipped, skip, y, h_b, h_t, h_h, gate_r, skipped_r, time, rows, eps,
    D: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr, SKIP: tl.constexpr,
):  # fmt: skip
    """y (rows, heads * D); rows are batch and time, h has strides of its own."""
    head, heads = tl.program_id(1), tl.num_programs(1)
    r = tl.program_id(0) * BT + tl.arange(0, BT)
    d = tl.arange(0, BD)
    c = head * D + d
    inside = (r < rows)[:, None] & (d < D)[None, :]
    at = _places(r, time, h_b, h_t, head * h_h)[:, None] + d[None, :]
    r = r.to(tl.int64)
    normed, _ = _normed(h, at, inside, eps, D)
    inner = normed * tl.load(weight + c, mask=d < D, other=0.0).to(tl.float32)[None, :]
    if SKIP:
        seen = tl.load(skipped + r[:, None] * skipped_r + c[None, :], mask=inside, other=0.0).to(tl.float32)
        inner += seen * tl.load(skip + c, mask=d < D, other=0.0).to(tl.float32)[None, :]
    z = tl.load(gate + r[:, None] * gate_r + c[None, :], mask=inside, other=0.0).to(tl.float32)
    value = inner * z / (1.0 + tl.exp(-z))
    tl.store(y + r[:, None] * heads * D + c[None, :], value.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=RUN_TIME)
def backward_kernel(
    grad_y, h, weight, gate, skipped, skip, grad_h, grad_gate, grad_skipped, parts,
    grad_r, h_b, h_t, h_h, gate_r, skipped_r, time, rows, eps,
    D: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr, SKIP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Gradients (rows, heads * D), and parts (stretches, 2, heads * D) of those of weight and skip."""
    head, heads = tl.program_id(1), tl.num_programs(1)
    d = tl.arange(0, BD)
    c = head * D + d
    w = tl.load(weight + c, mask=d < D, other=0.0).to(tl.float32)[None, :]
    sum_weight = tl.zeros((BD,), tl.float32)
    sum_skip = tl.zeros((BD,), tl.float32)
    for start in range(0, tl.minimum(ROWS, rows - tl.program_id(0) * ROWS), BT):
        r = tl.program_id(0) * ROWS + start + tl.arange(0, BT)
        inside = (r < rows)[:, None] & (d < D)[None, :]
        at = _places(r, time, h_b, h_t, head * h_h)[:, None] + d[None, :]
        r = r.to(tl.int64)
        normed, deviation = _normed(h, at, inside, eps, D)
        out = r[:, None] * heads * D + c[None, :]
        g = tl.load(grad_y + r[:, None] * grad_r + c[None, :], mask=inside, other=0.0).to(tl.float32)
        z = tl.load(gate + r[:, None] * gate_r + c[None, :], mask=inside, other=0.0).to(tl.float32)
        s = 1.0 / (1.0 + tl.exp(-z))
        grad_inner = g * z * s
        inner = normed * w
        if SKIP:
            seen = tl.load(skipped + r[:, None] * skipped_r + c[None, :], mask=inside, other=0.0).to(tl.float32)
            k = tl.load(skip + c, mask=d < D, other=0.0).to(tl.float32)[None, :]
            inner += seen * k
            sum_skip += tl.sum(grad_inner * seen, 0)
            tl.store(grad_skipped + out, (grad_inner * k).to(grad_skipped.dtype.element_ty), mask=inside)
        grad_z = g * inner * s * (1.0 + z * (1.0 - s))
        tl.store(grad_gate + out, grad_z.to(grad_gate.dtype.element_ty), mask=inside)
        sum_weight += tl.sum(grad_inner * normed, 0)
        through = tl.where(inside, grad_inner * w, 0.0)
        mean = tl.sum(through, 1) / D
        along = tl.sum(through * normed, 1) / D
        value = (through - mean[:, None] - normed * along[:, None]) * deviation[:, None]
        tl.store(grad_h + out, value.to(grad_h.dtype.element_ty), mask=inside)
    at_part = parts + tl.program_id(0) * 2 * heads * D + c
    tl.store(at_part, sum_weight, mask=d < D)
    tl.store(at_part + heads * D, sum_skip, mask=d < D)


def forward(inputs: Inputs, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """As `torch_fused.forward`; nothing is kept for the backward."""
    h, weight, gate, skipped, skip = inputs
    h = dense_rows(h)
    heads, gates = h.shape[2], by_row(gate)
    seen = gates if skipped is None else by_row(skipped)
    tiling = tiling_of(h.shape[-1])
    y = gate.new_empty(gate.shape)
    forward_kernel[(triton.cdiv(gates.shape[0], tiling["BT"]), heads)](
        h, weight.contiguous(), gates, seen, weight if skip is None else skip.contiguous(), y,
        *h.stride()[:3], gates.stride(0), seen.stride(0),
        h.shape[1], gates.shape[0], eps, SKIP=skip is not None, **tiling,
    )  # fmt: skip
    return y, h.new_empty(0), h.new_empty(0)


def backward(
    grad_y: Tensor, inputs: Inputs, mean: Tensor, deviation: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `torch_fused.backward`, from the inputs alone."""
    h, weight, gate, skipped, skip = inputs
    h = dense_rows(h)
    heads, gates, grads = h.shape[2], by_row(gate), by_row(grad_y)
    seen = gates if skipped is None else by_row(skipped)
    grad_h, grad_gate = h.new_empty(h.shape), gate.new_empty(gate.shape)
    grad_skipped = h.new_empty(0) if skipped is None else skipped.new_empty(skipped.shape)
    stretches = triton.cdiv(gates.shape[0], ROWS_PER_SUM)
    parts = h.new_empty(stretches, 2, weight.shape[0], dtype=torch.float32)
    backward_kernel[(stretches, heads)](
        grads, h, weight.contiguous(), gates, seen, weight if skip is None else skip.contiguous(),
        grad_h, grad_gate, grad_skipped, parts,
        grads.stride(0), *h.stride()[:3], gates.stride(0), seen.stride(0), h.shape[1], gates.shape[0], eps,
        SKIP=skip is not None, ROWS=ROWS_PER_SUM, **tiling_of(h.shape[-1]),
    )  # fmt: skip
    grad_skip = h.new_empty(0) if skip is None else parts[:, 1].sum(0).to(skip.dtype)
    return grad_h, parts[:, 0].sum(0).to(weight.dtype), grad_gate, grad_skipped, grad_skip
