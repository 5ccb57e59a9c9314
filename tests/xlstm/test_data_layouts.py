"""Token files that others made decode to the text they hold; files that are not what they say are refused."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from xlstm.data import CorpusError, declare, open_prepared, prepare
from xlstm.data.corpora.layouts import LayoutError, documents
from xlstm.data.tokenizers import JsonTokenizer
from xlstm.run.directory import Workspace


def stream_of(paths: tuple[str, ...], tokenizer: str, workspace: Workspace, split: str) -> np.ndarray:
    data, _ = declare("tokens", tokenizer, 8, paths)
    prepare(data, paths, workspace, tokenizer if tokenizer.endswith(".json") else None)
    stream = open_prepared(data, workspace).stream(split)
    return stream.read(0, len(stream))


def test_nanogpts_characters_are_tiny_shakespeare(reference_data: Callable[[str], Path], tmp_path: Path) -> None:
    text = reference_data("corpora/tinyshakespeare/input.txt").read_text()
    characters = np.array(sorted(set(text)))
    paths = (str(reference_data("token-shards/nanogpt")),)
    read = []
    for split in ("train", "validation"):
        tokens = stream_of(paths, "ids-65", Workspace(tmp_path), split)
        assert tokens[0] == tokens[-1] == 65
        read.append("".join(characters[tokens[1:-1]]))
    assert "".join(read) == text


def test_llmcs_tokens_are_tiny_shakespeare_between_ends_of_text(
    reference_data: Callable[[str], Path], tmp_path: Path
) -> None:
    tokenizer = str(reference_data("tokenizers/gpt2/tokenizer.json"))
    text = reference_data("corpora/tinyshakespeare/input.txt").read_text()
    paths = (str(reference_data("token-shards/llmc")),)
    decoder = JsonTokenizer(Path(tokenizer).read_text())
    # llm.c's script cut off its first tokens as the validation split.
    parts = [stream_of(paths, tokenizer, Workspace(tmp_path), split) for split in ("validation", "train")]
    together = np.concatenate([part[part != 50256] for part in parts])
    assert decoder.decode(together) == text.replace("\n\n", "\n\n")


def test_megatrons_documents_are_those_of_its_index(reference_data: Callable[[str], Path], tmp_path: Path) -> None:
    path = reference_data("token-shards/megatron/meg-gpt2-openwebtext_text_document.bin")
    found = list(documents(path, 50257, 50256))
    assert len(found) == 1000
    assert sum(len(document) for document in found) == 1_361_845
    np.testing.assert_array_equal(np.concatenate(found), np.fromfile(path, "<u2"))


def test_slimpajamas_schema_is_counted_by_source(reference_data: Callable[[str], Path], tmp_path: Path) -> None:
    paths = (str(reference_data("corpora/slimpajama-schema")),)
    tokenizer = str(reference_data("tokenizers/gpt2/tokenizer.json"))
    data, vocabulary = declare("jsonl", tokenizer, 64, paths)
    manifest = prepare(data, paths, Workspace(tmp_path), tokenizer)
    assert vocabulary == 50304
    assert {name: split.documents for name, split in manifest.splits.items()} == {
        "train": 310,
        "validation": 16,
        "test": 17,
    }
    assert len(manifest.splits["train"].sources) == 7
    assert all(name.startswith("RedPajama") for name in manifest.splits["train"].sources)


def test_headerless_ids_are_cut_at_the_ends_of_documents(tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    np.array([9, 1, 2, 9, 9, 3, 9, 4], dtype="<u2").tofile(path)
    assert [document.tolist() for document in documents(path, 10, 9)] == [[1, 2], [3], [4]]


@pytest.mark.parametrize("magic_version_type", [(20240520, 1, "<u2"), (20240801, 7, "<u4")])
def test_both_of_llmcs_versions_are_read(tmp_path: Path, magic_version_type: tuple[int, int, str]) -> None:
    magic, version, dtype = magic_version_type
    path = tmp_path / "x_train_000001.bin"
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, 5
    path.write_bytes(header.tobytes() + np.array([0, 7, 8, 0, 9], dtype=dtype).tobytes())
    assert [document.tolist() for document in documents(path, 10, 0)] == [[7, 8], [9]]


def megatron(folder: Path, lengths: list[int], bounds: list[int], code: int = 8, tokens: int | None = None) -> Path:
    path = folder / "data.bin"
    np.arange(1, 1 + (sum(lengths) if tokens is None else tokens), dtype="<u2").tofile(path)
    offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]]) * 2
    index = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, len(lengths), len(bounds))
    index += np.array(lengths, "<i4").tobytes() + offsets.astype("<i8").tobytes() + np.array(bounds, "<i8").tobytes()
    path.with_suffix(".idx").write_bytes(index)
    return path


def test_documents_of_several_sequences_are_joined(tmp_path: Path) -> None:
    path = megatron(tmp_path, [2, 3, 1], [0, 2, 3])
    assert [document.tolist() for document in documents(path, 100, 99)] == [[1, 2, 3, 4, 5], [6]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.bin", b"\x93NUMPY....", "a NumPy file"),
        ("a.bin", b"123", "no whole number of uint16 ids"),
        ("a.bin", np.array([1, 2, 70], "<u2").tobytes(), "token 70 at position 2, the vocabulary has 65"),
        ("a.bin", np.array([20240522, 1, 3], "<i4").tobytes(), "an evaluation file"),
        ("a.bin", np.array([20240520, 9, 3], "<i4").tobytes(), "with version 9"),
        ("a.bin", np.array([20240520, 1, 3] + [0] * 253, "<i4").tobytes(), "says 3 tokens, that is 1030 bytes"),
    ],
)
def test_files_that_are_not_what_they_should_be_are_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        declare("tokens", "ids-64", 8, (str(tmp_path / name),))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b"TNTIDX\0\0" + b[8:], "fairseq"),
        (lambda b: b"NOTANIDX" + b[8:], "not an index"),
        (lambda b: b[:-4], "its header says"),
        (lambda b: b[:17] + b"\x06" + b[18:], "type code 6"),
    ],
)
def test_wrong_indices_are_refused(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    path = megatron(tmp_path, [2, 3], [0, 1, 2])
    index = path.with_suffix(".idx")
    index.write_bytes(change(index.read_bytes()))
    with pytest.raises(LayoutError, match=message):
        list(documents(path, 100, 99))


def test_a_truncated_file_under_a_whole_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="less than its index"):
        list(documents(megatron(tmp_path, [2, 3], [0, 1, 2], tokens=4), 100, 99))


@pytest.mark.parametrize("kind", ["parquet", "arrow", "stream"])
def test_columns_are_read_with_their_sources(tmp_path: Path, kind: str) -> None:
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet

    metas = [{"redpajama_set_name": f"RedPajama{i % 2}"} for i in range(200)]
    table = pyarrow.table({"text": [f"document {i}" for i in range(200)], "meta": metas, "extra": list(range(200))})
    path = tmp_path / f"data.{'parquet' if kind == 'parquet' else 'arrow'}"
    if kind == "parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        writer = pyarrow.ipc.new_file if kind == "arrow" else pyarrow.ipc.new_stream
        with writer(str(path), table.schema) as out:
            out.write_table(table)
    corpus = "parquet" if kind == "parquet" else "arrow"
    data, _ = declare(corpus, "bytes", 8, (str(path),))
    manifest = prepare(data, (str(path),), Workspace(tmp_path / "workspace"))
    counts: dict[str, int] = {}
    for split in manifest.splits.values():
        for source, number in split.sources.items():
            counts[source] = counts.get(source, 0) + number
    assert counts == {"RedPajama0": 100, "RedPajama1": 100}


def test_a_parquet_file_without_text_is_refused(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"content": ["x"]}), path)
    with pytest.raises(CorpusError, match="no column `text`; found content"):
        declare("parquet", "bytes", 8, (str(path),))
