"""Documents, and how they are read from JSON lines and from rows of a table.

Bad input raises `CorpusError`, which names the file, the place and what would be right. Imports without torch.
"""

import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from numpy.typing import NDArray

from xlstm.data.locations import located
from xlstm.run.spec import IdType

MOST_DECOMPRESSED = 100 << 30
"""Bytes that a compressed file may grow to: a few kilobytes can be made to fill any disk."""
LONGEST_DOCUMENT = 1 << 30
"""Bytes of one line of JSON, or of a file that is one array: they are held in memory."""


class CorpusError(ValueError):
    """The corpus cannot be used as declared: says which file, where in it, and what would be right."""


@dataclass(frozen=True)
class Document:
    """One text, or its token ids. `key` decides its split where files do not; `source` names where it came from."""

    text: str
    key: str
    source: str = ""
    tokens: NDArray[Any] | None = None
    """The token ids of a corpus that holds them in place of text."""

    def __bool__(self) -> bool:
        return bool(self.text) if self.tokens is None else len(self.tokens) > 0

    @property
    def length(self) -> int:
        """Characters, or tokens where there is no text."""
        return len(self.text) if self.tokens is None else len(self.tokens)

    def part(self, start: int, stop: int) -> "Document":
        """A part of it, as a document of its own."""
        tokens = None if self.tokens is None else self.tokens[start:stop]
        return Document(self.text[start:stop], self.key, self.source, tokens)


@dataclass(frozen=True)
class Reading:
    """What a declaration says of how files are to be read, where they do not say it themselves."""

    text_key: str = "text"
    id_type: IdType | None = None


def found_at(path: str) -> str:
    """`located`, whose errors are the corpus's."""
    try:
        return located(path)
    except ValueError as error:
        raise CorpusError(str(error)) from None


def json_rows(path: Path, text_key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file of JSON, one a line, or the items of one array, each with where it stands. CorpusError."""
    with _open_maybe_compressed(path) as opened:
        number, first = 0, True
        lines = _lines(path, opened)
        for number, line in enumerate(lines, start=1):
            if line.isspace():
                continue
            if first and line.lstrip().startswith(b"["):
                yield from _array(path, itertools.chain([line], lines), text_key)
                return
            first = False
            where = f"{path}:{number}"
            yield _object(where, _parsed(where, line), text_key)
        if number == 0:
            raise CorpusError(f"{path}: the file is empty")


def _lines(path: Path, file: BinaryIO) -> Iterator[bytes]:
    """The lines of an opened file. CorpusError where it grows beyond what is held, or cannot be decompressed."""
    total, compressed = 0, not isinstance(getattr(file, "raw", None), io.FileIO)
    try:
        while line := file.readline(LONGEST_DOCUMENT + 1):
            total += len(line)
            if len(line) > LONGEST_DOCUMENT:
                raise CorpusError(f"{path}: a line of more than {LONGEST_DOCUMENT:,} bytes, the most that is read")
            if compressed and total > MOST_DECOMPRESSED:
                raise CorpusError(
                    f"{path}: {path.stat().st_size:,} bytes that decompress to more than {MOST_DECOMPRESSED:,}, "
                    "the most that is read; divide the file, or decompress it first"
                )
            yield line
    except (OSError, EOFError, zlib.error) as error:
        raise CorpusError(f"{path}: cannot be decompressed: {error}") from None


def _array(path: Path, lines: Iterable[bytes], text_key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    content = bytearray()
    for line in lines:
        content += line
        if len(content) > LONGEST_DOCUMENT:
            raise CorpusError(f"{path}: one array of more than {LONGEST_DOCUMENT:,} bytes; write one object per line")
    for number, row in enumerate(_parsed(str(path), bytes(content))):
        yield _object(f"{path}: item {number}", row, text_key)


def _parsed(where: str, content: bytes) -> Any:
    try:
        return json.loads(content)
    except UnicodeDecodeError as error:
        raise CorpusError(f"{where}: not UTF-8 at byte {error.start} of the line") from None
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{where}: not JSON: {error}") from None


def _object(where: str, row: Any, text_key: str) -> tuple[str, dict[str, Any]]:
    if not isinstance(row, dict):
        raise CorpusError(f"{where}: no object with `{text_key}`; found {type(row).__name__}")
    return where, row


def of_row(
    where: str,
    row: dict[str, Any],
    key: str,
    meta: Any,
    *,
    hint: str = "; say data.text_key where the text has another key",
) -> Document:
    """A row as a document: one whose text is null is none, as one whose text is empty.

    CorpusError, with the `hint`, where there is no text.
    """
    text = _value_of(row, key)
    if text is None:
        return Document("", key="")
    if not isinstance(text, str):
        found = f"found {', '.join(sorted(row))}"
        holds = found if text is _MISSING else f"it is of type {type(text).__name__}"
        raise CorpusError(f"{where}: no `{key}` of type string; {holds}{hint}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise CorpusError(f"{where}: `{key}` holds half of a surrogate pair, which UTF-8 cannot hold") from None
    return Document(text, key=text, source=_source_of(meta))


_MISSING = object()


def _value_of(row: Mapping[str, Any], key: str) -> Any:
    """The value of a key, or of a key within others where it holds dots. `_MISSING` where there is none.

    Within a null all is null.
    """
    if key in row:
        return row[key]
    value: Any = row
    for part in key.split("."):
        if value is None:
            return None
        if not isinstance(value, Mapping) or part not in value:
            return _MISSING
        value = value[part]
    return value


def _source_of(meta: Any) -> str:
    """SlimPajama's set name; its meta is a struct, a JSON string or the text of a Python dictionary."""
    if isinstance(meta, dict):
        name = meta.get("redpajama_set_name", "")
        return name if isinstance(name, str) else ""
    match = re.search(r"""["']redpajama_set_name["']\s*:\s*["'](\w+)["']""", meta) if isinstance(meta, str) else None
    return match[1] if match else ""


def _open_maybe_compressed(path: Path) -> BinaryIO:
    with open(path, "rb") as file:
        magic = file.read(4)
    if magic[:2] == b"\x1f\x8b":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if magic == b"\x28\xb5\x2f\xfd":
        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return open(path, "rb")
