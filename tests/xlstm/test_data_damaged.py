"""Whatever the bytes of a corpus or a tokenizer: documents come out, or one line that names the file."""

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from examples import examples
from hypothesis import example, given
from hypothesis import strategies as st

from xlstm.data import CorpusError
from xlstm.data.corpora import open_corpus
from xlstm.data.corpora.layouts import LayoutError, documents
from xlstm.data.tokenizers import Vocabulary, canonical_name, end_of_text_beside, make_tokenizer

Folder = Callable[[str], Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A folder of each name, which every example of a property finds as the one before left it: theirs are one file."""
    base = tmp_path_factory.mktemp("damaged")

    def of_name(name: str) -> Path:
        (base / name).mkdir(exist_ok=True)
        return base / name

    return of_name


def pair(folder: Path, lengths: list[int], bounds: list[int]) -> Path:
    path = folder / "a.bin"
    np.arange(1, sum(lengths) + 1, dtype="<u2").tofile(path)
    offsets = 2 * np.concatenate([[0], np.cumsum(lengths)[:-1]])
    head = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, len(lengths), len(bounds))
    arrays = (np.array(lengths, "<i4"), offsets.astype("<i8"), np.array(bounds, "<i8"))
    path.with_suffix(".idx").write_bytes(head + b"".join(array.tobytes() for array in arrays))
    return path


@pytest.mark.parametrize("bounds", [[0, 1], [1, 2], [0, 2, 1, 2], [0, 3], [-1, 2], [0, 2**62, 2]])
def test_an_index_whose_documents_are_not_its_sequences_is_refused(tmp_path: Path, bounds: list[int]) -> None:
    with pytest.raises(LayoutError, match=r"a\.idx: its documents do not lie one after the other in its 2 sequences"):
        list(documents(pair(tmp_path, [2, 3], bounds), 100, 99))


def test_a_sequence_that_begins_within_an_id_is_refused(tmp_path: Path) -> None:
    path = pair(tmp_path, [2, 3], [0, 1, 2])
    index = path.with_suffix(".idx")
    content = bytearray(index.read_bytes())
    content[34 + 8 + 8] = 3  # the second offset
    index.write_bytes(content)
    with pytest.raises(LayoutError, match="begins within an id of uint16"):
        list(documents(path, 100, 99))


@examples(150)
@given(st.lists(st.tuples(st.integers(0, 81), st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, 82))
def test_a_damaged_index_is_read_or_refused(folder: Folder, changes: list[tuple[int, int]], length: int) -> None:
    path = pair(folder("index"), [2, 3], [0, 1, 2])
    index = path.with_suffix(".idx")
    content = bytearray(index.read_bytes())
    for place, value in changes:
        content[place] = value
    index.write_bytes(content if length == 82 else content[:length])
    try:
        found = [document.tolist() for document in documents(path, 100, 99)]
    except LayoutError:
        return
    assert sum(map(len, found)) <= 5


@examples(150)
@given(
    st.sampled_from([b"", *(struct.pack("<3i", magic, 1, 2) for magic in (20240520, 20240522))]), st.binary(max_size=64)
)
def test_any_bytes_are_token_files_or_refused(folder: Folder, head: bytes, content: bytes) -> None:
    path = folder("bytes") / "a.bin"
    path.write_bytes(head + content)
    try:
        found = list(documents(path, 60_000, 59_999))
    except LayoutError as error:
        assert str(path) in str(error)  # noqa: PT017
        return
    assert all((document < 60_000).all() for document in found)


STARTS = [
    b"",
    b"[",
    b'{"text": "a"}\n',
    b"\x1f\x8b\x08\x00",
    b"\x28\xb5\x2f\xfd",
    gzip.compress(b'{"text": "b"}\n')[:-3],
]
COLUMNS = [b"PAR1", b"ARROW1\0\0", b"\xff\xff\xff\xff", b""]


@examples(150)
@given(st.sampled_from(STARTS), st.binary(max_size=64) | st.recursive(st.none() | st.text(), st.lists).map(json.dumps))
def test_any_bytes_are_lines_of_json_or_refused(folder: Folder, start: bytes, content: bytes | str) -> None:
    path = folder("lines") / "a.jsonl"
    path.write_bytes(start + (content if isinstance(content, bytes) else content.encode(errors="surrogatepass")))
    read(path, "jsonl")


@examples(100)
@given(st.sampled_from(COLUMNS), st.binary(max_size=80))
def test_any_bytes_are_columns_or_refused(folder: Folder, start: bytes, content: bytes) -> None:
    for corpus in ("parquet", "arrow"):
        path = folder("columns") / f"a.{corpus}"
        path.write_bytes(start + content + start[:4])
        read(path, corpus)


def read(path: Path, corpus: str) -> None:
    """Read every document; a refusal names the file."""
    try:
        opened = open_corpus(corpus, (str(path),))
        for file in opened.files:
            list(opened.documents(file, Vocabulary(256, 255)))
    except CorpusError as error:
        assert path.name in str(error)  # noqa: PT017


@example(b'{"model":{"":null,"vocab":[]}}')
@examples(100)
@given(
    st.binary(max_size=60)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["added_tokens", "model", "vocab", "content", "x"]), inner, max_size=3)
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_bytes_are_a_tokenizer_or_refused(folder: Folder, content: bytes) -> None:
    path = folder("tokenizer") / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="tokenizer"):
        opened(str(path))


def opened(path: str) -> None:
    end_of_text_beside(path)
    make_tokenizer(canonical_name(path), path, ())
