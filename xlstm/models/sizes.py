"""From a family's name and a size to a configuration: the one table of sizes, and own dimensions."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from xlstm.models.configs import FAMILIES, ModelConfig, XLSTMConfig
from xlstm.models.naming import parse_family, place_slstm
from xlstm.models.published import DIMENSIONS

SIZES: Final = tuple(dict.fromkeys(size for sizes in DIMENSIONS.values() for size in sizes))
"""Names of the sizes, smallest first. `7B` is that of xlstm-large alone."""

_SET_ELSEWHERE: Final = ("family", "vocab_size")


def config_for(family: str, size: str | Mapping[str, Any], vocab_size: int) -> ModelConfig:
    """The configuration of `family` (such as `xlstm[7:1]`) at a named size, or at dimensions of one's own.

    Own dimensions are fields of the family's configuration; xLSTM's sLSTM blocks are placed by its ratio unless
    `slstm_at` says otherwise. ValueError lists the valid names for an unknown family, size or field, names the missing
    field, or says what the configuration itself refuses.
    """
    named = parse_family(family)
    cls = FAMILIES[named.base]
    if isinstance(size, str):
        sizes = DIMENSIONS.get(family if named.variant else named.base, {})
        if size not in sizes:
            raise ValueError(f"unknown size `{size}` of {named.base}; there are {', '.join(sizes) or 'none'}")
        dimensions = dict(sizes[size])
    else:
        dimensions = _checked(cls, size)
        if named.variant and dimensions.setdefault("variant", named.variant) != named.variant:
            raise ValueError(f"{family} is not of the variant {dimensions['variant']!r}")
    if cls is XLSTMConfig:
        depth = dimensions["num_blocks"]
        dimensions["slstm_at"] = tuple(dimensions.get("slstm_at", place_slstm(depth, named.num_mlstm, named.num_slstm)))
    config: ModelConfig = cls(vocab_size=vocab_size, **dimensions)
    return config


def _checked(cls: type[ModelConfig], dimensions: Mapping[str, Any]) -> dict[str, Any]:
    """The dimensions, all known, all of the right kind, none missing."""
    fields = {f.name: f for f in dataclasses.fields(cls) if f.name not in _SET_ELSEWHERE}
    unknown = [name for name in dimensions if name not in fields]
    if unknown:
        raise ValueError(f"unknown dimension `{unknown[0]}`; there are {', '.join(fields)}")
    missing = [name for name, f in fields.items() if f.default is dataclasses.MISSING and name not in dimensions]
    if missing:
        raise ValueError(f"missing dimension `{missing[0]}`; there are {', '.join(fields)}")
    for name, value in dimensions.items():
        if fields[name].type is int and (type(value) is not int or value < 1):
            raise ValueError(f"`{name}` must be a positive whole number, not {value!r}")
    return dict(dimensions)
