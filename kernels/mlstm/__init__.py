"""The mLSTM (Beck et al. 2024, arXiv 2405.04517, section 2.3): a matrix memory with exponential gates, per head."""

from typing import Literal

from torch import Tensor

from kernels.dispatch import Implementation, choose, expect_shape
from kernels.mlstm.reference import MLSTMState, mlstm_reference, recurrence_step, zero_state
from kernels.mlstm.torch_chunkwise import mlstm_chunkwise

__all__ = ["MLSTMState", "mlstm", "mlstm_step"]

CHUNK_SIZE = 64


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

    q, k (batch, heads, time, key_dim); v (batch, heads, time, value_dim); i, f (batch, heads, time): pre-activations of
    the input and forget gate (the latter a sigmoid). The factor 1/sqrt(key_dim) is applied inside, on k. `resets` bool
    (batch, time): the state is forgotten before that token. `eps` is added to the denominator, outside the maximum.
    Raises ValueError for shapes that do not fit, ImplementationError for an implementation that cannot run.
    """
    batch, heads, time, key_dim = q.shape
    expect_shape("mlstm", "k", k, (batch, heads, time, key_dim), "(batch, heads, time, key_dim)")
    expect_shape("mlstm", "v", v, (batch, heads, time, v.shape[-1]), "(batch, heads, time, value_dim)")
    expect_shape("mlstm", "i", i, (batch, heads, time), "(batch, heads, time)")
    expect_shape("mlstm", "f", f, (batch, heads, time), "(batch, heads, time)")
    if resets is not None:
        expect_shape("mlstm", "resets", resets, (batch, time), "(batch, time)")
    state = zero_state(q, v) if initial_state is None else initial_state
    chosen = choose("mlstm", implementation, q, lambda: "there are no Triton kernels for the mLSTM")
    if chosen == "reference":
        return mlstm_reference(q, k, v, i, f, state, resets, input_gate, normalize, eps)
    return mlstm_chunkwise(q, k, v, i, f, state, resets, input_gate, normalize, eps, chunk_size or CHUNK_SIZE)


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
