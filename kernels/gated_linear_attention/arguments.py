"""What linear attention and the delta rule ask of their arguments, and what both give."""

from torch import Tensor

from kernels.dispatch import expect_resets, expect_shape, state_dtype
from kernels.gated_linear_attention.reference import CHUNK


def checked_state(
    name: str, q: Tensor, v: Tensor, initial_state: Tensor | None, resets: Tensor | None, **as_queries: Tensor
) -> Tensor:
    """The state before the first token, of `initial_state` or zeros. ValueError for shapes that do not fit."""
    if q.ndim != 4:
        raise ValueError(f"{name}: q has shape {tuple(q.shape)}, expected (batch, time, heads, key_dim)")
    batch, time, heads, key_dim = q.shape
    for label, tensor in as_queries.items():
        expect_shape(name, label, tensor, tuple(q.shape), "(batch, time, heads, key_dim)")
    expect_shape(name, "v", v, (batch, time, heads, v.shape[-1]), "(batch, time, heads, value_dim)")
    if time == 0:
        raise ValueError(f"{name}: the sequence is empty, expected at least one token")
    expect_resets(name, resets, batch, time)
    shape, dtype = (batch, heads, key_dim, v.shape[-1]), state_dtype(v)
    state = q.new_zeros(shape, dtype=dtype) if initial_state is None else initial_state.to(dtype)
    expect_shape(name, "initial_state", state, shape, "(batch, heads, key_dim, value_dim)")
    return state


def results(k: Tensor, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output, final state, and the states before each CHUNK of tokens (chunks, batch, heads, key_dim, value_dim)."""
    starts = state.new_empty(-(-k.shape[1] // CHUNK), *state.shape)
    return v.new_empty(v.shape), state.new_empty(state.shape), starts


def pairs_and_states(k: tuple[int, ...]) -> tuple[int, int]:
    """Of shapes: pairs of tokens of one chunk, whole squares, for all heads; and numbers of all keys."""
    batch, time, heads, key_dim = k
    full, rest = divmod(time, CHUNK)
    return batch * heads * (full * CHUNK * CHUNK + rest * rest), batch * time * heads * key_dim
