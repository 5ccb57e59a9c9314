"""The sLSTM as Triton kernels: a head's matrices stay on the chip, its columns spread over many programs.

The mathematics and the saved tensors are those of `torch_scan.py`. A program owns 16 columns of a head, of all four
gates, for 16 sequences: it reads its part of the recurrent matrices once (64 KiB in bfloat16 at head dimension 512),
keeps its cells and normalisers in registers, and at every step reads what the other programs of its head have written
at the step before. So all programs of a launch must run at the same time (a cooperative launch), and meet at a counter
of their head and sequences after every step. Where they cannot, because the chip is too small, a graph is captured, or
programs run one after another in the interpreter, the same kernels are launched once a step. What does not have to wait
for the step before, the gradient of the matrices, is one product afterwards.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disable-error-code=assignment

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.slstm.reference import Saved, SLSTMState
from kernels.slstm.torch_scan import at_unit_scale, shifted

COLUMNS = 16
"""Columns of one program: with its four gates they are the 64 rows that a product of Hopper's warp groups takes."""
SEQUENCES = 16
"""Sequences of one program."""
OPTIONS = {"num_warps": 4, "num_stages": 1}
"""A pipeline would read what other programs write before they have."""
RUN_TIME = ["first", "last", "group", "time", "batch"]
"""Arguments whose values must not compile a kernel anew."""


def shape_obstacle(head_dim: int) -> str | None:
    """Why the kernels refuse these shapes, or None."""
    if head_dim % COLUMNS:
        return f"head_dim {head_dim} is not a multiple of {COLUMNS}"
    return None


def tiling_of(head_dim: int, dtype: torch.dtype) -> dict[str, Any]:
    """How much of the head the products take at a time, and whether the matrices stay on the chip.

    In float32, whose products have no tensor cores, they do not: their operands are registers, and a program's part of
    the matrices would fill all of them.
    """
    resident = dtype.itemsize == 2
    tile = min(head_dim & -head_dim, 128 if resident else 16)
    return {"D": head_dim, "BN": COLUMNS, "BB": SEQUENCES, "BK": tile, "RESIDENT": resident}


def shared_memory(head_dim: int, dtype: torch.dtype) -> int:
    """Bytes that a program takes at most: its part of the matrices, and of what is passed from step to step."""
    tiling = tiling_of(head_dim, dtype)
    kept = 4 * head_dim * COLUMNS if tiling["RESIDENT"] else 4 * tiling["BK"] * COLUMNS
    return dtype.itemsize * (kept + SEQUENCES * max(head_dim, 4 * tiling["BK"]))


def programs_at_once(device: torch.device, head_dim: int, dtype: torch.dtype) -> int:
    """How many programs run at the same time for certain; 0 where they may not wait for one another.

    Two of 128 threads fit a multiprocessor's registers whatever they take of them.
    """
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return 0
    chip = torch.cuda.get_device_properties(device)
    by_memory = chip.shared_memory_per_multiprocessor // (shared_memory(head_dim, dtype) + 1024)
    return chip.multi_processor_count * min(2, by_memory)


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _log_one_plus_exp_of_minus(x):
    """Exact to the last digits also where the exponential is far below one (Higham 2002, section 1.14.1)."""
    small = tl.exp(-x)
    rounded = 1.0 + small
    return tl.where(rounded == 1.0, small, tl.log(rounded) * (small / tl.where(rounded == 1.0, 1.0, rounded - 1.0)))


@triton.jit
def _arrive(counter):
    """All that this program has written is seen by whoever waits for it."""
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="release")


@triton.jit
def _wait(counter, arrivals):
    """Until so many programs have arrived."""
    while tl.atomic_add(counter, 0, sem="acquire") < arrivals:
        pass
    tl.debug_barrier()


@triton.jit
def _columns_of_gates(recurrent, head, heads, e, d, D: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """(4 BN, BK): what channels d, ... of h add to columns e, ... of every gate, gate by gate."""
    row = tl.arange(0, 4 * BN)
    inner = d + tl.arange(0, BK)
    at = recurrent + ((row // BN) * heads + head)[:, None] * D * D + inner[None, :] * D + (e + row % BN)[:, None]
    return tl.load(at)


@triton.jit(do_not_specialize=RUN_TIME)
def forward_kernel(
    gates, recurrent, resets, hs, cs, ls, level, active, passed, counters, first, last, group, time, batch,
    D: tl.constexpr, BN: tl.constexpr, BB: tl.constexpr, BK: tl.constexpr,
    RESIDENT: tl.constexpr, RESETS: tl.constexpr, MEET: tl.constexpr,
):  # fmt: skip
    """Steps `first` to `last`, sequences from that `group` of them on.

    hs, cs (time + 1, heads, batch, D) start with the initial state; active is z, f, w, o, keep. `level` (heads, batch,
    D), float64, is the running l, of which ls (time, heads, batch, D) keeps the rounded value. `passed` (2, heads,
    batch, D) is h in the matrices' dtype, of even and of odd steps; `counters` one for each head and group.
    """
    head = tl.program_id(0).to(tl.int64)
    heads = tl.num_programs(0)
    e = tl.program_id(1) * BN
    columns = (e + tl.arange(0, BN))[:, None]
    b = (group + tl.program_id(2)) * BB + tl.arange(0, BB)
    inside = b < batch
    here = inside[None, :]
    row = head * batch + b
    counter = counters + head * tl.num_programs(2) + tl.program_id(2)
    matrices = ()
    if RESIDENT:
        for d in tl.static_range(0, D, BK):
            matrices += (_columns_of_gates(recurrent, head, heads, e, d, D, BN, BK),)
    running = level + row[None, :] * D + columns
    l = tl.load(running, mask=here, other=0.0)
    c = tl.load(cs + (row + first * (row * 0 + heads * batch))[None, :] * D + columns, mask=here, other=0.0)
    for t in range(first, last):
        before = row + t * (row * 0 + heads * batch)
        at_gate = gates + ((b.to(tl.int64) * time + t) * 4 * heads + head)[None, :] * D + columns
        i = tl.load(at_gate, mask=here, other=0.0).to(tl.float32)
        f = tl.load(at_gate + heads * D, mask=here, other=0.0).to(tl.float32)
        z = tl.load(at_gate + 2 * heads * D, mask=here, other=0.0).to(tl.float32)
        o = tl.load(at_gate + 3 * heads * D, mask=here, other=0.0).to(tl.float32)
        read = inside
        if RESETS:
            read = tl.load(resets + b * time + t, mask=inside, other=1) == 0
            l = tl.where(read[None, :], l, float("-inf"))
            c = tl.where(read[None, :], c, 0.0)
        if MEET:
            if t > first:
                _wait(counter, (t - first) * tl.num_programs(1))
        past = passed + ((t % 2) * heads * batch + row)[None, :] * D
        parts = ()
        for d in tl.static_range(0, D, BK):  # all under way before the first is waited for
            inner = (d + tl.arange(0, BK))[:, None]
            parts += (tl.load(past + inner, mask=read[None, :], other=0.0, cache_modifier=".cg"),)
        pre = tl.zeros((4 * BN, BB), tl.float32)
        for d in tl.static_range(0, D, BK):
            if RESIDENT:
                pre = tl.dot(matrices[d // BK], parts[d // BK], pre, input_precision="ieee")
            else:
                part = _columns_of_gates(recurrent, head, heads, e, d, D, BN, BK)
                pre = tl.dot(part, parts[d // BK], pre, input_precision="ieee")
        i_and_z, f_and_o = tl.split(tl.permute(tl.reshape(pre, (2, 2, BN, BB)), (2, 3, 0, 1)))
        more_i, more_z = tl.split(i_and_z)
        more_f, more_o = tl.split(f_and_o)
        i += more_i
        f += more_f
        z += more_z
        o += more_o
        a = l + (tl.minimum(f, 0.0) - _log_one_plus_exp_of_minus(tl.abs(f)))
        above = (i - a).to(tl.float32)
        w = _sigmoid(above)
        l = tl.maximum(a, i.to(tl.float64)) + _log_one_plus_exp_of_minus(tl.abs(above))
        keep = tl.exp((a - l).to(tl.float32))
        decay = tl.exp(-2.0 * tl.abs(z))
        z = tl.where(z < 0, -1.0, 1.0) * (1.0 - decay) / (1.0 + decay)
        o = _sigmoid(o)
        c += w * (z - c)
        now = passed + (((t + 1) % 2) * heads * batch + row)[None, :] * D + columns
        tl.store(now, (o * c).to(passed.dtype.element_ty), mask=here)
        if MEET:
            if t + 1 < last:
                _arrive(counter)
        tl.store(ls + before[None, :] * D + columns, l.to(tl.float32), mask=here)
        at = (before + heads * batch)[None, :] * D + columns
        tl.store(cs + at, c, mask=here)
        tl.store(hs + at, o * c, mask=here)
        at_active = active + before[None, :] * 5 * D + columns
        tl.store(at_active, z, mask=here)
        tl.store(at_active + D, f, mask=here)
        tl.store(at_active + 2 * D, w, mask=here)
        tl.store(at_active + 3 * D, o, mask=here)
        tl.store(at_active + 4 * D, keep, mask=here)
    tl.store(running, l, mask=here)


@triton.jit
def _rows_of_gates(recurrent, head, heads, e, d, D: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """(4, BN, BK): what pre-activations d, ... of every gate pass back to channels e, ... of h."""
    gate = tl.arange(0, 4)[:, None, None]
    row = (e + tl.arange(0, BN))[None, :, None]
    return tl.load(recurrent + (gate * heads + head) * D * D + row * D + (d + tl.arange(0, BK))[None, None, :])


@triton.jit(do_not_specialize=RUN_TIME)
def backward_kernel(
    grad_h, recurrent, resets, cs, before_cs, active, dpre, dc, dn, first_h, passed, counters, clip,
    first, last, group, time, batch,
    D: tl.constexpr, BN: tl.constexpr, BB: tl.constexpr, BK: tl.constexpr,
    RESIDENT: tl.constexpr, RESETS: tl.constexpr, CLIP: tl.constexpr, MEET: tl.constexpr,
):  # fmt: skip
    """Steps `first` to `last` of time + 1, from the last token on; the one before the first token gives first_h.

    dpre (time, heads, batch, 4, D) is z, f, i, o; dc, dn (heads, batch, D) are the state's gradients. `passed` (2,
    heads, batch, 4, D), in the matrices' dtype, is dpre as i, f, z, o, of even and of odd steps.
    """
    head = tl.program_id(0).to(tl.int64)
    heads = tl.num_programs(0)
    e = tl.program_id(1) * BN
    columns = (e + tl.arange(0, BN))[:, None]
    b = (group + tl.program_id(2)) * BB + tl.arange(0, BB)
    inside = b < batch
    here = inside[None, :]
    row = head * batch + b
    counter = counters + head * tl.num_programs(2) + tl.program_id(2)
    matrices = ()
    if RESIDENT:
        for d in tl.static_range(0, D, BK):
            matrices += (_rows_of_gates(recurrent, head, heads, e, d, D, BN, BK),)
    state = row[None, :] * D + columns
    grad_c = tl.load(dc + state, mask=here, other=0.0)
    grad_n = tl.load(dn + state, mask=here, other=0.0)
    for step in range(first, last):
        t = time - 1 - step
        now = row + t * (row * 0 + heads * batch)
        dh = tl.zeros((BN, BB), tl.float32)
        kept = tl.full((BN, BB), 1.0, tl.float32)
        if step > 0:
            after = now + heads * batch
            read = inside
            if RESETS:  # known when compiling, the other only when running
                read = tl.load(resets + b * time + t + 1, mask=inside, other=1) == 0
            kept = tl.load(active + after[None, :] * 5 * D + 4 * D + columns, mask=read[None, :], other=0.0)
            if MEET:
                if step > first:
                    _wait(counter, (step - first) * tl.num_programs(1))
            future = passed + ((step % 2) * heads * batch + row)[None, None, :] * 4 * D
            future += tl.arange(0, 4)[:, None, None] * D
            by_gate = tl.zeros((4, BN, BB), tl.float32)
            for d in tl.static_range(0, D, BK):
                at = future + (d + tl.arange(0, BK))[None, :, None]
                part = tl.load(at, mask=read[None, None, :], other=0.0, cache_modifier=".cg")
                if RESIDENT:
                    by_gate = tl.dot(matrices[d // BK], part, by_gate, input_precision="ieee")
                else:
                    rows = _rows_of_gates(recurrent, head, heads, e, d, D, BN, BK)
                    by_gate = tl.dot(rows, part, by_gate, input_precision="ieee")
            dh = tl.sum(by_gate, axis=0)
            if CLIP:
                dh = tl.minimum(tl.maximum(dh, -clip), clip)
        if t < 0:
            tl.store(first_h + state, dh, mask=here)
        else:
            at = now[None, :] * D + columns
            dh += tl.load(grad_h + at, mask=here, other=0.0)
            c = tl.load(cs + at, mask=here, other=0.0)
            before = tl.load(before_cs + at, mask=here, other=0.0)
            at_active = active + now[None, :] * 5 * D + columns
            z = tl.load(at_active, mask=here, other=0.0)
            f = tl.load(at_active + D, mask=here, other=0.0)
            w = tl.load(at_active + 2 * D, mask=here, other=0.0)
            o = tl.load(at_active + 3 * D, mask=here, other=0.0)
            keep = tl.load(at_active + 4 * D, mask=here, other=0.0)
            grad_c = grad_c * kept + o * dh
            grad_n = grad_n * kept - o * c * dh
            pre_z = w * (1.0 - z * z) * grad_c
            pre_f = keep * _sigmoid(-f) * (before * grad_c + grad_n)
            pre_i = w * (z * grad_c + grad_n)
            pre_o = c * o * (1.0 - o) * dh
            to = passed + (((step + 1) % 2) * heads * batch + row)[None, :] * 4 * D + columns
            tl.store(to, pre_i.to(passed.dtype.element_ty), mask=here)
            tl.store(to + D, pre_f.to(passed.dtype.element_ty), mask=here)
            tl.store(to + 2 * D, pre_z.to(passed.dtype.element_ty), mask=here)
            tl.store(to + 3 * D, pre_o.to(passed.dtype.element_ty), mask=here)
            if MEET:
                if step + 1 < last:
                    _arrive(counter)
            at_pre = dpre + now[None, :] * 4 * D + columns
            tl.store(at_pre, pre_z, mask=here)
            tl.store(at_pre + D, pre_f, mask=here)
            tl.store(at_pre + 2 * D, pre_i, mask=here)
            tl.store(at_pre + 3 * D, pre_o, mask=here)
    tl.store(dc + state, grad_c, mask=here)
    tl.store(dn + state, grad_n, mask=here)


def forward(gates: Tensor, recurrent: Tensor, state: SLSTMState, resets: Tensor | None) -> Saved:
    """As `torch_scan.forward`."""
    batch, time, _, heads, head_dim = gates.shape
    hs, cs = (gates.new_empty(time + 1, heads, batch, head_dim, dtype=torch.float32) for _ in range(2))
    ls = gates.new_empty(time, heads, batch, head_dim, dtype=torch.float32)
    hs[0], cs[0], _ = at_unit_scale(state, torch.float32)
    level = at_unit_scale(state, torch.float64)[2].contiguous()
    active = gates.new_empty(time, heads, batch, 5, head_dim, dtype=torch.float32)
    passed = gates.new_empty(2, heads, batch, head_dim)
    passed[0] = hs[0]
    tensors = (
        gates.contiguous(), recurrent.to(gates.dtype).contiguous(), gates if resets is None else resets.contiguous(),
        hs, cs, ls, level, active, passed,
    )  # fmt: skip
    _launch(forward_kernel, tensors, time, time, passed, RESETS=resets is not None)
    return Saved(hs[1:], cs[1:], ls, active)


def backward(
    grad_h: Tensor, grads: Tensor, recurrent: Tensor, first_c: Tensor, resets: Tensor | None, saved: Saved, clip: float
) -> tuple[Tensor, Tensor]:
    """As `torch_scan.backward`."""
    hs, cs, _, active = saved
    time, heads, batch, head_dim = hs.shape
    before_cs = shifted(first_c, cs, resets)
    dpre = hs.new_empty(time, heads, batch, 4, head_dim)
    first_h = hs.new_empty(heads, batch, head_dim)
    passed = recurrent.new_empty(2, heads, batch, 4, head_dim)
    tensors = (
        grad_h.contiguous(), recurrent.contiguous(), hs if resets is None else resets.contiguous(),
        cs.contiguous(), before_cs, active, dpre, grads[0], grads[1], first_h, passed,
    )  # fmt: skip
    _launch(backward_kernel, tensors, time + 1, time, passed, clip=clip, RESETS=resets is not None, CLIP=clip > 0)
    return dpre, first_h


def _launch(kernel: Any, tensors: tuple[Tensor, ...], steps: int, time: int, passed: Tensor, **others: Any) -> None:
    """All steps in one launch, for as many sequences as the chip holds at once, or each step in a launch of its own."""
    _, heads, batch, *_, head_dim = passed.shape
    groups, columns = -(-batch // SEQUENCES), head_dim // COLUMNS
    counters = torch.zeros(heads * groups, dtype=torch.int32, device=passed.device)
    options = {"time": time, "batch": batch, **tiling_of(head_dim, passed.dtype), **others, **OPTIONS}
    at_once = programs_at_once(passed.device, head_dim, passed.dtype) // (heads * columns)
    if at_once == 0:
        for step in range(steps):
            span = {"first": step, "last": step + 1, "group": 0, "MEET": False}
            kernel[(heads, columns, groups)](*tensors, counters, **span, **options)
        return
    for group in range(0, groups, at_once):
        grid = (heads, columns, min(at_once, groups - group))
        span = {"first": 0, "last": steps, "group": group, "MEET": True}
        kernel[grid](*tensors, counters.zero_(), **span, **options, launch_cooperative_grid=True)
