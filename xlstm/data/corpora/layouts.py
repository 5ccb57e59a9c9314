"""Token files that people already have: nanoGPT's headerless ids, llm.c's, and Megatron's pairs of .bin and .idx.

A file is recognised by what it begins with and what lies beside it; what a header says is checked against the size of
the file, and the type of headerless ids, which no file states, against what they hold. All integers are little-endian.
Imports without torch.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xlstm.data.corpora.documents import CorpusError
from xlstm.data.tokenizers import token_dtype
from xlstm.run.spec import IdType

_LLMC = {(20240520, 1): "<u2", (20240801, 7): "<u4"}
"""(magic, version) of llm.c and modded-nanogpt, with the type of the ids."""
_LLMC_EVALUATION = 20240522
_LLMC_HEADER_BYTES = 1024
_MEGATRON = b"MMIDIDX\x00\x00"
_FAIRSEQ = b"TNTIDX\x00\x00"
_MEGATRON_TYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_MEGATRON_HEADER_BYTES = 34
_NUMPY = b"\x93NUMPY"
_ID_TYPES: dict[IdType, str] = {"uint8": "<u1", "uint16": "<u2", "uint32": "<u4", "int32": "<i4", "int64": "<i8"}
_BLOCK = 1 << 24
"""Ids that are looked at together; a multiple of 8, so that a block begins where an id of any type does."""
_FEWEST_TO_JUDGE = 4
"""Ids of which every second is 0 that are too many for chance."""


class LayoutError(CorpusError):
    """A token file is not what it should be: says which, and what is wrong."""


def documents(
    path: Path, vocabulary: int, end_of_document: int, id_type: IdType | None = None
) -> Iterator[NDArray[Any]]:
    """The documents of a token file, without their ends. LayoutError names the file and what is wrong.

    Megatron's index says where documents lie; elsewhere they are what stands between ends of document. `id_type` is
    that of headerless ids: left open it is the narrowest that holds the vocabulary, from 16 bits on, and refused where
    zeros stand between all ids, as they do in wider ones.
    """
    index = path.with_suffix(".idx")
    if index.is_file():
        yield from _megatron(path, index, vocabulary, end_of_document, id_type)
        return
    tokens = _stream(path, vocabulary, id_type)
    ends = np.flatnonzero(tokens == end_of_document)
    for start, stop in zip([0, *(ends + 1)], [*ends, len(tokens)], strict=True):
        if stop > start:
            yield tokens[start:stop]


def described(path: Path, vocabulary: int, id_type: IdType | None = None) -> str:
    """The layout and the type of the ids of a file that `documents` reads, such as `headerless uint16`."""
    index = path.with_suffix(".idx")
    if index.is_file():
        with open(index, "rb") as file:
            return f"Megatron's {np.dtype(_MEGATRON_TYPES[file.read(18)[17]]).name}"
    with open(path, "rb") as file:
        magic, version = np.frombuffer(file.read(8).ljust(8, b"\0"), dtype="<i4").tolist()
    if (magic, version) in _LLMC:
        return f"llm.c's {np.dtype(_LLMC[magic, version]).name}"
    return f"headerless {_assumed(vocabulary, id_type).name}"


def _assumed(vocabulary: int, id_type: IdType | None) -> np.dtype[Any]:
    """The type of headerless ids: the one that is stated, else the narrowest that holds them, from 16 bits on."""
    if id_type is not None:
        return np.dtype(_ID_TYPES[id_type])
    return np.dtype("<u2" if token_dtype(vocabulary) == "<u1" else token_dtype(vocabulary))


def _stream(path: Path, vocabulary: int, id_type: IdType | None) -> NDArray[Any]:
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(_LLMC_HEADER_BYTES)
    if start.startswith(_NUMPY):
        raise LayoutError(f"{path}: a NumPy file; token files are headerless, llm.c's or Megatron's")
    magic, version, count = np.frombuffer(start.ljust(12, b"\0")[:12], dtype="<i4").tolist()
    if magic == _LLMC_EVALUATION:
        raise LayoutError(f"{path}: an evaluation file of llm.c (magic {magic}), not a stream of tokens")
    if magic in {known for known, _ in _LLMC}:
        if (magic, version) not in _LLMC:
            raise LayoutError(f"{path}: llm.c's magic {magic} with version {version}; known are {list(_LLMC)}")
        dtype = np.dtype(_LLMC[magic, version])
        expected = _LLMC_HEADER_BYTES + count * dtype.itemsize
        if size != expected:
            raise LayoutError(f"{path}: {size} bytes; its header says {count} tokens, that is {expected} bytes")
        _require_stated(path, dtype, id_type)
        tokens = _map(path, dtype.str, _LLMC_HEADER_BYTES, count)
        _require_known(path, tokens, vocabulary)
        return tokens
    dtype = _assumed(vocabulary, id_type)
    if size % dtype.itemsize:
        raise LayoutError(f"{path}: {size} bytes are no whole number of {dtype.name} ids{_remedy(path, vocabulary)}")
    tokens = _map(path, dtype.str, 0, size // dtype.itemsize)
    if id_type is None and _is_of_wider_ids(tokens):
        raise LayoutError(
            f"{path}: every second of its {len(tokens)} ids is 0 when read as {dtype.name}, so they are wider"
            + (_remedy(path, vocabulary, wider_than=dtype.itemsize) or ", or not little-endian")
            + f"; if they are not, say data.id_type: {dtype.name}"
        )
    _require_known(path, tokens, vocabulary, lambda: _remedy(path, vocabulary))
    return tokens


def _is_of_wider_ids(tokens: NDArray[Any]) -> bool:
    """Whether one of two neighbours is always 0 and the other is not: what the halves of wider ids look like."""
    if len(tokens) < _FEWEST_TO_JUDGE:
        return False
    even = odd = False
    for start in range(0, len(tokens), _BLOCK):
        block = tokens[start : start + _BLOCK]
        even, odd = even or bool(block[::2].any()), odd or bool(block[1::2].any())
        if even and odd:
            return False
    return even or odd


def _remedy(path: Path, vocabulary: int, wider_than: int = 0) -> str:
    """Which types the ids of a headerless file may have, as what to say of it."""
    size = path.stat().st_size
    fitting = []
    for name, code in _ID_TYPES.items():
        dtype = np.dtype(code)
        holds = dtype.itemsize > wider_than and 1 << 8 * dtype.itemsize >= vocabulary
        if name == "int32" or not holds or not size or size % dtype.itemsize:
            continue  # int32 holds no id that uint32 does not
        tokens = _map(path, code, 0, size // dtype.itemsize)
        if _first_unknown(tokens, vocabulary) is None and not _is_of_wider_ids(tokens):
            fitting.append(name)
    return f"; all are in the vocabulary as {' or '.join(fitting)}: say data.id_type: {fitting[0]}" if fitting else ""


def _require_stated(path: Path, dtype: np.dtype[Any], id_type: IdType | None) -> None:
    if id_type is not None and np.dtype(_ID_TYPES[id_type]).itemsize != dtype.itemsize:
        raise LayoutError(f"{path}: its header says {dtype.name}, data.id_type {id_type}; leave data.id_type out")


def _megatron(
    path: Path, index: Path, vocabulary: int, end_of_document: int, id_type: IdType | None
) -> Iterator[NDArray[Any]]:
    content = index.read_bytes()
    if content.startswith(_FAIRSEQ):
        raise LayoutError(f"{index}: the index of fairseq (TNTIDX); convert it to Megatron's (MMIDIDX)")
    if not content.startswith(_MEGATRON) or len(content) < _MEGATRON_HEADER_BYTES:
        raise LayoutError(f"{index}: not an index of Megatron, which begins with MMIDIDX")
    (version,) = np.frombuffer(content, "<u8", 1, 9).tolist()
    code = content[17]
    sequences, bounds = np.frombuffer(content, "<u8", 2, 18).tolist()
    if version != 1 or code not in _MEGATRON_TYPES:
        raise LayoutError(f"{index}: version {version} with type code {code}; known are 1 with {list(_MEGATRON_TYPES)}")
    expected = _MEGATRON_HEADER_BYTES + 12 * sequences + 8 * bounds
    if len(content) not in (expected, expected + sequences):  # perhaps with a byte of mode per sequence
        raise LayoutError(f"{index}: {len(content)} bytes; its header says {expected}")
    lengths = np.frombuffer(content, "<i4", sequences, _MEGATRON_HEADER_BYTES).astype(np.int64)
    offsets = np.frombuffer(content, "<i8", sequences, _MEGATRON_HEADER_BYTES + 4 * sequences)
    starts = np.frombuffer(content, "<i8", bounds, _MEGATRON_HEADER_BYTES + 12 * sequences)
    dtype = np.dtype(_MEGATRON_TYPES[code])
    _require_stated(index, dtype, id_type)
    if (np.diff(starts, prepend=0, append=sequences) < 0).any() or (
        bounds and (starts[0], starts[-1]) != (0, sequences)
    ):
        raise LayoutError(f"{index}: its documents do not lie one after the other in its {sequences} sequences")
    if (lengths < 0).any() or (offsets % dtype.itemsize).any():
        raise LayoutError(f"{index}: a sequence has a negative length, or begins within an id of {dtype.name}")
    size = path.stat().st_size
    if sequences and ((offsets < 0).any() or int((offsets // dtype.itemsize + lengths).max()) > size // dtype.itemsize):
        raise LayoutError(f"{path}: {size} bytes are less than its index {index.name} refers to")
    tokens = _map(path, dtype.str, 0, size // dtype.itemsize)
    _require_known(path, tokens, vocabulary)
    for first, last in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        parts = [
            tokens[offset // dtype.itemsize : offset // dtype.itemsize + length]
            for offset, length in zip(offsets[first:last].tolist(), lengths[first:last].tolist(), strict=True)
        ]
        document = np.concatenate(parts) if parts else np.empty(0, dtype)
        if len(document) and document[-1] == end_of_document:
            document = document[:-1]
        if len(document):
            yield document


def _require_known(path: Path, tokens: NDArray[Any], vocabulary: int, remedy: Callable[[], str] = lambda: "") -> None:
    place = _first_unknown(tokens, vocabulary)
    if place is not None:
        other = "the tokenizer is not the one that made them"
        said = f"{found}; else {other}" if (found := remedy()) else f"; {other}, or data.id_type is another"
        raise LayoutError(f"{path}: token {tokens[place]} at position {place}, the vocabulary has {vocabulary}{said}")


def _first_unknown(tokens: NDArray[Any], vocabulary: int) -> int | None:
    """Position of the first id that is none of the vocabulary's; None where all are."""
    for start in range(0, len(tokens), _BLOCK):
        block = tokens[start : start + _BLOCK]
        if len(block) and (int(block.max()) >= vocabulary or int(block.min()) < 0):
            return start + int(np.flatnonzero((block >= vocabulary) | (block < 0))[0])
    return None


def _map(path: Path, dtype: str, offset: int, count: int) -> NDArray[Any]:
    if count == 0:
        raise LayoutError(f"{path}: no tokens in it")
    return np.asarray(np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=(count,)))
