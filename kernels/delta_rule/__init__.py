"""The generalised delta rule (Gated DeltaNet, RWKV-7): a matrix memory that replaces what it holds under a key."""

from torch import Tensor

from kernels import cpu
from kernels.delta_rule.reference import Inputs, delta_rule_reference
from kernels.dispatch import Implementation, cast_for_autocast, choose, modules
from kernels.gated_linear_attention.arguments import checked_state, pairs_and_states, results
from kernels.operator import Operator

__all__ = ["delta_rule"]


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    g: Tensor,
    *,
    initial_state: Tensor | None = None,
    resets: Tensor | None = None,
    implementation: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    """S_t = Diag(exp(g_t)) S_{t-1} + b_t (a_t^T S_{t-1}) + k_t v_t^T and o_t = S_t^T q_t, for every head.

    `q`, `k`, `a` and `b` are (batch, time, heads, key_dim), `v` (batch, time, heads, value_dim), any lengths; `g` as
    `k`, the logarithm of the decay, at most 0, in float32 also where the others are bfloat16. `initial_state` is
    (batch, heads, key_dim, value_dim), zeros where absent. Where `resets` (batch, time, bool) is true the state is
    forgotten before the token. Returns o (batch, time, heads, value_dim) in the dtype of `v`, and the final state,
    float32 (float64 for float64 `v`). Under autocast all but g and the state are cast.

    The delta rule after a decay, of unit keys k and step sizes β, is a = -exp(g) k and b = β k, with β k for k.
    Raises ValueError for shapes that do not fit, ImplementationError for an implementation that cannot run.
    """
    name = "delta_rule"
    q, k, v, a, b = cast_for_autocast(q, k, v, a, b)
    state = checked_state(name, q, v, initial_state, resets, k=k, a=a, b=b, g=g)
    if len({x.dtype for x in (q, k, v, a, b)}) > 1:
        raise ValueError(f"{name}: q, k, v, a and b are {', '.join(str(x.dtype) for x in (q, k, v, a, b))}, not alike")
    chosen = choose(name, implementation, q, cpu_obstacle=lambda: cpu.obstacle(q, k, v, a, b, g))
    if chosen == "reference":
        return delta_rule_reference(Inputs(q, k, v, a, b, g), state, resets)
    o, final_state, _ = _delta_rule(q, k, v, a, b, g, state, resets, chosen)
    return o, final_state


def _flops(k: tuple[int, ...], v: tuple[int, ...]) -> int:
    """Of the form in chunks of CHUNK: four kinds of pairs, each with a product with values, and four with states."""
    pairs, keys = pairs_and_states(k)
    return 8 * pairs * (k[-1] + v[-1]) + 8 * keys * v[-1]


_delta_rule = Operator[tuple[Tensor, Tensor, Tensor]](
    "delta_rule",
    "(Tensor q, Tensor k, Tensor v, Tensor a, Tensor b, Tensor g, Tensor state, Tensor? resets, str implementation)"
    " -> (Tensor o, Tensor final_state, Tensor starts)",
    backward="(grad_o, grad_final_state, q, k, v, a, b, g, resets, starts, implementation)"
    " -> (q, k, v, a, b, g, state)",
    modules=modules(__name__, torch="torch_chunked", numba="numba_scan", triton="triton_chunked"),
    bundles=[Inputs],
    results=results,
    flops=_flops,
)
