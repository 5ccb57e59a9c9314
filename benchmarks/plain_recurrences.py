"""The recurrences as people have them without a GPU: the plain PyTorch of `fla` (flash-linear-attention), by operator.

Each takes what ours takes and is put in its place within our own model, so that a step differs in nothing else: what is
told is the operator's share, and less than a whole peer would show. Of each the fastest form that the library has in
PyTorch: in chunks for decays by head (`simple_gla`, `gated_delta_rule`), else a loop over tokens. A long convolution is
that of the authors of H3 and Hyena (`fftconv_ref`), differentiated by autograd.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def by_channel(q: Tensor, k: Tensor, v: Tensor, g: Tensor, *, bonus: Tensor | None = None, **_: Any) -> Any:
    """`gated_linear_attention`, token by token."""
    scale = q.shape[-1] ** 0.5  # which both divide by, and ours does not
    if bonus is None:
        from fla.ops.gla.naive import naive_recurrent_gla

        return naive_recurrent_gla(q * scale, k, v, g, output_final_state=True)
    from fla.ops.rwkv6.recurrent_naive import naive_recurrent_rwkv6

    turned = (one.transpose(1, 2) for one in (q, k, v, g))
    o, state = naive_recurrent_rwkv6(*turned, bonus, scale=1.0)
    return o.transpose(1, 2), state


def by_head(q: Tensor, k: Tensor, v: Tensor, write: Tensor, keep: Tensor, **_: Any) -> Any:
    """`mlstm` without normaliser, (batch, heads, time, …), in chunks; gates as logits."""
    from fla.ops.simple_gla.naive import naive_chunk_simple_gla

    queries, keys, values = (one.transpose(1, 2) for one in (q, k * write.exp()[..., None], v))
    o, state = naive_chunk_simple_gla(queries, keys, values, F.logsigmoid(keep).transpose(1, 2))
    return o.transpose(1, 2), state


def by_element(x: Tensor, g: Tensor, **_: Any) -> Tensor:
    """`linear_recurrence`, token by token."""
    from fla.ops.hgrn.naive import naive_recurrent_hgrn

    h: Tensor = naive_recurrent_hgrn(x, g)[0]
    return h


def delta_by_head(q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, g: Tensor, **_: Any) -> Any:
    """`delta_rule` of Gated DeltaNet in chunks, of keys, step sizes and decays that are told from a, b and g."""
    from fla.ops.gated_delta_rule.naive import naive_chunk_gated_delta_rule

    decay = g[..., 0]
    keys = -a * torch.exp(-g)
    step = (b * keys).sum(-1)  # of unit keys
    return naive_chunk_gated_delta_rule(q, keys, v, decay, step, scale=1.0)


def delta_by_channel(q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, g: Tensor, **_: Any) -> Any:
    """`delta_rule` of RWKV-7, token by token."""
    from fla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence

    turned = (one.transpose(1, 2) for one in (q * q.shape[-1] ** 0.5, k, v, a, b, g))
    o, state = dplr_recurrence(*turned)
    return o.transpose(1, 2), state


def convolution(x: Tensor, filters: Tensor, **_: Any) -> Tensor:
    """`long_convolution`, by transforms of twice the length."""
    time = x.shape[1]
    spectrum = torch.fft.rfft(x.mT, n=2 * time) * torch.fft.rfft(filters[:time].mT, n=2 * time)
    return torch.fft.irfft(spectrum, n=2 * time)[..., :time].mT


PLACES: dict[str, tuple[str, str, Callable[..., Any]]] = {
    "gla": ("gla", "gated_linear_attention", by_channel),
    "hgrn2": ("hgrn2", "gated_linear_attention", by_channel),
    "rwkv5": ("rwkv5", "gated_linear_attention", by_channel),
    "rwkv6": ("rwkv5", "gated_linear_attention", by_channel),  # whose memory is RWKV-5's
    "hgrn": ("hgrn", "linear_recurrence", by_element),
    "retnet": ("retnet", "mlstm", by_head),
    "gated-deltanet": ("gated_deltanet", "delta_rule", delta_by_head),
    "rwkv7": ("rwkv7", "delta_rule", delta_by_channel),
    "h3": ("h3", "long_convolution", convolution),
    "hyena": ("hyena", "long_convolution", convolution),
}
"""Of each family the module that calls an operator, its name there, and what takes its place."""


@contextlib.contextmanager
def in_place(family: str) -> Iterator[None]:
    """Within it, models of the family compute with the plain recurrence."""
    module, name, plain = PLACES[family]
    home = importlib.import_module(f"xlstm.models.{module}")
    ours = getattr(home, name)
    setattr(home, name, plain)
    try:
        yield
    finally:
        setattr(home, name, ours)
