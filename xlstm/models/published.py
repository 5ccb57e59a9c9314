"""Published dimensions and learning rates: arXiv 2405.04517, Table 7; for `xlstm-large` those of arXiv 2510.02228.

At 350M Table 1 of that paper trains all methods at 1e-3, those too of which its Table 7 has a rate of their own.
Plain data. Of GPT and the LSTMs the paper has only 350M (Tables 1 and 2); at the other sizes they scale as Llama does
(the LSTM with residuals as Mamba, the plain one at 1.5 times the width). Gated DeltaNet, whose blocks are larger, has
as many as keep it within 3 % of Llama's parameters; others that the table does not have, Llama's widths and depths.
"""

from collections.abc import Mapping
from typing import Any, Final

Dimensions = Mapping[str, Any]
"""Fields of a family's configuration."""


def _table(
    embedding_dims: tuple[int, ...], num_blocks: tuple[int, ...], **others: tuple[int | str, ...]
) -> dict[str, Any]:
    columns: dict[str, tuple[int | str, ...]] = {"embedding_dim": embedding_dims, "num_blocks": num_blocks} | others
    names = ("125M", "350M", "760M", "1.3B", "2.7B", "7B")
    return {names[i]: {field: values[i] for field, values in columns.items()} for i in range(len(embedding_dims))}


_WIDTHS: Final = (768, 1024, 1536, 2048, 2560)
_HALF_DEPTHS: Final = (12, 24, 24, 24, 32)
_DEPTHS: Final = (24, 48, 48, 48, 64)
_ATTENTION_HEADS: Final = (12, 16, 16, 16, 32)

DIMENSIONS: Final[Mapping[str, Mapping[str, Dimensions]]] = {
    "xlstm": _table(_WIDTHS, _DEPTHS, num_heads=(4,) * 5),
    "xlstm-large": _table((*_WIDTHS, 4096), (*_HALF_DEPTHS, 32), num_heads=(6, 4, 4, 4, 5, 8)),
    "llama": _table(_WIDTHS, _HALF_DEPTHS, num_heads=_ATTENTION_HEADS),
    "gpt": _table(_WIDTHS, _HALF_DEPTHS, num_heads=_ATTENTION_HEADS, context_length=(2048,) * 5),
    "mamba": _table(_WIDTHS, _DEPTHS),
    **dict.fromkeys(
        ("rwkv4", "hgrn2", "rwkv5", "rwkv6", "hgrn", "retnet", "rwkv7", "h3", "lstm"), _table(_WIDTHS, _HALF_DEPTHS)
    ),
    "gla": _table(_WIDTHS, _HALF_DEPTHS, num_heads=(4,) * 5),
    "mamba2": _table(_WIDTHS, _DEPTHS),
    "gated-deltanet": _table(_WIDTHS, (10, 21, 21, 20, 27), num_heads=(6, 6, 9, 12, 15)),
    "hyena": _table(_WIDTHS, _HALF_DEPTHS, context_length=(2048,) * 5),
    "lstm[residual]": _table(_WIDTHS, _DEPTHS, variant=("residual",) * 5),
    "lstm[vanilla]": _table((1152, 1536, 2304, 3072, 3840), _HALF_DEPTHS, variant=("vanilla",) * 5),
}
"""Published dimensions by family and size."""

_AT_350M: Final = (None, 1e-3)
_RATES: Final[Mapping[str, Mapping[str, tuple[float | None, ...]]]] = {
    "15B": {
        "xlstm": (3e-3, 1e-3, 9e-4, 9e-4, 8e-4),
        "llama": (3e-3, 1.5e-3, 1.25e-3, 1e-3, 8e-4),
        "mamba": (3e-3, 1.5e-3, 1.25e-3, 1e-3, 8e-4),
        "rwkv4": (3e-3, 1e-3, 2e-3, 1e-3, 8e-4),
        "hgrn2": (3e-3, 1e-3, 9e-4, 9e-4, 8e-4),
        "rwkv5": (3e-3, 1e-3, 9e-4, 9e-4, 8e-4),
        "rwkv6": (3e-3, 1e-3, 9e-4, 9e-4, 8e-4),
        # GPT-3's times five, as Mamba's; its authors' too (arXiv 2405.21060).
        "mamba2": (3e-3, 1.5e-3, 1.25e-3, 1e-3, 8e-4),
        # Tables 1 and 2.
        **dict.fromkeys(
            ("gpt", "retnet", "h3", "hyena", "hgrn", "gla", "lstm", "lstm[residual]", "lstm[vanilla]"), _AT_350M
        ),
    },
    "300B": {
        "xlstm": (1.5e-3, 7.5e-4, 6.25e-4, 5e-4),
        "llama": (3e-3, 1.5e-3, 1.25e-3, 1e-3),
        "mamba": (3e-3, 1.5e-3, 1.25e-3, 1e-3),
        "rwkv4": (6e-4, 4e-4, 2.5e-4, 2e-4),
    },
}

LEARNING_RATES: Final[Mapping[str, Mapping[str, Mapping[str, float]]]] = {
    tokens: {
        family: {
            size: rate
            for size, rate in zip(("125M", "350M", "760M", "1.3B", "2.7B"), rates, strict=False)
            if rate is not None
        }
        for family, rates in families.items()
    }
    for tokens, families in _RATES.items()
}
"""Peak learning rates by token budget (`15B`, `300B`), family and size; absent where none was published."""


def learning_rate(family: str, size: str, tokens: str = "15B") -> float:
    """The published peak rate, and where there is none that of xLSTM at this size and budget.

    So does the paper: RWKV-5, RWKV-6 and HGRN2, whose rates it did not search, have xLSTM's at all five sizes, and
    every method of its Table 1 has xLSTM's 1e-3. `family` as in LEARNING_RATES. KeyError where xLSTM has none either.
    """
    rates = LEARNING_RATES[tokens]
    return rates.get(family, {}).get(size, rates["xlstm"][size])
