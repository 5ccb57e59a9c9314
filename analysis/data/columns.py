"""The columns of a frame of runs, and how the cells of a source that is not ours become them."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from typing import Any

import polars as pl

from analysis.data.numbers import plain_numbers, read_number
from analysis.data.selection import SEARCHED
from analysis.findings import RefusalError

SCHEMA = {
    "run_id": pl.String,
    "family": pl.String,
    "size": pl.String,
    "seed": pl.Int64,
    "parameters": pl.Float64,
    "non_embedding": pl.Float64,
    "non_embedding_with_head": pl.Float64,
    "tokens": pl.Float64,
    "flops": pl.Float64,
    "loss": pl.Float64,
    "bits_per_byte": pl.Float64,
    "evaluation": pl.String,
    "tokenizer": pl.String,
    "schedule": pl.String,
    "data": pl.String,
    "context_length": pl.Int64,
    "precision": pl.String,
    "computed_on": pl.String,
    "cluster": pl.String,
    "state": pl.String,
    "quality": pl.String,
    "excluded": pl.String,
}
NUMBERS = ("parameters", "tokens", "flops", "loss")
"""What a law is fitted to: a row whose cell of one of these is no number is left out, with the cell."""
NO_FAMILY = "all"
"""The family of rows that state none."""
ROW_OF_A_NAME = r"^(.*) \(row \d+\)$"
"""The key of a row of a table whose name other rows have, too, as `unique_keys` makes it."""
MEASURES = ("loss", "bits_per_byte")
"""Numbers that are no counts: a comma in one may be a decimal comma."""
EXTRA = dict.fromkeys(("unique_tokens", "weight", "vocabulary_parameters", "experts", "granularity"), pl.Float64)
"""Columns that a table may have beside those of `SCHEMA`, for the forms and the fits that need them."""


@dataclass(frozen=True)
class Reading:
    """How the columns of a source that is not ours are read."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """Our names to the source's own, such as `{"parameters": "Model Size"}`, or `{"parameters": "params.n"}`.

    A name that is none of ours is that of a further column of numbers, such as a benchmark's error.
    """
    decimal_comma: bool = False
    """Whether 3,857 is 3.857."""
    further: tuple[str, ...] = ()
    """Columns of numbers that are kept under their own names, where they are there: the inputs of a form."""
    whole: bool = False
    """Whether all other columns of a table are kept, too, as numbers or texts."""

    def __post_init__(self) -> None:
        for name in self.columns:
            if name not in SCHEMA | EXTRA and (meant := get_close_matches(name, SCHEMA | EXTRA, n=1, cutoff=0.8)):
                raise RefusalError("unknown-column", f"{name!r} is none of ours; did you mean `{meant[0]}`?")

    @property
    def kinds(self) -> dict[str, Any]:
        """The columns that are looked for, by our names, with what they hold."""
        return dict.fromkeys((*self.columns, *self.further), pl.Float64) | EXTRA | SCHEMA

    def theirs(self, ours: str) -> str:
        """What a table calls a column of ours."""
        return self.columns.get(ours, ours)

    def number(self, ours: str, cell: object, *, grouped: bool = True) -> float | None:
        """The number in a cell of a column of ours; None for an empty cell. ValueError for what is no number."""
        count = ours in SCHEMA | EXTRA and ours not in MEASURES
        return read_number(cell, count=count, decimal_comma=self.decimal_comma, grouped=grouped)


def completed(frame: pl.DataFrame, source: str, listed: str = "") -> pl.DataFrame:
    """The frame with every column of `SCHEMA`: of parameters, tokens and flops, one that is absent follows by 6ND.

    RefusalError where two are absent, with what is `listed` as the columns of the source.
    """
    n, d, c = (pl.col(name) for name in ("parameters", "tokens", "flops"))
    thirds = {"parameters": c / (6 * d), "tokens": c / (6 * n), "flops": 6 * n * d}
    missing = [name for name in thirds if name not in frame.columns]
    if len(missing) > 1:
        raise RefusalError(
            "missing-column",
            f"{source}: two of parameters, tokens and flops are needed; no column for {', '.join(missing)}; "
            f"name them with --columns{f'; there are: {listed}' if listed else ''}",
        )
    frame = frame.with_columns(pl.lit(None, dtype=pl.Float64).alias(name) for name in missing)
    # A cell that is no number has its reason already; one that is empty follows from the other two.
    frame = frame.with_columns(pl.coalesce(name, third).alias(name) for name, third in thirds.items())
    kinds = SCHEMA | {name: kind for name, kind in EXTRA.items() if name in frame.columns}
    absent = [pl.lit(None, dtype=kind).alias(name) for name, kind in kinds.items() if name not in frame.columns]
    frame = frame.with_columns(*absent).with_columns(pl.col("family").fill_null(NO_FAMILY))
    others = [name for name in frame.columns if name not in kinds]
    return frame.select(*(pl.col(name).cast(kind) for name, kind in kinds.items()), *others)


def numbers_or_texts(name: str, cells: Sequence[object], number: Callable[[object], float | None]) -> pl.Series:
    """A column that nobody named: numbers where every cell is one or empty, else texts."""
    try:
        return pl.Series(name, [number(cell) for cell in cells], pl.Float64)
    except ValueError:
        return _texts(name, cells)


def _texts(name: str, cells: Sequence[object]) -> pl.Series:
    return pl.Series(name, [as_text(cell) for cell in cells], pl.String)


def column_of(
    ours: str,
    cells: Sequence[object],
    reading: Reading,
    reasons: list[str | None],
    *,
    grouped: bool = True,
    lines: Sequence[int] = (),
) -> pl.Series:
    """A column of ours as SCHEMA has it: whole numbers, texts, or numbers.

    A number is null where a cell is none; in a column that a law is fitted to, `reasons` then say so. They name the
    line where the rows are `lines` of a file.
    """
    kind = reading.kinds[ours]
    if kind != pl.Float64:
        return _whole_numbers(ours, cells) if kind == pl.Int64 else _texts(ours, cells)
    if not reading.decimal_comma and (plain := plain_numbers(cells)) is not None:
        return pl.Series(ours, plain, pl.Float64)
    numbers: list[float | None] = []
    for row, cell in enumerate(cells):
        try:
            numbers.append(reading.number(ours, cell, grouped=grouped))
        except ValueError:
            numbers.append(None)
            if ours in NUMBERS and reasons[row] is None:
                comma = not reading.decimal_comma and isinstance(cell, str) and "," in cell
                hint = "; if its comma is a decimal comma, say --decimal-comma" if comma else ""
                where = f" in line {lines[row]}" if lines else ""
                reasons[row] = f"{ours} is no number ({str(as_text(cell))[:40]!r}{where}{hint})"
    return pl.Series(ours, numbers, pl.Float64)


def number_or_none(cell: object) -> float | None:
    try:
        return read_number(cell, count=True)
    except ValueError:
        return None


def _whole_numbers(ours: str, cells: Sequence[object]) -> pl.Series:
    """Seeds or context lengths; where one is none, distinct texts are numbered: only which are equal matters."""
    words = [as_text(cell) for cell in cells]
    numbers = [_whole(word) for word in words]
    if any(word is not None and number is None for word, number in zip(words, numbers, strict=True)):
        order = {word: index for index, word in enumerate(dict.fromkeys(words))}
        numbers = [None if word is None else order[word] for word in words]
    return pl.Series(ours, numbers, pl.Int64)


def _whole(word: str | None) -> int | None:
    if word is not None and word.isdecimal() and len(word) < 19:
        return int(word)
    number = number_or_none(word)
    return int(number) if number is not None and number.is_integer() and abs(number) < 2**53 else None


def axis_values(axis: str, cells: Sequence[object], reading: Reading) -> pl.Series:
    """The values of a searched axis: numbers where all of them are, else texts."""
    number = partial(read_number, count=True, decimal_comma=reading.decimal_comma)
    return numbers_or_texts(SEARCHED + axis, cells, number)


def as_text(cell: object) -> str | None:
    """A cell as text, which can be written as UTF-8; None for an empty one."""
    if cell is None or cell == "":
        return None
    text = cell.decode("latin-1") if isinstance(cell, bytes) else str(cell)
    return text.encode("utf-8", "replace").decode()


def unique_keys(names: Sequence[object], keys: Sequence[str], named: Sequence[str] | None = None) -> list[str]:
    """Each name that is there once; another with its key in brackets, and the key where there is no name.

    `named` are the keys as they stand alone.
    """
    words = [as_text(name) for name in names]
    times = Counter(words)
    if len(times) == len(words) and None not in times:
        return [word for word in words if word is not None]
    alone = keys if named is None else named
    found = [
        own if word is None else word if times[word] == 1 else f"{word} ({key})"
        for word, key, own in zip(words, keys, alone, strict=True)
    ]
    return found if len(set(found)) == len(found) else list(alone)
