"""The identity of what is hashed: one JSON text of plain values, and which fields take part in it.

A run is named by the hash of its physics, an evaluation by that of what makes two losses comparable. Imports without
torch.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

SCHEMA_VERSION = 1
"""Version of the hashed payload: raised when the meaning of a physics field changes."""

HASHED_AT_THEIR_DEFAULTS = {
    "Physics": "task schedule precision seed",
    "Data": "tokenizer documents",
    "Optimizer": "name beta1 beta2 epsilon weight_decay gradient_clip",
    "Schedule": "kind warmup_steps decay_steps final_ratio",
    "XLSTMConfig": (
        "slstm_at num_heads mlstm_block input_gate forget_gate input_gate_activation normalizer convolution"
        " learnable_skip slstm_gates slstm_feedforward_factor recurrent_gradient_clip family"
    ),
    "XLSTMLargeConfig": "gate_soft_cap logit_soft_cap family",
    "LlamaConfig": "rope_theta family",
    "GPTConfig": "family",
    "MambaConfig": "state_dim family",
    "RWKV4Config": "family",
    "LSTMConfig": "variant family",
    "Evaluation": "name sequences",
}
"""The fields with defaults that the first version of what is hashed had. The table is closed: a field that is added
later is left out while it has its default, so that a run or an evaluation without it is the one it was before."""


def canonical(value: Any) -> str:
    """The one JSON text of a plain value: sorted keys, no blanks. TypeError or ValueError for what has none."""
    _refuse_without_canonical_form(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def differences(left: Any, right: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted path, left, right) for each leaf in which two plain values differ; an absent side is None."""
    if isinstance(left, dict) and isinstance(right, dict):
        for key in sorted(left.keys() | right.keys()):
            yield from differences(left.get(key), right.get(key), f"{path}.{key}" if path else key)
    elif left != right:
        yield path, left, right


def without_later_defaults(part: Any, content: dict[str, Any]) -> dict[str, Any]:
    """The content of a part of what is hashed without the fields that `HASHED_AT_THEIR_DEFAULTS` leaves out.

    A field that can have one value only tells a class from others, as `family` does, and always stays.
    """
    hashed = {name for kind in type(part).__mro__ for name in HASHED_AT_THEIR_DEFAULTS.get(kind.__name__, "").split()}
    fields = _fields(part)
    hashed_content = {}
    for name, value in content.items():
        stated = getattr(part, name)
        annotation, default = fields[name]
        names_its_class = get_origin(annotation) is Literal and len(get_args(annotation)) == 1
        if stated == default and name not in hashed and not names_its_class:
            continue
        nested = isinstance(stated, BaseModel) or dataclasses.is_dataclass(stated)
        hashed_content[name] = without_later_defaults(stated, value) if nested else value
    return hashed_content


def _fields(part: Any) -> dict[str, tuple[Any, Any]]:
    """The type and the default of each field; a default that equals no value where there is none."""
    if isinstance(part, BaseModel):
        models = type(part).model_fields
        return {
            name: (field.annotation, field.get_default(call_default_factory=True)) for name, field in models.items()
        }
    return {
        field.name: (
            field.type,
            field.default if field.default_factory is dataclasses.MISSING else field.default_factory(),
        )
        for field in dataclasses.fields(part)
    }


def digest(value: Any) -> str:
    """Eight hex digits of the SHA-256 of a plain value's canonical text; errors as `canonical`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:8]


def _refuse_without_canonical_form(value: Any) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"a key of type {type(key).__name__} has no canonical form")
            _refuse_without_canonical_form(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _refuse_without_canonical_form(item)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} has no canonical form")
    elif dataclasses.is_dataclass(value) or not isinstance(value, str | bool | int | float | None):
        raise TypeError(f"{type(value).__name__} has no canonical form")
