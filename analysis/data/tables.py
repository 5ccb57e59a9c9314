"""Tables as people have them, by the names of their columns: CSV, TSV, JSON, JSON lines, Parquet and Arrow.

Each may be compressed by gzip or Zstandard, which the first bytes tell. Only the columns that are asked for are looked
at: what stands in another never matters. Nothing is typed here; a cell is a text, or whatever number a typed format
holds. Text is UTF-8, or UTF-16 with its mark, and Latin-1 where it is neither.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import dropwhile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet

from analysis.findings import RefusalError

MAXIMUM_BYTES = 2**30
"""Of text, and of a compressed file once it is decompressed."""
MAXIMUM_ROWS = 2_000_000
MOST_CELLS = 10_000_000
"""Of columns that nobody named, beyond which they are left in the file."""
COMPRESSIONS = (".gz", ".zst")
SEPARATORS = (",", ";", "\t", "|")
"""What may separate the cells of a .csv: the one by which most of the wanted columns are found."""
_GZIP, _ZSTANDARD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_UNREADABLE = (
    ArithmeticError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RecursionError,
    ValueError,
    csv.Error,
    pa.ArrowException,
    zlib.error,
)


@dataclass(frozen=True)
class Table:
    """Some columns of a file."""

    names: list[str]
    """All columns that there are."""
    cells: dict[str, list[Any]]
    """Those that were asked for and are there, one cell a row; None for an empty one."""
    height: int
    commas_group: bool = True
    """Whether a comma in a count stands between groups of digits: where semicolons separate cells, it may not."""
    lines: Sequence[int] = ()
    """Of the file, in which each row ends; nothing where rows are no lines."""

    @property
    def listed(self) -> str:
        """The names of its columns, for a message."""
        return ", ".join(self.names[:40]) + (", …" if len(self.names) > 40 else "")


def format_of(name: str) -> str | None:
    """The ending that says how a file is read, without that of a compression; None where it is no table's."""
    path = Path(name)
    if path.suffix.lower() in COMPRESSIONS:
        path = path.with_suffix("")
    ending = path.suffix.lower()
    return ending if ending in _READERS else None


def known_formats() -> str:
    """The endings of tables, for a message."""
    return f"{', '.join(_READERS)}, each also with {' or '.join(COMPRESSIONS)}"


def read(path: Path, wanted: Collection[str]) -> Table:
    """The wanted columns of a file. RefusalError names the file that is unreadable, and the line where there is one."""
    ending = format_of(path.name)
    if ending is None:
        raise RefusalError("unknown-format", f"{path}: tables are read as {known_formats()}")
    try:
        return _READERS[ending](path, wanted)
    except RefusalError:
        raise
    except FileNotFoundError:
        raise RefusalError("no-such-file", f"{path}: no such file") from None
    except _UNREADABLE as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise RefusalError("unreadable-table", f"{path}: not readable as {ending}: {first}") from None


def others(path: Path, names: Sequence[str]) -> dict[str, list[Any]]:
    """The cells of columns that nobody asked for, of those that are readable; none where they are over MOST_CELLS."""
    distinct = [name for name in names if names.count(name) == 1]
    typed = format_of(path.name) in (".parquet", ".arrow", ".feather")
    found: dict[str, list[Any]] = {}
    for wanted in [{name} for name in distinct] if typed else [set(distinct)]:
        try:
            found |= read(path, wanted).cells
        except RefusalError:
            continue  # what stands in a column that is not named never matters
    return found if sum(map(len, found.values())) <= MOST_CELLS else {}


def holds_one_mapping(path: Path) -> bool:
    """Whether a JSON file is one object with a `name`, as a sweep is, and no table."""
    try:
        document = json.loads(_text(path))
    except _UNREADABLE:
        return False
    return isinstance(document, dict) and isinstance(document.get("name"), str)


def _bytes(path: Path) -> bytes:
    """The content of a file, decompressed. ValueError where it is more than MAXIMUM_BYTES."""
    with open(path, "rb") as file:
        magic = file.read(4)
        file.seek(0)
        if magic.startswith(_GZIP):
            content = gzip.GzipFile(fileobj=file).read(MAXIMUM_BYTES + 1)
        elif magic == _ZSTANDARD:
            content = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd").read(MAXIMUM_BYTES + 1)
        else:
            content = file.read(MAXIMUM_BYTES + 1)
    if len(content) > MAXIMUM_BYTES:
        raise ValueError(f"more than {MAXIMUM_BYTES >> 30} GiB of text")
    return content


def _encoding(content: bytes) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    try:
        content.decode()
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8-sig"


def _text(path: Path) -> str:
    content = _bytes(path)
    return content.decode(_encoding(content))


def _read_separated(path: Path, wanted: Collection[str], separators: Sequence[str]) -> Table:
    content = _bytes(path)
    encoding = _encoding(content)

    def rows(separator: str) -> tuple[Any, Iterator[list[str]]]:
        """The reader, which counts lines, and what it reads from the line of names on."""
        lines = io.TextIOWrapper(io.BytesIO(content), encoding, newline="")
        reader = csv.reader(lines, delimiter=separator, skipinitialspace=separator != "\t")
        return reader, dropwhile(_is_no_header, filter(None, reader))

    headers = {one: [cell.strip() for cell in next(rows(one)[1], [])] for one in separators}
    separator = max(separators, key=lambda one: len(set(headers[one]) & set(wanted)))
    names = headers[separator]
    if not names:
        raise RefusalError("empty-table", f"{path}: the file is empty; the first line names the columns")
    reader, found = rows(separator)
    next(found)
    places = _places(path, names, wanted)
    columns: dict[str, list[Any]] = {name: [] for name in places}
    lines: list[int] = []
    for row in found:
        if len(row) != len(names) and (len(row) < len(names) or any(cell.strip() for cell in row[len(names) :])):
            raise RefusalError(
                "ragged-table",
                f"{path}:{reader.line_num}: {len(row)} cells, the first line names {len(names)}; "
                "a cell that holds the separator stands in double quotes",
            )
        lines.append(reader.line_num)
        _check_height(len(lines))
        for name, place in places.items():
            columns[name].append(row[place].strip() or None)
    return Table(names, columns, len(lines), commas_group=separator != ";", lines=lines)


def _is_no_header(row: Sequence[str]) -> bool:
    """Whether a line above the names is a comment, blank, or Excel's word for the separator, such as `sep=;`."""
    first = row[0].strip().lower()
    return first.startswith("#") or (first.startswith("sep=") and len(first) < 6) or not any(map(str.strip, row))


def _read_json(path: Path, wanted: Collection[str]) -> Table:
    """One array of objects, one object of columns, or lines of objects."""
    text = _text(path)
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise
        return _from_lines(path, text, wanted)
    if isinstance(document, dict):
        columns = {name: list(cells.values()) if isinstance(cells, dict) else cells for name, cells in document.items()}
        if not columns or not all(isinstance(cells, list) for cells in columns.values()):
            return _from_records(path, [document], wanted)
        height = max(len(cells) for cells in columns.values())
        if any(len(columns[name]) != height for name in columns if name in wanted):
            raise RefusalError("ragged-table", f"{path}: the columns are of different lengths")
        _check_height(height)
        return Table(list(columns), {name: columns[name] for name in columns if name in wanted}, height)
    if not isinstance(document, list) or not all(isinstance(one, dict) for one in document):
        raise RefusalError("unreadable-table", f"{path}: no array of objects, and no object of columns")
    return _from_records(path, document, wanted)


def _read_json_lines(path: Path, wanted: Collection[str]) -> Table:
    return _from_lines(path, _text(path), wanted)


def _from_lines(path: Path, text: str, wanted: Collection[str]) -> Table:
    records: list[dict[str, Any]] = []
    lines: list[int] = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise RefusalError("unreadable-table", f"{path}:{number}: no JSON: {str(error)[:200]}") from None
            if not isinstance(record, dict):
                raise RefusalError("unreadable-table", f'{path}:{number}: a line is one object, such as {{"loss": 3}}')
            records.append(record)
            lines.append(number)
            _check_height(len(records))
    return replace(_from_records(path, records, wanted), lines=lines)


def _from_records(path: Path, records: Sequence[Mapping[str, Any]], wanted: Collection[str]) -> Table:
    """Objects as rows; `a.b` names what stands in an object within the object."""
    if not records:
        raise RefusalError("empty-table", f"{path}: the file holds no rows")
    names = list(dict.fromkeys(name for record in records for name in record))
    cells = {name: [_at(record, name) for record in records] for name in wanted}
    present = set(names)
    kept = {
        name: column for name, column in cells.items() if name in present or any(cell is not None for cell in column)
    }
    return Table(list(dict.fromkeys([*names, *kept])), kept, len(records))


def _at(record: Mapping[str, Any], name: str) -> Any:
    if name in record:
        return record[name]
    first, dot, rest = name.partition(".")
    within = record.get(first) if dot else None
    return _at(within, rest) if isinstance(within, dict) else None


def _read_parquet(path: Path, wanted: Collection[str]) -> Table:
    file = pyarrow.parquet.ParquetFile(_opened(path))
    _check_height(file.metadata.num_rows)
    names = file.schema_arrow.names
    places = _places(path, names, wanted)
    read = file.read(columns=list(places), use_threads=False) if places else None
    return _from_arrow(names, read, places, file.metadata.num_rows)


def _read_arrow(path: Path, wanted: Collection[str]) -> Table:
    """A file or a stream of record batches, or Feather's first version."""
    source = _opened(path)
    magic = bytes(source.read(6))
    source.seek(0)
    if magic.startswith(b"FEA1"):
        whole = pyarrow.feather.read_table(source, memory_map=False)
        places = _places(path, whole.column_names, wanted)
        return _from_arrow(whole.column_names, whole.select(list(places)), places, whole.num_rows)
    opened = pa.ipc.open_file(source) if magic == b"ARROW1" else pa.ipc.open_stream(source)
    places = _places(path, opened.schema.names, wanted)
    batches, height = [], 0
    number = range(opened.num_record_batches) if magic == b"ARROW1" else None
    for batch in opened if number is None else map(opened.get_batch, number):
        height += batch.num_rows
        _check_height(height)
        batches.append(batch.select(list(places.values())))
    schema = pa.schema([opened.schema.field(place) for place in places.values()])
    return _from_arrow(opened.schema.names, pa.Table.from_batches(batches, schema), places, height)


def _opened(path: Path) -> Any:
    """The file, from which only what is asked for is read; decompressed in memory where it is compressed."""
    with open(path, "rb") as file:
        magic = file.read(4)
    if magic.startswith(_GZIP) or magic == _ZSTANDARD:
        return pa.BufferReader(_bytes(path))
    return pa.OSFile(str(path))


def _from_arrow(names: list[str], read: Any, places: Mapping[str, int], height: int) -> Table:
    if read is None or not places:
        return Table(names, {}, height)
    read.validate(full=True)
    return Table(names, {name: read.column(name).to_pylist() for name in places}, height)


def _places(path: Path, names: Sequence[str], wanted: Collection[str]) -> dict[str, int]:
    """Where the wanted columns stand. RefusalError where one of them is there twice."""
    for name in wanted:
        if names.count(name) > 1:
            raise RefusalError("column-twice", f"{path}: there are {names.count(name)} columns {name!r}; rename one")
    return {name: place for place, name in enumerate(names) if name in wanted}


def _check_height(height: int) -> None:
    if height > MAXIMUM_ROWS:
        raise ValueError(f"more than {MAXIMUM_ROWS:,} rows")


_READERS: Mapping[str, Callable[[Path, Collection[str]], Table]] = {
    ".csv": partial(_read_separated, separators=SEPARATORS),
    ".tsv": partial(_read_separated, separators=("\t",)),
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
    ".feather": _read_arrow,
}
