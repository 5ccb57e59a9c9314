"""The mLSTM (Beck et al. 2024, arXiv 2405.04517, section 2.3): a matrix memory with exponential gates, per head."""

from typing import Any, Literal

import torch
from torch import Tensor

from kernels import cpu
from kernels.dispatch import (
    Chosen,
    Implementation,
    cast_for_autocast,
    choose,
    expect_resets,
    expect_shape,
    modules,
    state_dtype,
)
from kernels.mlstm.reference import Inputs, MLSTMState, Options, Saved, Upstream, mlstm_reference, zero_state
from kernels.mlstm.torch_chunkwise import default_chunk_size
from kernels.operator import Operator

__all__ = ["MLSTMState", "mlstm"]


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
    chosen = choose(
        "mlstm", implementation, q, lambda: _modules("triton").shape_obstacle(key_dim, v.shape[-1], chunk_size),
        lambda: cpu.obstacle(q, k, v, i, f), of_products=True,
    )  # fmt: skip
    default = _modules("triton").default_chunk_size if chosen == "triton" else default_chunk_size
    chunk = chunk_size or default(time, key_dim, v.shape[-1])
    inputs, options = Inputs(q, k, v, i, f), Options(input_gate, normalize, eps, chunk)
    if chosen == "reference":
        return mlstm_reference(inputs, initial_state or zero_state(q, v), resets, options)
    state = (None, None, None) if initial_state is None else initial_state._replace(m=initial_state.m.detach())
    needed = [t for t in (*inputs, *state[:2]) if t is not None and t.requires_grad]
    save_states = bool(needed) and torch.is_grad_enabled()
    h, *after = _mlstm(*inputs, *state, resets, *options, save_states, chosen)[:4]
    return h, MLSTMState(*after)


def _forward(
    module: Any, inputs: Inputs, state: MLSTMState | None, resets: Tensor | None, options: Options, save_states: bool
) -> tuple[Tensor, ...]:
    h, *final, states_C, states_n, s = module.forward(inputs, state, resets, options, save_states)
    if not save_states:
        states_C, states_n = states_C[:0].clone(), states_n[:0].clone()
    return h, *(part.unflatten(0, inputs.q.shape[:2]) for part in final), states_C, states_n, s


def _backward(
    module: Any, grad_h: Tensor | None, grad_C: Tensor | None, grad_n: Tensor | None, inputs: Inputs, m: Tensor | None,
    resets: Tensor | None, saved: Saved, options: Options,
) -> tuple[Tensor, ...]:  # fmt: skip
    if saved.states_C.shape[0] == 0:
        raise RuntimeError("scaling::mlstm was called with save_states=False on tensors that need gradients")
    upstream = Upstream(torch.zeros_like(saved.h) if grad_h is None else grad_h, grad_C, grad_n)
    *of_inputs, dC, dn = module.backward(upstream, inputs, m, resets, saved, options)
    return *of_inputs, *(part.unflatten(0, inputs.q.shape[:2]) for part in (dC, dn))


def _results(
    q: Tensor, v: Tensor, normalize: bool, chunk: int, save_states: bool, implementation: Chosen
) -> tuple[Tensor, ...]:
    batch, heads, time, key_dim = q.shape
    value_dim, dtype, rows = v.shape[-1], state_dtype(v), batch * heads
    chunks = -(-time // chunk) if save_states else 0
    return (
        v.new_empty(batch, heads, time, value_dim),
        v.new_empty(batch, heads, key_dim, value_dim, dtype=dtype),
        v.new_empty(batch, heads, key_dim, dtype=dtype),
        v.new_empty(batch, heads, dtype=dtype),
        v.new_empty(chunks, rows, key_dim, value_dim, dtype=v.dtype if implementation == "triton" else dtype),
        v.new_empty(chunks, rows, key_dim, dtype=dtype),
        v.new_empty(rows, time if normalize else 0, dtype=dtype),
    )


def _gradients(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, implementation: Chosen) -> tuple[Tensor, ...]:
    (batch, heads, _, key_dim), dtype = q.shape, state_dtype(v)
    return (
        *(x.new_empty(x.shape) if implementation == "torch" else cpu.empty_rows_like(x) for x in (q, k, v)),
        i.new_empty(i.shape),
        f.new_empty(f.shape),
        v.new_empty(batch, heads, key_dim, v.shape[-1], dtype=dtype),
        v.new_empty(batch, heads, key_dim, dtype=dtype),
    )


def _products(q: tuple[int, ...], v: tuple[int, ...], chunk: int) -> tuple[int, int]:
    """FLOPs of one key_dim-wide product within chunks, and of one product with the states, times both widths."""
    batch, heads, time, key_dim = q
    full, rest = divmod(time, chunk)
    pairs = batch * heads * (full * chunk * chunk + rest * rest)
    return 2 * pairs, 2 * batch * heads * time * key_dim * v[-1]


def _flops(q: tuple[int, ...], v: tuple[int, ...], chunk: int) -> int:
    """Scores and their product with the values within chunks, one read and one write of the state."""
    pairs, state = _products(q, v, chunk)
    return pairs * (q[-1] + v[-1]) + 2 * state


def _backward_flops(q: tuple[int, ...], v: tuple[int, ...], chunk: int) -> int:
    """The scores again, then d scores, dq, dk, dv; and four products with states and their gradients."""
    pairs, state = _products(q, v, chunk)
    return pairs * (3 * q[-1] + 2 * v[-1]) + 4 * state


# What is saved is `Saved`, the same for all implementations. Without an initial state, its gradients are none.
_modules = modules(__name__, torch="torch_chunkwise", numba="numba_chunkwise", triton="triton_chunkwise")
_mlstm = Operator[tuple[Tensor, ...]](
    "mlstm",
    "(Tensor q, Tensor k, Tensor v, Tensor i, Tensor f, Tensor? C, Tensor? n, Tensor? m, Tensor? resets,"
    " str input_gate, bool normalize, float eps, SymInt chunk, bool save_states, str implementation)"
    " -> (Tensor h, Tensor last_C, Tensor last_n, Tensor last_m, Tensor states_C, Tensor states_n, Tensor s)",
    backward="(grad_h?, grad_last_C?, grad_last_n?, q, k, v, i, f, m, resets, h, states_C, states_n, s,"
    " input_gate, normalize, eps, chunk, implementation) -> (q, k, v, i, f, C, n)",
    modules=_modules,
    bundles=[Inputs, MLSTMState, Saved, Options],
    run_forward=_forward,
    run_backward=_backward,
    results=_results,
    gradients=_gradients,
    flops=_flops,
    backward_flops=_backward_flops,
)
