"""WKV in PyTorch, piece by piece over time, with its backward written out.

A segment of the sequence is cut into pieces of PIECE_STEPS. All its pieces run their steps at the same time as if
nothing had been before them; what each hands to the next then passes over the pieces in turn, and reaches every step in
one product, since a step's share of what came in is an exponential known in closed form. So the operations that follow
one another number PIECE_STEPS + pieces, not their product. The scale m_t is the running maximum: every exponential is
at most 1. Only the states between segments are kept for the backward, which recomputes those within.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.wkv.reference import NOTHING, Inputs

SEGMENT_ELEMENTS = 2**19
"""Elements of one buffer of a segment (2 MiB in float32): a few of them share the cache."""
PIECE_STEPS = 16


def segment_steps(k: Tensor) -> int:
    """Time steps, whole pieces of them, whose channels of the whole batch make about SEGMENT_ELEMENTS."""
    return max(SEGMENT_ELEMENTS // (k.shape[0] * k.shape[2]) // PIECE_STEPS, 1) * PIECE_STEPS


def num_segments(k: Tensor) -> int:
    """Whole segments; one more for the pieces that are left, and one for the steps that make no piece."""
    rest = k.shape[1] % segment_steps(k)
    return k.shape[1] // segment_steps(k) + (rest >= PIECE_STEPS) + (rest % PIECE_STEPS > 0)


def segments(k: Tensor) -> list[tuple[slice, int]]:
    """Each segment's steps, and the length of its pieces."""
    time, length = k.shape[1], segment_steps(k)
    whole = time - time % PIECE_STEPS
    found = [(slice(begin, min(begin + length, whole)), PIECE_STEPS) for begin in range(0, whole, length)]
    return found if whole == time else [*found, (slice(whole, time), time - whole)]


class Segment(NamedTuple):
    """Everything about the steps of one segment: (step of its piece, piece, batch, channels), two sums a and b."""

    k: Tensor
    v: Tensor
    keep: Tensor  # what a step keeps of the sums before it
    write: Tensor  # the weight with which a step adds its value
    before: Tensor  # (step, 2, piece, batch, channels): the sums before each step
    after: Tensor  # (step, 2, piece, batch, channels)
    scale_before: Tensor
    scale: Tensor  # of `after`
    through: Tensor  # (piece, batch, channels): what a whole piece keeps of the sums before it
    past: Tensor  # weight of the sums before in a step's output
    present: Tensor  # weight of the step's own value
    y: Tensor
    denominator: Tensor


def run_segment(inputs: Inputs, state: Tensor, forget: Tensor | None) -> Segment:
    """One segment from the `state` (3, batch, channels) before it; `k`, `v` and `forget` as `by_piece` cuts them."""
    k, v, decay, bonus = inputs
    steps, pieces = k.shape[:2]
    decays = decay if forget is None else torch.where(forget, NOTHING, decay)
    passed = torch.arange(1, steps + 1, dtype=k.dtype, device=k.device)[:, None, None, None] * decay
    if forget is not None:
        passed = torch.where(forget.cumsum(0) > 0, NOTHING, passed)

    # The running maximum: within each piece, then of what comes into it.
    own = torch.empty_like(k)
    own[0] = k[0]
    each, keys = own.unbind(), k.unbind()
    for t in range(1, steps):
        decay_t = decay if forget is None else decays[t]
        torch.maximum(torch.add(each[t - 1], decay_t, out=each[t]), keys[t], out=each[t])
    incoming = torch.empty_like(own[0])
    incoming[0] = state[2]
    for piece in range(1, pieces):
        reaching = incoming[piece - 1] + passed[-1].expand_as(incoming)[piece - 1]
        torch.maximum(reaching, own[-1, piece - 1], out=incoming[piece])
    scales = k.new_empty(steps + 1, *incoming.shape)
    scales[0] = incoming
    passed = incoming + passed
    torch.maximum(own, passed, out=scales[1:])
    before, after = scales[:-1], scales[1:]
    keep = (before + decays).sub_(after).exp_()
    write = (k - after).exp_()
    passed = passed.sub_(after).exp_()  # a step's share of the sums before its piece

    # The sums, in the same two steps.
    all_sums = k.new_empty(steps + 1, 2, *incoming.shape)
    torch.mul(write, v, out=all_sums[1:, 0])
    all_sums[1:, 1] = write
    inside, factors = all_sums.unbind(), keep.unbind()
    for t in range(1, steps):
        inside[t + 1].addcmul_(factors[t], inside[t])
    handed = inside[0]
    handed[:, 0] = state[:2]
    for piece in range(1, pieces):
        torch.addcmul(inside[-1][:, piece - 1], passed[-1, piece - 1], handed[:, piece - 1], out=handed[:, piece])
    all_sums[1:].addcmul_(passed[:, None], handed)

    now = k + bonus
    reach = before if forget is None else before.masked_fill(forget, NOTHING)
    largest = torch.maximum(reach, now)
    past, present = (reach - largest).exp_(), now.sub_(largest).exp_()
    if forget is not None:
        past.masked_fill_(forget, 0.0)
    denominator = torch.addcmul(present, past, all_sums[:-1, 1])
    y = (present * v).addcmul_(past, all_sums[:-1, 0]).div_(denominator)
    sums_before, sums_after = all_sums[:-1], all_sums[1:]
    return Segment(k, v, keep, write, sums_before, sums_after, before, after, passed[-1], past, present, y, denominator)


def forward(inputs: Inputs, state: Tensor, resets: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Output (batch, time, channels), final state (3, batch, channels), and the states before each segment.

    Arguments as in `kernels.wkv.wkv`; `state`, in whose dtype all is computed, stacks a, b and m.
    """
    k, v, decay, bonus = (x.to(state.dtype) for x in inputs)
    output = torch.empty_like(k, memory_format=torch.contiguous_format)
    starts = k.new_empty(num_segments(k), *state.shape)
    for index, (steps, length) in enumerate(segments(k)):
        starts[index] = state
        forget = None if resets is None else by_piece(resets[..., None], steps, length)
        cut = Inputs(by_piece(k, steps, length), by_piece(v, steps, length), decay, bonus)
        segment = run_segment(cut, state, forget)
        in_order(output, steps, length).copy_(segment.y)
        state = torch.cat((segment.after[-1, :, -1], segment.scale[-1:, -1]))
    return output.to(inputs.v.dtype), state.clone(), starts


def backward(
    grad_output: Tensor, grad_state: Tensor, inputs: Inputs, resets: Tensor | None, starts: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of k, v, decay, bonus and the initial state (3, batch, channels; 0 for the scale).

    With y = num / den and p = dy / den, the gradients of num and den are p and -p y. G_t, the gradient of the sums
    after step t at their scale, follows G_{t-1} = past_t (p_t, -p_t y_t) + keep_t G_t.
    """
    grad_output, k, v, decay, bonus = (x.to(starts.dtype) for x in (grad_output, *inputs))
    grad_k, grad_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (k, v))
    grad_decay, grad_bonus = torch.zeros_like(decay), torch.zeros_like(bonus)
    g = grad_state[:2]
    for (steps, length), start in reversed(list(zip(segments(k), starts.unbind(), strict=True))):
        forget = None if resets is None else by_piece(resets[..., None], steps, length)
        cut = Inputs(by_piece(k, steps, length), by_piece(v, steps, length), decay, bonus)
        s = run_segment(cut, start, forget)
        p = by_piece(grad_output, steps, length).div_(s.denominator)
        grads = _gradients_of_sums(s, p, decay, forget, g)
        g = grads[0, :, 0]

        grad_a, grad_b = grads[1:, 0], grads[1:, 1]
        own = p.mul_(s.present)
        surplus = own * (s.v - s.y)
        in_order(grad_v, steps, length).copy_(torch.addcmul(own, s.write, grad_a))
        written = torch.addcmul(grad_b, grad_a, s.v)
        in_order(grad_k, steps, length).copy_(torch.addcmul(surplus, s.write, written))
        grad_bonus += surplus.sum((0, 1, 2))
        remembered = torch.addcmul(grad_a * s.before[:, 0], grad_b, s.before[:, 1])
        grad_decay += remembered.mul_(s.keep).sum((0, 1, 2))
    of_inputs = (grad_k, grad_v, grad_decay, grad_bonus)
    rounded = (grad.to(x.dtype) for grad, x in zip(of_inputs, inputs, strict=True))
    return *rounded, torch.cat((g, torch.zeros_like(g[:1])))  # type: ignore[return-value]


def _gradients_of_sums(s: Segment, p: Tensor, decay: Tensor, forget: Tensor | None, last: Tensor) -> Tensor:
    """G before each step and after the last, (step + 1, 2, piece, batch, channels), from G after the segment."""
    steps, pieces = p.shape[:2]
    grads = p.new_empty(steps + 1, 2, *p.shape[1:])
    torch.mul(s.past, p, out=grads[:-1, 0])
    torch.mul(grads[:-1, 0], s.y, out=grads[:-1, 1]).neg_()
    each, factors = grads.unbind(), s.keep.unbind()
    for t in range(steps - 2, -1, -1):
        each[t].addcmul_(factors[t], each[t + 1])
    handed = each[-1]
    handed[:, -1] = last
    for piece in range(pieces - 1, 0, -1):
        torch.addcmul(each[0][:, piece], s.through[piece], handed[:, piece], out=handed[:, piece - 1])
    ahead = torch.arange(steps, 0, -1, dtype=p.dtype, device=p.device)[:, None, None, None] * decay
    kept = torch.add(s.scale_before, ahead).sub_(s.scale[-1]).exp_()  # of a step's sums, at the end of its piece
    if forget is not None:
        kept.masked_fill_(forget.flip(0).cumsum(0).flip(0) > 0, 0.0)
    grads[:-1].addcmul_(kept[:, None], handed)
    return grads


def by_piece(tensor: Tensor, steps: slice, length: int) -> Tensor:
    """A segment of (batch, time, channels) as (step of its piece, piece, batch, channels), a contiguous copy."""
    return in_order(tensor, steps, length).clone(memory_format=torch.contiguous_format)


def in_order(tensor: Tensor, steps: slice, length: int) -> Tensor:
    """The same segment as a view of `tensor`."""
    return tensor[:, steps].unflatten(1, (-1, length)).permute(2, 1, 0, 3)
