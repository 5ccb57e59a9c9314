"""The mLSTM (Beck et al. 2024, arXiv 2405.04517, section 2.3): a matrix memory with exponential gates, per head."""

from typing import Literal

import torch
from torch import Tensor

from kernels import cpu
from kernels.dispatch import Implementation, cast_for_autocast, choose, expect_resets, expect_shape
from kernels.mlstm.ops import mlstm_op
from kernels.mlstm.reference import MLSTMState, mlstm_reference, recurrence_step, zero_state
from kernels.mlstm.torch_chunkwise import default_chunk_size

__all__ = ["MLSTMState", "mlstm", "mlstm_step"]


def mlstm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    *,
    initial_state: MLSTMState | None = None,
    resets: Tensor | None = None,
    input_gate: Literal["exponential", "sigmoid"] = "exponential",
    normalize: bool = True,
    eps: float = 0.0,
    chunk_size: int | None = None,
    implementation: Implementation = "auto",
) -> tuple[Tensor, MLSTMState]:
    """Outputs h (batch, heads, time, value_dim) in v's dtype, and the state after the last token.

    q, k (batch, heads, time, key_dim); v (batch, heads, time, value_dim); i, f (batch, heads, time): pre-activations
    of the input and forget gate (the latter a sigmoid), float32 also where q, k, v are bfloat16. The factor
    1/sqrt(key_dim) is applied inside, on k. `resets` bool (batch, time): the state is forgotten before that token.
    `eps` is added to the denominator, outside the maximum; with `normalize` false there is no denominator. Under
    autocast q, k and v are cast, gates and states are not. The state's m is a scale and carries no gradient.
    Raises ValueError for shapes that do not fit, ImplementationError for an implementation that cannot run.
    """
    if q.ndim != 4:
        raise ValueError(f"mlstm: q has shape {tuple(q.shape)}, expected (batch, heads, time, key_dim)")
    if input_gate not in ("exponential", "sigmoid"):
        raise ValueError(f"mlstm: input_gate {input_gate!r} is none of exponential, sigmoid")
    batch, heads, time, key_dim = q.shape
    expect_shape("mlstm", "k", k, (batch, heads, time, key_dim), "(batch, heads, time, key_dim)")
    expect_shape("mlstm", "v", v, (batch, heads, time, v.shape[-1]), "(batch, heads, time, value_dim)")
    expect_shape("mlstm", "i", i, (batch, heads, time), "(batch, heads, time)")
    expect_shape("mlstm", "f", f, (batch, heads, time), "(batch, heads, time)")
    if time == 0:
        raise ValueError("mlstm: the sequence is empty, expected at least one token")
    expect_resets("mlstm", resets, batch, time)
    q, k, v = cast_for_autocast(q, k, v)
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"mlstm: q, k and v are {q.dtype}, {k.dtype} and {v.dtype}, expected one dtype")
    chunk = chunk_size or default_chunk_size(time, key_dim, v.shape[-1])
    chosen = choose(
        "mlstm", implementation, q, lambda: _triton_obstacle(q, v, chunk), lambda: cpu.obstacle(q, k, v, i, f)
    )
    if chosen == "reference":
        start = zero_state(q, v) if initial_state is None else initial_state
        return mlstm_reference(q, k, v, i, f, start, resets, input_gate, normalize, eps)
    C, n, m = (None, None, None) if initial_state is None else initial_state
    needed = [t for t in (q, k, v, i, f, C, n) if t is not None and t.requires_grad]
    h, C, n, m, *_ = mlstm_op(
        q,
        k,
        v,
        i,
        f,
        C,
        n,
        None if m is None else m.detach(),
        resets,
        input_gate,
        normalize,
        eps,
        chunk,
        bool(needed) and torch.is_grad_enabled(),
        chosen,
    )
    return h, MLSTMState(C, n, m)


def _triton_obstacle(q: Tensor, v: Tensor, chunk: int) -> str | None:
    from kernels.mlstm import triton_chunkwise

    return triton_chunkwise.shape_obstacle(q.shape[-1], v.shape[-1], chunk)


def mlstm_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    state: MLSTMState,
    *,
    input_gate: Literal["exponential", "sigmoid"] = "exponential",
    normalize: bool = True,
    eps: float = 0.0,
) -> tuple[Tensor, MLSTMState]:
    """One token: q, k (batch, heads, key_dim), v (batch, heads, value_dim), gates (batch, heads)."""
    h, after = recurrence_step(q, k, v, i, f, state, None, input_gate, normalize, eps)
    return h.to(v.dtype), after
