"""Linear attention with a decay per key channel (GLA, HGRN2, RWKV-5 and 6): a matrix memory that forgets by rows."""

from torch import Tensor

from kernels import cpu
from kernels.dispatch import Implementation, cast_for_autocast, choose, expect_shape, modules
from kernels.gated_linear_attention.arguments import checked_state, pairs_and_states, results
from kernels.gated_linear_attention.reference import Inputs, gated_linear_attention_reference
from kernels.operator import Operator

__all__ = ["gated_linear_attention"]


def gated_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    *,
    bonus: Tensor | None = None,
    initial_state: Tensor | None = None,
    resets: Tensor | None = None,
    implementation: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    """S_t = Diag(exp(g_t)) S_{t-1} + k_t v_t^T and o_t = S_t^T q_t, for every head.

    With `bonus` u (heads, key_dim) the state is read before the update: o_t = (S_{t-1} + Diag(u) k_t v_t^T)^T q_t.
    `q` and `k` are (batch, time, heads, key_dim), `v` (batch, time, heads, value_dim), any lengths; `g` as `k`, the
    logarithm of the decay, at most 0, in float32 also where the others are bfloat16. `initial_state` is (batch, heads,
    key_dim, value_dim), zeros where absent. Where `resets` (batch, time, bool) is true the state is forgotten before
    the token. Returns o (batch, time, heads, value_dim) in the dtype of `v`, and the final state, float32 (float64 for
    float64 `v`). Under autocast q, k and v are cast, g and the state are not. No factor is applied to q.

    Raises ValueError for shapes that do not fit, ImplementationError for an implementation that cannot run.
    """
    name = "gated_linear_attention"
    if bonus is not None:
        expect_shape(name, "bonus", bonus, tuple(q.shape[2:]), "(heads, key_dim)")
    q, k, v = cast_for_autocast(q, k, v)
    state = checked_state(name, q, v, initial_state, resets, k=k, g=g)
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"{name}: q, k and v are {q.dtype}, {k.dtype} and {v.dtype}, expected one dtype")
    chosen = choose(name, implementation, q, cpu_obstacle=lambda: cpu.obstacle(q, k, v, g))
    if chosen == "reference":
        return gated_linear_attention_reference(Inputs(q, k, v, g, bonus), state, resets)
    o, final_state, _ = _attention(q, k, v, g, bonus, state, resets, chosen)
    return o, final_state


def _flops(k: tuple[int, ...], v: tuple[int, ...]) -> int:
    """Products of the form in chunks of CHUNK: scores and their product with v in each, one read and one write."""
    pairs, keys = pairs_and_states(k)
    return 2 * pairs * (k[-1] + v[-1]) + 4 * keys * v[-1]


_attention = Operator[tuple[Tensor, Tensor, Tensor]](
    "gated_linear_attention",
    "(Tensor q, Tensor k, Tensor v, Tensor g, Tensor? bonus, Tensor state, Tensor? resets, str implementation)"
    " -> (Tensor o, Tensor final_state, Tensor starts)",
    backward="(grad_o, grad_final_state, q, k, v, g, bonus, resets, starts, implementation)"
    " -> (q, k, v, g, bonus, state)",
    modules=modules(__name__, torch="torch_chunked", numba="numba_scan", triton="triton_chunked"),
    bundles=[Inputs],
    results=results,
    flops=_flops,
)
