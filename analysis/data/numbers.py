"""Numbers as people write them in tables: 12M, 1.5B, 1,000,000, 1e9 and, where it is stated, decimal commas."""

import re
from collections.abc import Sequence

from xlstm.quantities import UNITS

ABSENT = frozenset({"", "na", "n/a", "null", "none", "-", "–", "—"})
"""How a cell says, in lower case, that there is nothing."""
_GROUPED = {
    mark: re.compile(rf"[+-]?\d{{1,3}}(?:([{groups}])\d{{3}})(?:\1\d{{3}})*(?:{re.escape(mark)}\d*)?")
    for mark, groups in ((".", ",'’_ \u00a0\u2009\u202f"), (",", ".'’_ \u00a0\u2009\u202f"))
}
"""Digits in groups of three, by the mark of decimals."""
_WITH_UNIT = re.compile(r"(.*\d[.,]?)\s*([kmbgt])", re.IGNORECASE)
_OF_PLAIN = frozenset("0123456789.eE+-")
_PLAIN = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|[+-]?inf(?:inity)?|nan", re.IGNORECASE | re.ASCII)


def plain_numbers(cells: Sequence[object]) -> list[float] | None:
    """The numbers of a column in which each cell is one, plainly written or of a typed format; else None.

    They are those of `read_number` where commas mark no decimals, in a tenth of its time: for tables of many rows.
    """
    kinds = set(map(type, cells))
    if kinds == {str} and not _OF_PLAIN.issuperset("".join(cells)):  # type: ignore[arg-type]
        return None
    try:
        return list(map(float, cells)) if kinds <= {str} or kinds <= {float} else None  # type: ignore[arg-type]
    except ValueError:
        return None


def read_number(
    cell: object, *, count: bool = False, decimal_comma: bool = False, grouped: bool = True
) -> float | None:
    """The number in a cell; None for an empty one. ValueError for what is no number.

    Of a `count` (parameters, tokens, FLOPs) alone units are read, and digits in groups of three unless not `grouped`:
    a loss of 3,857 may be 3.857. With `decimal_comma` 3,857 is 3.857 everywhere, and points group digits.
    """
    if cell is None:
        return None
    if isinstance(cell, bool):
        raise ValueError(f"{cell!r} is no number")
    if not isinstance(cell, str):
        try:
            return float(cell)  # type: ignore[arg-type]
        except OverflowError:
            return float("inf")
        except TypeError:
            raise ValueError(f"{cell!r} is no number") from None
    text = cell.strip()
    if not (decimal_comma and "." in text):
        if _PLAIN.fullmatch(text):
            return float(text)
        if text.lower() in ABSENT:
            return None
    mark, factor = "," if decimal_comma else ".", 1.0
    if count:
        if unit := _WITH_UNIT.fullmatch(text):
            text, factor = unit[1].strip(), UNITS[unit[2].upper()]
        if grouped and (match := _GROUPED[mark].fullmatch(text)):
            text = text.replace(match[1], "")
    if decimal_comma:
        text = text.replace(".", "?").replace(",", ".")
    if not _PLAIN.fullmatch(text):
        raise ValueError(f"{cell.strip()!r} is no number")
    return float(text) * factor
