"""From a family's name and a size to a configuration: the one table of sizes, and own dimensions."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Final, Literal, get_args, get_origin

from xlstm.models.config_base import Ends
from xlstm.models.configs import FAMILIES, ModelConfig, XLSTMConfig
from xlstm.models.naming import parse_family, place_slstm
from xlstm.models.published import DIMENSIONS

SIZES: Final = tuple(dict.fromkeys(size for sizes in DIMENSIONS.values() for size in sizes))
"""Names of the sizes, smallest first. `7B` is that of xlstm-large alone."""

_SET_ELSEWHERE: Final = ("family", *Ends.__dataclass_fields__)


def config_for(family: str, size: str | Mapping[str, Any], vocab_size: int, **ends: Any) -> ModelConfig:
    """The configuration of `family` (such as `xlstm[7:1]`) at a named size, or at dimensions of one's own.

    `ends` are the other fields of `Ends`, for tasks with real numbers or classes.

    Own dimensions are fields of the family's configuration; with `size` among them they change that named size, as in
    {"size": "350M", "convolution": False}. xLSTM's sLSTM blocks are placed by its ratio unless `slstm_at` says
    otherwise. ValueError lists the valid names for an unknown family, size or field, names the missing field, or says
    what the configuration itself refuses.
    """
    named = parse_family(family)
    cls = FAMILIES[named.base]
    given = {"size": size} if isinstance(size, str) else dict(size)
    base = _named(family if named.variant else named.base, given.pop("size")) if "size" in given else {}
    dimensions = _checked(cls, {**base, **given})
    if named.variant and dimensions.setdefault("variant", named.variant) != named.variant:
        raise ValueError(f"{family} is not of the variant {dimensions['variant']!r}")
    if cls is XLSTMConfig:
        placed = place_slstm(dimensions["num_blocks"], named.num_mlstm, named.num_slstm)
        dimensions["slstm_at"] = tuple(dimensions.get("slstm_at", placed))
    config: ModelConfig = cls(vocab_size=vocab_size, **ends, **dimensions)
    return config


def _named(family: str, size: Any) -> Mapping[str, Any]:
    sizes = DIMENSIONS.get(family, {})
    if size not in sizes:
        raise ValueError(f"unknown size `{size}` of {family}; there are {', '.join(sizes) or 'none'}")
    return sizes[size]


def _checked(cls: type[ModelConfig], dimensions: Mapping[str, Any]) -> dict[str, Any]:
    """The dimensions, all known, all of the right kind, none missing."""
    fields = {f.name: f for f in dataclasses.fields(cls) if f.name not in _SET_ELSEWHERE}
    unknown = [name for name in dimensions if name not in fields]
    if unknown:
        raise ValueError(f"unknown dimension `{unknown[0]}`; there are {', '.join(fields)}")
    missing = [name for name, f in fields.items() if f.default is dataclasses.MISSING and name not in dimensions]
    if missing:
        raise ValueError(f"missing dimension `{missing[0]}`; there are {', '.join(fields)}")
    return {name: _checked_value(name, fields[name].type, value) for name, value in dimensions.items()}


def _checked_value(name: str, kind: Any, value: Any) -> Any:
    """The value of one field, or ValueError saying which values the field takes."""
    if kind is int:
        if type(value) is not int or value < 1:
            raise ValueError(f"`{name}` must be a positive whole number, not {value!r}")
    elif kind is bool:
        if type(value) is not bool:
            raise ValueError(f"`{name}` must be true or false, not {value!r}")
    elif get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError(f"`{name}` must be one of {', '.join(get_args(kind))}, not {value!r}")
    elif get_origin(kind) is tuple:
        if not isinstance(value, list | tuple) or any(type(item) is not int for item in value):
            raise ValueError(f"`{name}` must be a list of whole numbers, not {value!r}")
        return tuple(value)
    elif not (value is None and type(None) in get_args(kind)):  # float, or float | None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"`{name}` must be a number, not {value!r}")
        return float(value)
    return value
