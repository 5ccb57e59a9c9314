"""Token files and texts as others write them are read for what they are, or refused with what to say."""

import gzip
import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import example, given
from hypothesis import strategies as st

from xlstm.data import CorpusError, declare, open_prepared, prepare
from xlstm.data.corpora import CorpusFile, open_corpus
from xlstm.data.corpora.documents import Reading
from xlstm.data.corpora.layouts import LayoutError, documents
from xlstm.data.preparation import data_folder, tokenizer_of
from xlstm.data.tokenizers import JsonTokenizer, Vocabulary
from xlstm.run.directory import Workspace

TYPES = {"uint8": "<u1", "uint16": "<u2", "uint32": "<u4", "int32": "<i4", "int64": "<i8"}


def read(path: Path, vocabulary: int, end: int, id_type: Any = None) -> list[int]:
    """Every id of a file, with the ends between documents left out."""
    return [int(token) for document in documents(path, vocabulary, end, id_type) for token in document]


def prepared(corpus: str, tokenizer: str, path: Path, workspace: Path, **said: Any) -> dict[str, np.ndarray]:
    """The streams that a corpus gives, by split, without ends of documents."""
    data, _ = declare(corpus, tokenizer, 8, (str(path),), **said)
    manifest = prepare(data, (str(path),), Workspace(workspace), tokenizer if tokenizer.endswith(".json") else None)
    opened = open_prepared(data, Workspace(workspace))
    streams = {name: opened.stream(name) for name in manifest.splits}
    whole = {name: stream.read(0, len(stream)) for name, stream in streams.items()}
    return {name: tokens[tokens != manifest.end_of_document] for name, tokens in whole.items()}


# Headerless ids ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stored", "said"), [("uint32", "uint32"), ("int32", "uint32"), ("int64", "int64")])
def test_ids_with_zeros_between_them_are_refused_with_the_type_to_say(tmp_path: Path, stored: str, said: str) -> None:
    ids = np.random.default_rng(3).integers(0, 700, 900)
    path = tmp_path / "wide.bin"
    ids.astype(TYPES[stored]).tofile(path)
    with pytest.raises(LayoutError, match=rf"wide\.bin: every second .* say data\.id_type: {said}"):
        read(path, 701, 700)
    assert read(path, 701, 700, said) == ids.tolist()


def test_ids_of_bytes_and_ids_too_wide_for_the_vocabulary_are_refused_with_the_type_to_say(tmp_path: Path) -> None:
    ids = np.random.default_rng(4).integers(1, 60, 500)
    path = tmp_path / "ids.bin"
    ids.astype("<u1").tofile(path)
    with pytest.raises(
        LayoutError, match=r"token .* at position 0, the vocabulary has 61; all .* say data\.id_type: uint8"
    ):
        read(path, 61, 60)
    assert read(path, 61, 60, "uint8") == ids.tolist()
    path.write_bytes(path.read_bytes()[:499])
    with pytest.raises(LayoutError, match=r"499 bytes are no whole number of uint16 ids; all .* as uint8: say"):
        read(path, 61, 60)
    ids.astype("<u2").tofile(path)
    with pytest.raises(LayoutError, match=r"the vocabulary has 70001; .* or data\.id_type is another"):
        read(path, 70_001, 70_000)


def test_a_type_that_a_header_contradicts_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, 1, 3
    path.write_bytes(header.tobytes() + np.array([1, 2, 3], "<u2").tobytes())
    assert read(path, 10, 9, "uint16") == [1, 2, 3]
    with pytest.raises(LayoutError, match=r"its header says uint16, data\.id_type uint32"):
        read(path, 10, 9, "uint32")


@examples(60)
@given(
    st.sampled_from(sorted(TYPES)),
    st.sampled_from([60, 255, 256, 300, 50_257, 65_535, 65_536, 70_000, 200_000]),
    st.data(),
)
@example("uint32", 300, None)
def test_ids_of_any_width_are_read_as_written_or_refused(tmp_path_factory, stored: str, size: int, data: Any) -> None:  # type: ignore[no-untyped-def]
    """Never as others, where they are as wide as is assumed, or wider; with its type said every file is read.

    Of narrower ones, two may look like one.
    """
    largest = min(size, 255 if stored == "uint8" else 65_535 if stored == "uint16" else size)
    drawn = st.lists(st.integers(0, largest - 1), min_size=1, max_size=40)
    ids = [5, 0, 7, 9, 0, 1] if data is None else data.draw(drawn)
    path = tmp_path_factory.mktemp("ids") / "a.bin"
    np.array(ids, dtype=TYPES[stored]).tofile(path)
    try:
        found = read(path, size + 1, size)
    except LayoutError:
        found = None
    assumed = 2 if size + 1 <= 1 << 16 else 4
    if found is not None and np.dtype(TYPES[stored]).itemsize >= assumed:
        # A handful of zeros, or too few ids to tell, look the same in any width.
        assert found == ids or not any(ids) or path.stat().st_size < 16 or max(ids) == 0
    assert read(path, size + 1, size, stored) == ids


# Names of splits ---------------------------------------------------------------------------------------------------


def megatron(prefix: Path, texts: list[np.ndarray]) -> None:
    prefix.parent.mkdir(parents=True, exist_ok=True)
    lengths = np.array([len(ids) for ids in texts], dtype="<i4")
    starts = np.concatenate([[0], 2 * np.cumsum(lengths)[:-1]]).astype("<i8")
    np.concatenate(texts).astype("<u2").tofile(prefix.with_suffix(".bin"))
    head = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, len(texts), len(texts) + 1)
    bounds = np.arange(len(texts) + 1, dtype="<i8")
    prefix.with_suffix(".idx").write_bytes(head + lengths.tobytes() + starts.tobytes() + bounds.tobytes())


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        ("novels_train_text_document", "novels_val_text_document"),
        ("train_content_document", "valid_content_document"),
        ("my-corpus_train_text_sentence", "my-corpus_validation_text_sentence"),
        ("fineweb_train_000001", "fineweb_val_000000"),
        ("train", "val"),
        ("ids.train", "ids.dev"),
        ("train/part-0", "valid/part-0"),
    ],
)
def test_nothing_of_a_validation_file_is_trained_on(tmp_path: Path, train: str, validation: str) -> None:
    generator = np.random.default_rng(5)
    folder = tmp_path / "corpus"
    texts = {train: (1, 40, 30), validation: (40, 80, 20)}
    for name, (low, high, count) in texts.items():
        megatron(folder / f"{name}.bin", [generator.integers(low, high, 25) for _ in range(count)])
    found = prepared("tokens", "ids-100", folder, tmp_path / "w")
    assert (len(found["train"]), int(found["train"].max()) < 40) == (750, True)
    assert (len(found["validation"]), int(found["validation"].min()) >= 40) == (500, True)


def test_what_each_file_was_taken_for_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    megatron(folder / "a_train_text_document.bin", [np.arange(1, 9)] * 3)
    megatron(folder / "a_valid_text_document.bin", [np.arange(1, 9)] * 3)
    data, _ = declare("tokens", "ids-9", 8, (str(folder),))
    manifest = prepare(data, (str(folder),), Workspace(tmp_path / "w"))
    assert manifest.taken == (
        "train, Megatron's uint16: a_train_text_document.bin",
        "validation, Megatron's uint16: a_valid_text_document.bin",
    )


def test_a_split_in_a_name_that_does_not_count_is_said(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    for name in ("test.txt", *(f"{number}.txt" for number in range(6))):
        (tmp_path / "c" / name).write_text(f"text of {name}")
    lines = open_corpus("text", (str(tmp_path / "c"),)).taken(Vocabulary(256, 255))
    assert lines == [
        "train, one document in 20 to validation: 6 files, 0.txt to 5.txt",
        "train, one document in 20 to validation (named test, which counts where files for train and for validation "
        "are named): test.txt",
    ]


words = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=8
)


@examples(40)
@given(st.lists(words.filter(lambda word: word not in (".", "..")), min_size=1, max_size=5, unique=True))
def test_folders_of_any_names_are_read_once_a_file_or_refused(tmp_path_factory, names: list[str]) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("names")
    for number, name in enumerate(names):
        (folder / f"{name}.txt").write_text(f"text {number}")
    try:
        found = prepared("text", "bytes", folder, tmp_path_factory.mktemp("w"))
    except CorpusError as error:
        refused = str(error)
    else:
        refused = ""
    if refused:
        assert "named after splits" in refused or "too little" in refused
        return
    read_back = "".join(tokens.tobytes().decode() for tokens in found.values())
    assert sorted(re.findall(r"text \d+", read_back)) == sorted(f"text {number}" for number in range(len(names)))


# Text --------------------------------------------------------------------------------------------------------------

TEXTS = [f"a sentence about mill {number}" for number in range(60)]


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def texts_of(found: dict[str, np.ndarray]) -> int:
    return sum(tokens.tobytes().decode().count("a sentence about mill") for tokens in found.values())


@pytest.mark.parametrize(
    ("key", "row"),
    [("content", lambda text: {"content": text}), ("data.text", lambda text: {"data": {"text": text}, "id": 1})],
)
def test_the_key_of_the_text_can_be_said(tmp_path: Path, key: str, row: Any) -> None:
    path = jsonl(tmp_path / "a.jsonl", [row(text) for text in TEXTS])
    assert texts_of(prepared("jsonl", "bytes", path, tmp_path / "w", text_key=key)) == 60
    with pytest.raises(CorpusError, match=r"a\.jsonl:1: no `text` .*found .*; say data\.text_key"):
        declare("jsonl", "bytes", 8, (str(path),))


@pytest.mark.parametrize("key", ["content", "data.text"])
def test_the_column_of_the_text_can_be_said(tmp_path: Path, key: str) -> None:
    import pyarrow
    import pyarrow.parquet

    values = TEXTS if key == "content" else [{"text": text, "n": 1} for text in TEXTS]
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({key.partition(".")[0]: [None, *values]}), path)
    assert texts_of(prepared("parquet", "bytes", path, tmp_path / "w", text_key=key)) == 60


def test_a_file_that_is_one_array_is_read_and_a_null_is_no_document(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("\n" + json.dumps([{"text": text} for text in [*TEXTS, None, ""]], indent=1))
    as_lines = jsonl(tmp_path / "b.jsonl", [{"text": text} for text in [None, *TEXTS]])
    assert texts_of(prepared("jsonl", "bytes", path, tmp_path / "w")) == 60
    assert texts_of(prepared("jsonl", "bytes", as_lines, tmp_path / "v")) == 60
    path.write_text(json.dumps([{"text": "one"}, 2]))
    with pytest.raises(CorpusError, match=r"a\.json: item 1: no object with `text`; found int"):
        declare("jsonl", "bytes", 8, (str(path),))


def test_a_compressed_file_that_grows_beyond_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "the same again"}\n' * 100_000))
    declare("jsonl", "bytes", 8, (str(path),))
    monkeypatch.setattr("xlstm.data.corpora.documents.MOST_DECOMPRESSED", 1_000_000)
    with pytest.raises(CorpusError, match=r"bytes that decompress to more than 1,000,000"):
        list(open_corpus("jsonl", (str(path),)).documents(CorpusFile(path, "a")))
    monkeypatch.setattr("xlstm.data.corpora.documents.LONGEST_DOCUMENT", 10)
    with pytest.raises(CorpusError, match=r"a line of more than 10 bytes"):
        list(open_corpus("jsonl", (str(path),)).documents(CorpusFile(path, "a")))


@pytest.mark.parametrize(
    ("corpus", "reading", "message"),
    [
        (
            "text",
            Reading(text_key="content"),
            "corpus text knows no `text_key`, which is for jsonl, parquet, arrow, hf",
        ),
        ("jsonl", Reading(id_type="uint16"), "corpus jsonl knows no `id_type`, which is for tokens"),
    ],
)
def test_what_a_corpus_does_not_know_is_refused(corpus: str, reading: Reading, message: str) -> None:
    with pytest.raises(CorpusError, match=re.escape(message)):
        open_corpus(corpus, (), reading)


def test_a_declaration_without_the_later_keys_keeps_the_folder_of_its_shards(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS])
    data, _ = declare("jsonl", "bytes", 8, (str(path),))
    folders = {data_folder(one, Workspace(tmp_path)) for one in (data, data.model_copy(update={"text_key": "content"}))}
    assert len(folders) == 2
    assert data_folder(data.model_copy(update={"context_length": 16}), Workspace(tmp_path)) in folders


# Ends of texts -----------------------------------------------------------------------------------------------------


def tokenizer_with_end(path: Path, end: str) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=270, special_tokens=["<pad>", end], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    path.parent.mkdir(exist_ok=True)
    tokenizer.save(str(path))
    return path


@pytest.mark.parametrize("end", ["<|im_end|>", "[SEP]", "<｜end▁of▁sentence｜>"])
@pytest.mark.parametrize("said", ["beside", "object beside", "stated"])
def test_an_end_of_text_of_another_name_is_taken_from_beside_or_as_said(tmp_path: Path, end: str, said: str) -> None:
    tokenizer = tokenizer_with_end(tmp_path / "t" / "tokenizer.json", end)
    path = jsonl(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS])
    with pytest.raises(ValueError, match=r"no token that ends a text; .*say data\.end_of_text"):
        declare("jsonl", str(tokenizer), 8, (str(path),))
    stated = {"end_of_text": end} if said == "stated" else {}
    if said != "stated":
        eos: Any = {"content": end, "lstrip": False} if said == "object beside" else end
        (tmp_path / "t" / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
    data, _ = declare("jsonl", str(tokenizer), 8, (str(path),), **stated)
    assert data.end_of_text == end
    manifest = prepare(data, (str(path),), Workspace(tmp_path / "w"), str(tokenizer))
    assert manifest.end_of_document == 1
    folder = data_folder(data, Workspace(tmp_path / "w"))
    assert tokenizer_of(data, folder).end_of_document == 1


def test_an_end_of_text_that_is_not_there_or_not_to_be_said_is_refused(tmp_path: Path) -> None:
    tokenizer = tokenizer_with_end(tmp_path / "tokenizer.json", "</s>")
    path = jsonl(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS])
    with pytest.raises(ValueError, match="has no token '<end>'"):
        declare("jsonl", str(tokenizer), 8, (str(path),), end_of_text="<end>")
    with pytest.raises(ValueError, match=r"tokenizer bytes: its end of text is known"):
        declare("jsonl", "bytes", 8, (str(path),), end_of_text="<end>")


@examples(60)
@given(st.lists(st.sampled_from(["<|endoftext|>", "<pad>", " ", "a", "ß", "\n", "<|", "|>"]), max_size=12))
def test_a_text_that_quotes_a_special_token_reads_back_to_the_byte(parts: list[str]) -> None:
    tokenizer = JsonTokenizer.learn_bpe(280, ["the cat sat on the mat"])
    text = "".join(parts)
    (tokens,) = tokenizer.encode([text])
    assert tokenizer.end_of_document not in tokens
    assert tokenizer.decode(tokens) == text


def test_an_end_of_text_that_is_a_piece_of_text_to_its_model_is_refused() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"a": 0, "</s>": 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with pytest.raises(ValueError, match="a text holds '</s>', which this tokenizer cannot tell"):
        JsonTokenizer(tokenizer.to_str()).encode(["a </s> a"])
