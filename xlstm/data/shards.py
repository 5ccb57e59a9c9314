"""Token shards: the prepared tokens of a corpus as memory-mapped files, with an index of documents and a fingerprint.

A split is one stream of tokens, `EOD document EOD document … EOD`: with an end of document in front, every token of
every document has a context, and losses over a split cover all its text. The stream is cut into files of at most
`SHARD_TOKENS`. Beside them lies, for every document, the number of tokens and of UTF-8 bytes up to its end. The
fingerprint is a hash over the contents: shards that no longer have it are refused. Imports without torch.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from xlstm.run.identity import canonical
from xlstm.run.json_files import DamagedFileError, read_record
from xlstm.run.records import Record, write_json

FORMAT_VERSION = 1
SHARD_TOKENS = 1 << 28
_MANIFEST = "manifest.json"
_VERIFIED = "verified.json"


class DataDriftError(ValueError):
    """Prepared data differ from what was recorded: says which file, and what to do."""


class File(Record):
    """A file of the prepared data, with what its content must be."""

    name: str
    size: int
    sha256: str


class Split(Record):
    """One split of the prepared data."""

    shards: tuple[File, ...]
    index: File
    tokens: int
    """Length of the stream, with ends of documents."""
    documents: int
    text_bytes: int
    """UTF-8 bytes of the documents: the denominator of bits per byte."""
    sources: dict[str, int]
    """Documents by source, in the order of first appearance; the index refers to them by number."""


class Manifest(Record):
    """`manifest.json`: what was prepared, from what, and its fingerprint."""

    version: int = FORMAT_VERSION
    corpus: str
    revision: str
    tokenizer: str
    vocabulary: int
    end_of_document: int
    dtype: str
    splits: dict[str, Split]
    taken: tuple[str, ...] = ()
    """What each of the files read was taken for, and what splits share where that is counted, in lines for people."""

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits of a SHA-256 over the contents of all shards."""
        contents = {name: [f.sha256 for f in (*s.shards, s.index)] for name, s in self.splits.items()}
        payload = {"dtype": self.dtype, "end_of_document": self.end_of_document, "contents": contents}
        return hashlib.sha256(canonical(payload).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class TokenStream:
    """The tokens of one split as one array over its shards. Reads are copies; nothing is ever written."""

    shards: tuple[NDArray[Any], ...]
    text_bytes_at_end: NDArray[np.uint64]
    token_at_end: NDArray[np.uint64]
    source_of_document: NDArray[np.uint64]
    sources: tuple[str, ...]

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Position in the stream at which each shard starts, and the stream's length as the last."""
        return np.cumsum([0, *(len(shard) for shard in self.shards)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Tokens of [start, stop), across shards. IndexError outside the stream."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens [{start}, {stop}) of a stream of {len(self)}")
        if len(self.shards) == 1:
            return self.shards[0][start:stop]
        first = min(int(np.searchsorted(self.starts, start, side="right")), len(self.shards)) - 1
        if stop <= self.starts[first + 1]:
            offset = int(self.starts[first])
            return self.shards[first][start - offset : stop - offset]
        cut = int(self.starts[first + 1])
        return np.concatenate([self.read(start, cut), self.read(cut, stop)])

    def text_bytes_before(self, position: int) -> float:
        """UTF-8 bytes of text up to a position: exact where a document ends, in proportion to tokens within one."""
        ends = np.concatenate([[1], self.token_at_end])  # the stream begins with one end of document
        return float(np.interp(position, ends, np.concatenate([[0], self.text_bytes_at_end])))


@dataclass(frozen=True)
class PreparedData:
    """A folder of prepared data, opened and found unchanged."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path) -> "PreparedData":
        """Open and verify. FileNotFoundError where nothing is prepared; DataDriftError names a file that changed,
        DamagedFileError a manifest that cannot be read.

        Contents are hashed when a file's size or time differs from those of the last verification; else not again.
        """
        manifest = read_record(path / _MANIFEST, Manifest, _remedy(path))
        if manifest is None and path.exists():
            raise DataDriftError(f"{path / _MANIFEST}: the file is missing; {_remedy(path)}")
        if manifest is None:
            raise FileNotFoundError(f"{path}: nothing is prepared there; run `scaling data prepare`")
        _verify(path, manifest)
        return cls(path, manifest)

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    @property
    def vocabulary(self) -> int:
        """Token ids are below this number."""
        return self.manifest.vocabulary

    def stream(self, split: str) -> TokenStream:
        """The tokens of a split. ValueError with the known names for a split that is not there."""
        if split not in self.manifest.splits:
            raise ValueError(f"{self.path}: no split {split!r}; there are {', '.join(self.manifest.splits)}")
        entry = self.manifest.splits[split]
        index = np.fromfile(self.path / entry.index.name, dtype="<u8").reshape(-1, 3)
        shards = tuple(_map(self.path / shard.name, self.manifest.dtype) for shard in entry.shards)
        return TokenStream(shards, index[:, 1], index[:, 0], index[:, 2], tuple(entry.sources))


class SplitWriter:
    """Writes one split: shards as they fill, then the index."""

    def __init__(self, folder: Path, split: str, dtype: str, end_of_document: int) -> None:
        self.folder, self.split, self.dtype = folder, split, dtype
        self.end = np.array([end_of_document], dtype=dtype)
        self.shards: list[File] = []
        self.rows: list[tuple[int, int, int]] = []
        self.sources: dict[str, int] = {}
        self.tokens = self.text_bytes = 0
        self._file: BinaryIO | None = None
        self._room = 0

    def add(self, tokens: NDArray[Any], text_bytes: int, source: str) -> None:
        """Append one document and its end."""
        if not self.tokens:
            self._append(self.end)
        self._append(tokens.astype(self.dtype, copy=False))
        self._append(self.end)
        self.text_bytes += text_bytes
        number = list(self.sources).index(source) if source in self.sources else len(self.sources)
        self.sources[source] = self.sources.get(source, 0) + 1
        self.rows.append((self.tokens, self.text_bytes, number))

    def close(self) -> Split:
        """Finish the last shard and write the index."""
        self._finish_shard()
        path = self.folder / f"{self.split}.documents"
        np.array(self.rows, dtype="<u8").reshape(-1, 3).tofile(path)
        return Split(
            shards=tuple(self.shards),
            index=_describe(path),
            tokens=self.tokens,
            documents=len(self.rows),
            text_bytes=self.text_bytes,
            sources=self.sources,
        )

    def _append(self, tokens: NDArray[Any]) -> None:
        while len(tokens):
            if self._room == 0:
                self._finish_shard()
                self._file = open(self.folder / f"{self.split}-{len(self.shards):05d}.tokens", "wb", 1 << 20)  # noqa: SIM115
                self._room = SHARD_TOKENS
            assert self._file is not None
            part, tokens = tokens[: self._room], tokens[self._room :]
            self._file.write(part.tobytes())
            self._room -= len(part)
            self.tokens += len(part)

    def _finish_shard(self) -> None:
        if self._file is not None:
            self._file.close()
            self.shards.append(_describe(Path(self._file.name)))
            self._file = None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`, the last file of a preparation, and the note that its files were just verified."""
    _note_verified(folder, manifest)
    write_json(folder / _MANIFEST, manifest.model_dump(mode="json"))


def _map(path: Path, dtype: str) -> NDArray[Any]:
    # As a plain array: slices of a np.memmap cost microseconds each.
    return np.asarray(np.memmap(path, dtype=dtype, mode="r"))


def _describe(path: Path) -> File:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return File(name=path.name, size=path.stat().st_size, sha256=digest)


def damaged_beside(folder: Path, name: str, what: str) -> DamagedFileError:
    """That a file beside the shards is not what was prepared."""
    return DamagedFileError(folder / name, what, _remedy(folder))


def _verify(folder: Path, manifest: Manifest) -> None:
    try:
        noted = json.loads((folder / _VERIFIED).read_text())
    except (OSError, ValueError):
        noted = {}
    hashed = False
    for split in manifest.splits.values():
        for file in (*split.shards, split.index):
            path = folder / file.name
            if not path.is_file():
                raise DataDriftError(f"{path}: the file is missing; {_remedy(folder)}")
            if path.stat().st_size != file.size:
                raise DataDriftError(
                    f"{path}: {path.stat().st_size} bytes, recorded were {file.size}; {_remedy(folder)}"
                )
            if noted.get(file.name) != _stamp(path):
                if _describe(path).sha256 != file.sha256:
                    raise DataDriftError(f"{path}: its content is not what was prepared; {_remedy(folder)}")
                hashed = True
    if hashed:
        _note_verified(folder, manifest)


def _remedy(folder: Path) -> str:
    return f"delete {folder} and prepare the data again: scaling data prepare SWEEP"


def _note_verified(folder: Path, manifest: Manifest) -> None:
    names = [file.name for split in manifest.splits.values() for file in (*split.shards, split.index)]
    write_json(folder / _VERIFIED, {name: _stamp(folder / name) for name in names})


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]
