"""A mapping of a sweep file, and numbers as people write them in one. Imports without torch."""

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from xlstm.quantities import UNITS

_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)\s*([KMBT]?)")


def _count(value: Any) -> Any:
    """Whole numbers as people write them: 15B, 300K, 1e9."""
    if isinstance(value, str) and (match := _QUANTITY.fullmatch(value.strip())):
        value = float(match[1]) * UNITS.get(match[2], 1)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


AS_PEOPLE_WRITE_IT = BeforeValidator(_count, json_schema_input_type=int | float | str)

Count = Annotated[int, AS_PEOPLE_WRITE_IT, Field(gt=0)]
Positive = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """A mapping of the sweep file: strict about types and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
