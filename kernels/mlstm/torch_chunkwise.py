"""The mLSTM chunk by chunk in plain PyTorch: quadratic inside a chunk, recurrent between chunks.

Within a chunk, with b the running sum of log f, token t reads token j <= t with weight exp(b_t - b_j + log i_j) and the
state before the chunk with weight exp(b_t); both are scaled by exp(-m_t), m_t being their largest exponent. Memory and
time grow linearly with the length. m is a gauge and carries no gradient.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.mlstm.reference import MLSTMState


def mlstm_chunkwise(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    state: MLSTMState,
    resets: Tensor | None,
    input_gate: str,
    normalize: bool,
    eps: float,
    chunk_size: int,
) -> tuple[Tensor, MLSTMState]:
    """Arguments as in `kernels.mlstm.mlstm`; the length need not be a multiple of `chunk_size`."""
    dtype = state.C.dtype
    log_i = i.to(dtype) if input_gate == "exponential" else F.logsigmoid(i.to(dtype))
    log_f = F.logsigmoid(f.to(dtype))
    outputs = []
    for start in range(0, q.shape[2], chunk_size):
        part = slice(start, start + chunk_size)
        h, state = _chunk(
            q[:, :, part].to(dtype),
            k[:, :, part].to(dtype) * k.shape[-1] ** -0.5,
            v[:, :, part].to(dtype),
            log_i[:, :, part],
            log_f[:, :, part],
            state,
            None if resets is None else resets[:, part],
            normalize,
            eps,
        )
        outputs.append(h.to(v.dtype))
    return torch.cat(outputs, dim=2), state


def _chunk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_i: Tensor,
    log_f: Tensor,
    state: MLSTMState,
    resets: Tensor | None,
    normalize: bool,
    eps: float,
) -> tuple[Tensor, MLSTMState]:
    """One chunk of length L: q, k (batch, heads, L, key_dim), v (…, value_dim), gates (batch, heads, L)."""
    time = q.shape[2]
    decay = log_f.cumsum(-1)  # b
    total = decay[..., -1]
    pairs = decay[..., :, None] - decay[..., None, :] + log_i[..., None, :]  # (batch, heads, reader, writer)
    reads = torch.ones(time, time, dtype=torch.bool, device=q.device).tril()
    carried, written = decay, total[..., None] - decay + log_i
    if resets is not None:
        document = resets.to(torch.int64).cumsum(-1)[:, None]  # (batch, 1, L), 0: the one before the chunk
        reads = reads & (document[..., :, None] == document[..., None, :])
        carried = carried.masked_fill(document != 0, -torch.inf)
        written = written.masked_fill(document != document[..., -1:], -torch.inf)
        total = total.masked_fill(document[..., -1] != 0, -torch.inf)
    pairs = pairs.masked_fill(~reads, -torch.inf)

    C, n, m = state.C, state.n, state.m.detach()
    carried = carried + m[..., None]
    scale = torch.maximum(pairs.amax(-1), carried).detach()  # m_t
    weights = (q @ k.transpose(-1, -2)) * torch.exp(pairs - scale[..., None])
    from_state = torch.exp(carried - scale)[..., None] * q
    h = weights @ v + from_state @ C
    if normalize:
        weight = weights.sum(-1) + (from_state * n[..., None, :]).sum(-1)
        h = h / (torch.maximum(weight.abs(), torch.exp(-scale)) + eps)[..., None]
    else:
        h = h * torch.exp(scale)[..., None]

    after = torch.maximum(total + m, written.amax(-1)).detach()
    keys = torch.exp(written - after[..., None])[..., None] * k
    keep = torch.exp(total + m - after)
    C = keep[..., None, None] * C + keys.transpose(-1, -2) @ v
    n = keep[..., None] * n + keys.sum(-2)
    return h, MLSTMState(C, n, after)
