"""The selective scan in PyTorch, chunk by chunk over time, with its backward written out.

Only the states between chunks are kept for the backward, which recomputes those within: memory grows with
time / CHUNK_STEPS. A chunk is small enough to stay in cache; inside it everything but the recurrence itself, one fused
multiply-add per step, is done for all its steps at once. Buffers are (step, batch, state_dim, channels), channels last,
so that every operation runs along a long contiguous axis.
"""

import torch
from torch import Tensor

from kernels.selective_scan.reference import Inputs

CHUNK_ELEMENTS = 2**18
"""State elements of one chunk (1 MiB in float32): a few such buffers share the cache."""


def steps_per_chunk(u: Tensor, A: Tensor) -> int:
    """Time steps whose states of the whole batch make about CHUNK_ELEMENTS."""
    per_step = u.shape[0] * A.shape[0] * A.shape[1]
    return min(max(CHUNK_ELEMENTS // per_step, 4), 64, u.shape[1])


def shape_of_starts(u: Tensor, A: Tensor) -> tuple[int, ...]:
    """Of the states before each chunk: (chunks, batch, state_dim, channels)."""
    return -(-u.shape[1] // steps_per_chunk(u, A)), u.shape[0], A.shape[1], A.shape[0]


def forward(inputs: Inputs, state: Tensor, resets: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Output (batch, time, channels), final state, and the states before each chunk, for the backward.

    Arguments as in `kernels.selective_scan.selective_scan`; computed in the dtype of `state`.
    """
    u, delta, A, B, C = (x.to(state.dtype) for x in inputs)
    length = steps_per_chunk(u, A)
    weights = A.t().contiguous()  # (state_dim, channels)
    h = state.transpose(1, 2).contiguous()  # (batch, state_dim, channels)
    output = torch.empty_like(u, memory_format=torch.contiguous_format)
    starts = u.new_empty(shape_of_starts(u, A))
    all_keep, all_states = u.new_empty(2, length, *h.shape)
    for index, begin in enumerate(range(0, u.shape[1], length)):
        chunk = slice(begin, begin + length)
        h = starts[index].copy_(h)
        u_t, delta_t, B_t, C_t = (steps_first(tensor[:, chunk]) for tensor in (u, delta, B, C))
        keep = keep_factors(delta_t, weights, resets, chunk, all_keep)
        states = outer(B_t, delta_t * u_t, all_states)
        for step, factor in zip(states.unbind(), keep.unbind(), strict=True):
            h = step.addcmul_(factor, h)
        output[:, chunk] = (C_t.unsqueeze(2) @ states).squeeze(2).transpose(0, 1)
    return output.to(inputs.u.dtype), h.transpose(1, 2).contiguous(), starts


def backward(
    grad_output: Tensor, grad_state: Tensor, inputs: Inputs, resets: Tensor | None, starts: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u, delta, A, B, C and the initial state.

    With G_t the gradient of the state after step t: G_t = C_t ⊗ dy_t + keep_{t+1} G_{t+1}. Then dC_t = <h_t, dy_t>,
    d(delta u)_t = <G_t, B_t>, dB_t = <G_t, delta_t u_t>, and the gradient of log keep_t = delta_t A is
    G_t keep_t h_{t-1}.
    """
    grad_output, u, delta, A, B, C = (x.to(starts.dtype) for x in (grad_output, *inputs))
    length = steps_per_chunk(u, A)
    weights = A.t().contiguous()
    grad_u, grad_delta, grad_B, grad_C = (
        torch.empty_like(x, memory_format=torch.contiguous_format) for x in (u, delta, B, C)
    )
    grad_weights = torch.zeros_like(weights)
    g = grad_state.transpose(1, 2).contiguous()  # (batch, state_dim, channels): gradient of the state after the chunk
    all_keep, all_states, all_kept, all_grads = u.new_empty(4, length, *g.shape)
    for index in reversed(range(starts.shape[0])):
        chunk = slice(index * length, (index + 1) * length)
        u_t, delta_t, B_t, C_t, dy = (steps_first(tensor[:, chunk]) for tensor in (u, delta, B, C, grad_output))
        written = delta_t * u_t
        keep = keep_factors(delta_t, weights, resets, chunk, all_keep)
        states = outer(B_t, written, all_states)
        kept = all_kept[: states.shape[0]]  # keep_t h_{t-1}
        h = starts[index]
        for step, factor, part in zip(states.unbind(), keep.unbind(), kept.unbind(), strict=True):
            torch.mul(factor, h, out=part)
            h = step.add_(part)
        grads = outer(C_t, dy, all_grads)
        grads[-1] += g
        steps, factors = grads.unbind(), keep.unbind()
        for t in range(len(steps) - 1, 0, -1):
            steps[t - 1].addcmul_(factors[t], steps[t])
        g = factors[0] * steps[0]

        grad_C[:, chunk] = (states @ dy.unsqueeze(3)).squeeze(3).transpose(0, 1)
        grad_B[:, chunk] = (grads @ written.unsqueeze(3)).squeeze(3).transpose(0, 1)
        grad_written = (B_t.unsqueeze(2) @ grads).squeeze(2)  # (step, batch, channels)
        grad_log = kept.mul_(grads)
        grad_u[:, chunk] = (grad_written * delta_t).transpose(0, 1)
        decayed = torch.mul(grad_log, weights, out=grads).sum(2)  # (step, batch, channels)
        grad_delta[:, chunk] = decayed.addcmul_(grad_written, u_t).transpose(0, 1)
        grad_weights += grad_log.mul_(delta_t.unsqueeze(2)).sum((0, 1))
    of_inputs = (grad_u, grad_delta, grad_weights.t().contiguous(), grad_B, grad_C)
    rounded = (grad.to(x.dtype) for grad, x in zip(of_inputs, inputs, strict=True))
    return *rounded, g.transpose(1, 2).contiguous()  # type: ignore[return-value]


def keep_factors(delta: Tensor, weights: Tensor, resets: Tensor | None, chunk: slice, buffer: Tensor) -> Tensor:
    """exp(delta A), and 0 where a document starts: (step, batch, state_dim, channels), in `buffer`."""
    keep = torch.mul(delta.unsqueeze(2), weights, out=buffer[: delta.shape[0]]).exp_()
    if resets is not None:
        keep.masked_fill_(resets[:, chunk].t()[:, :, None, None], 0.0)
    return keep


def outer(states: Tensor, channels: Tensor, buffer: Tensor) -> Tensor:
    """Products (step, batch, state_dim, channels), in `buffer`, of (step, batch, state_dim) and (…, channels)."""
    return torch.mul(states.unsqueeze(3), channels.unsqueeze(2), out=buffer[: states.shape[0]])


def steps_first(tensor: Tensor) -> Tensor:
    """(batch, step, …) to (step, batch, …), contiguous."""
    return tensor.transpose(0, 1).contiguous()
