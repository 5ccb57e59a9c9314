"""Token shift (Peng et al. 2023, arXiv 2305.13048, section 3.1): mixtures of each token with the one before it."""

from torch import Tensor

from kernels import cpu
from kernels.dispatch import Implementation, cast_for_autocast, choose, expect_resets, expect_shape, modules
from kernels.operator import Operator
from kernels.token_shift.reference import token_shift_reference

__all__ = ["token_shift"]


def token_shift(
    x: Tensor,
    shares: Tensor,
    *,
    last: Tensor | None = None,
    resets: Tensor | None = None,
    implementation: Implementation = "auto",
) -> list[Tensor]:
    """s x_t + (1 - s) x_{t-1} for each row s of `shares` (mixtures, channels); as `x` (batch, time, channels) each.

    `last` (batch, channels) is the token before the first, zeros where absent. Where `resets` (batch, time, bool) is
    true a document begins: zeros come before its first token. Under autocast everything is cast; computed in float32 at
    least. Raises ValueError for shapes that do not fit, ImplementationError for an implementation that cannot run.
    """
    name = "token_shift"
    if x.ndim != 3:
        raise ValueError(f"{name}: x has shape {tuple(x.shape)}, expected (batch, time, channels)")
    batch, time, channels = x.shape
    if time == 0:
        raise ValueError(f"{name}: the sequence is empty, expected at least one token")
    expect_shape(name, "shares", shares, (shares.shape[0], channels), "(mixtures, channels)")
    if last is None:
        last = x.new_zeros(batch, channels)
    expect_shape(name, "last", last, (batch, channels), "(batch, channels)")
    expect_resets(name, resets, batch, time)
    x, shares, last = cast_for_autocast(x, shares, last)
    last, shares = last.to(x.dtype), shares.to(x.dtype)
    chosen = choose(name, implementation, x, cpu_obstacle=lambda: cpu.obstacle(x, shares, last))
    if chosen == "reference":
        return token_shift_reference(x, shares, last, resets)
    return _token_shift(x, shares, last, resets, chosen)


_token_shift = Operator[list[Tensor]](
    "token_shift",
    "(Tensor x, Tensor shares, Tensor last, Tensor? resets, str implementation) -> Tensor[] mixtures",
    backward="(grad_mixtures, x, shares, last, resets, implementation) -> (x, shares, last)",
    modules=modules(__name__, torch="torch_fused", numba="numba_shift", triton="triton_shift"),
    results=lambda x, shares: [x.new_empty(x.shape) for _ in range(shares.shape[0])],
    flops=0,  # as norms
)
