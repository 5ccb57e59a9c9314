"""WKV in PyTorch, chunk by chunk over time, with its backward written out.

Only the states between chunks are kept for the backward, which recomputes those within. The scale m_t is the running
maximum, so every exponential is at most 1; given it, both sums follow one linear recurrence, one fused multiply-add per
step, and all else is done for the whole chunk at once.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.wkv.reference import NOTHING

CHUNK_ELEMENTS = 2**16
"""Elements of one buffer of a chunk (256 KiB in float32): a few of them share the cache."""


def steps_per_chunk(k: Tensor) -> int:
    """Time steps whose channels of the whole batch make about CHUNK_ELEMENTS."""
    return min(max(CHUNK_ELEMENTS // (k.shape[0] * k.shape[2]), 16), k.shape[1])


class Chunk(NamedTuple):
    """Everything about the steps of one chunk; all (step, batch, channels) but for the two sums."""

    k: Tensor
    v: Tensor
    keep: Tensor  # what a step keeps of the sums before it
    write: Tensor  # the weight with which a step adds its value
    before: Tensor  # (step, 2, batch, channels): the sums a and b before each step
    after: Tensor  # (step, 2, batch, channels)
    scale: Tensor  # the scale of `after`
    past: Tensor  # weight of the sums before in a step's output
    present: Tensor  # weight of the step's own value
    y: Tensor
    denominator: Tensor


def run_chunk(
    k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor, sums: Tensor, scale: Tensor, resets: Tensor | None
) -> Chunk:
    """One chunk from the `sums` (2, batch, channels) and `scale` before it; `k`, `v` (batch, step, channels)."""
    k, v = k.transpose(0, 1).contiguous(), v.transpose(0, 1).contiguous()
    steps = k.shape[0]
    forget = None if resets is None else resets.t()[:, :, None]  # (step, batch, 1)
    scales = k.new_empty(steps + 1, *scale.shape)
    scales[0] = scale
    decays = decay if forget is None else torch.where(forget, NOTHING, decay)
    decay_at = [decay] * steps if forget is None else decays.unbind()
    for before, after, k_t, decay_t in zip(
        scales[:-1].unbind(), scales[1:].unbind(), k.unbind(), decay_at, strict=True
    ):
        torch.maximum(torch.add(before, decay_t, out=after), k_t, out=after)
    before, after = scales[:-1], scales[1:]
    keep = (before + decays).sub_(after).exp_()
    write = (k - after).exp_()

    all_sums = k.new_empty(steps + 1, *sums.shape)
    all_sums[0] = sums
    torch.mul(write, v, out=all_sums[1:, 0])
    all_sums[1:, 1] = write
    for earlier, later, factor in zip(all_sums[:-1].unbind(), all_sums[1:].unbind(), keep.unbind(), strict=True):
        later.addcmul_(factor, earlier)

    now = k + bonus
    reach = before if forget is None else before.masked_fill(forget, NOTHING)
    largest = torch.maximum(reach, now)
    past, present = (reach - largest).exp_(), now.sub_(largest).exp_()
    if forget is not None:
        past.masked_fill_(forget, 0.0)
    denominator = torch.addcmul(present, past, all_sums[:-1, 1])
    y = (present * v).addcmul_(past, all_sums[:-1, 0]).div_(denominator)
    return Chunk(k, v, keep, write, all_sums[:-1], all_sums[1:], after, past, present, y, denominator)


def forward(
    k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor, state: Tensor, resets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Output (batch, time, channels), final state (3, batch, channels), and the states before each chunk.

    Arguments as in `kernels.wkv.wkv`, in the dtype of `state`, which stacks a, b and m.
    """
    length = steps_per_chunk(k)
    output = torch.empty_like(k)
    starts = k.new_empty(-(-k.shape[1] // length), *state.shape)
    for index, begin in enumerate(range(0, k.shape[1], length)):
        steps = slice(begin, begin + length)
        starts[index] = state
        part = None if resets is None else resets[:, steps]
        chunk = run_chunk(k[:, steps], v[:, steps], decay, bonus, state[:2], state[2], part)
        output[:, steps] = chunk.y.transpose(0, 1)
        state = torch.cat((chunk.after[-1], chunk.scale[-1:]))
    return output, state.clone(), starts


def backward(
    grad_output: Tensor,
    grad_state: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    bonus: Tensor,
    resets: Tensor | None,
    starts: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of k, v, decay, bonus and the initial state (3, batch, channels; 0 for the scale).

    With y = num / den and p = dy / den, the gradients of num and den are p and -p y. G_t, the gradient of the sums
    after step t at their scale, follows G_{t-1} = past_t (p_t, -p_t y_t) + keep_t G_t.
    """
    length = steps_per_chunk(k)
    grad_k, grad_v = torch.empty_like(k), torch.empty_like(v)
    grad_decay, grad_bonus = torch.zeros_like(decay), torch.zeros_like(bonus)
    g = grad_state[:2]
    for index in reversed(range(starts.shape[0])):
        steps = slice(index * length, (index + 1) * length)
        part = None if resets is None else resets[:, steps]
        c = run_chunk(k[:, steps], v[:, steps], decay, bonus, starts[index, :2], starts[index, 2], part)
        p = grad_output[:, steps].transpose(0, 1) / c.denominator
        grads = k.new_empty(len(p) + 1, *g.shape)  # of the sums before each step, and after the last
        torch.mul(c.past, p, out=grads[:-1, 0])
        torch.mul(grads[:-1, 0], c.y, out=grads[:-1, 1]).neg_()
        grads[-1] = g
        each, factors = grads.unbind(), c.keep.unbind()
        for t in range(len(p) - 1, -1, -1):
            each[t].addcmul_(factors[t], each[t + 1])
        g = each[0]

        grad_a, grad_b = grads[1:, 0], grads[1:, 1]
        own = p.mul_(c.present)
        surplus = own * (c.v - c.y)
        grad_v[:, steps] = torch.addcmul(own, c.write, grad_a).transpose(0, 1)
        written = torch.addcmul(grad_b, grad_a, c.v)
        grad_k[:, steps] = torch.addcmul(surplus, c.write, written).transpose(0, 1)
        grad_bonus += surplus.sum((0, 1))
        remembered = torch.addcmul(grad_a * c.before[:, 0], grad_b, c.before[:, 1])
        grad_decay += remembered.mul_(c.keep).sum((0, 1))
    return grad_k, grad_v, grad_decay, grad_bonus, torch.cat((g, torch.zeros_like(g[:1])))
