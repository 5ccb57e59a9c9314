"""Token files that people already have: nanoGPT's headerless ids, llm.c's, and Megatron's pairs of .bin and .idx.

A file is recognised by what it begins with and what lies beside it; what a header says is checked against the size of
the file. All integers are little-endian. Imports without torch.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xlstm.data.tokenizers import token_dtype

_LLMC = {(20240520, 1): "<u2", (20240801, 7): "<u4"}
"""(magic, version) of llm.c and modded-nanogpt, with the type of the ids."""
_LLMC_EVALUATION = 20240522
_LLMC_HEADER_BYTES = 1024
_MEGATRON = b"MMIDIDX\x00\x00"
_FAIRSEQ = b"TNTIDX\x00\x00"
_MEGATRON_TYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_MEGATRON_HEADER_BYTES = 34
_NUMPY = b"\x93NUMPY"


class LayoutError(ValueError):
    """A token file is not what it should be: says which, and what is wrong."""


def documents(path: Path, vocabulary: int, end_of_document: int) -> Iterator[NDArray[Any]]:
    """The documents of a token file, without their ends. LayoutError names the file and what is wrong.

    Megatron's index says where documents lie; elsewhere they are what stands between ends of document.
    """
    index = path.with_suffix(".idx")
    if index.is_file():
        yield from _megatron(path, index, vocabulary, end_of_document)
        return
    tokens = _stream(path, vocabulary)
    _require_known(path, tokens, vocabulary)
    ends = np.flatnonzero(tokens == end_of_document)
    for start, stop in zip([0, *(ends + 1)], [*ends, len(tokens)], strict=True):
        if stop > start:
            yield tokens[start:stop]


def _stream(path: Path, vocabulary: int) -> NDArray[Any]:
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
        return _map(path, dtype.str, _LLMC_HEADER_BYTES, count)
    dtype = np.dtype("<u2" if token_dtype(vocabulary) == "<u1" else token_dtype(vocabulary))
    if size % dtype.itemsize:
        raise LayoutError(f"{path}: {size} bytes are no whole number of {dtype.name} ids")
    return _map(path, dtype.str, 0, size // dtype.itemsize)


def _megatron(path: Path, index: Path, vocabulary: int, end_of_document: int) -> Iterator[NDArray[Any]]:
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
    size = path.stat().st_size
    if sequences and ((offsets < 0).any() or int((offsets + lengths * dtype.itemsize).max()) > size):
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


def _require_known(path: Path, tokens: NDArray[Any], vocabulary: int) -> None:
    for start in range(0, len(tokens), 1 << 24):
        block = tokens[start : start + (1 << 24)]
        if len(block) and (int(block.max()) >= vocabulary or int(block.min()) < 0):
            place = start + int(np.flatnonzero((block >= vocabulary) | (block < 0))[0])
            raise LayoutError(f"{path}: token {tokens[place]} at position {place}, the vocabulary has {vocabulary}")


def _map(path: Path, dtype: str, offset: int, count: int) -> NDArray[Any]:
    if count == 0:
        raise LayoutError(f"{path}: no tokens in it")
    return np.asarray(np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=(count,)))
