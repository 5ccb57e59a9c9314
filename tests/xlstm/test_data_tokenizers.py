"""Tokenizers give back what they read, and are what their names say."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from xlstm.data import declare, open_prepared, prepare
from xlstm.data.preparation import tokenizer_of
from xlstm.data.tokenizers import (
    ByteTokenizer,
    CharacterTokenizer,
    JsonTokenizer,
    WordTokenizer,
    canonical_name,
    load_tokenizer,
    model_vocabulary,
    stated_vocabulary,
    token_dtype,
)
from xlstm.run.directory import Workspace

texts = st.text(st.characters(exclude_categories=["Cs"]))


@examples()
@given(texts)
def test_bytes_read_back_and_never_hold_the_end_of_document(text: str) -> None:
    tokenizer = ByteTokenizer()
    (tokens,) = tokenizer.encode([text])
    assert tokenizer.decode(tokens) == text
    assert tokenizer.end_of_document not in tokens


@examples()
@given(texts)
def test_characters_read_back(text: str) -> None:
    tokenizer = CharacterTokenizer.learn([text + "x"])
    (tokens,) = tokenizer.encode([text])
    assert tokenizer.decode(tokens) == text
    assert len(tokens) == len(text)


def test_unseen_characters_and_words_are_unknown_not_others() -> None:
    characters = CharacterTokenizer.learn(["abc"])
    assert characters.decode(characters.encode(["aXc"])[0]) == "a\ufffdc"
    words = WordTokenizer.learn(["to be or not to be"])
    assert words.decode(words.encode(["to see"])[0]) == "to <unk>"


def test_characters_are_numbered_as_in_nanogpt() -> None:
    assert CharacterTokenizer.learn(["hello\n"]).encode(["hello\n"])[0].tolist() == [2, 1, 3, 3, 4, 0]


def test_every_line_has_one_end_and_the_last_is_the_documents() -> None:
    tokenizer = WordTokenizer.learn(["a b\n\nc\n"])
    (tokens,) = tokenizer.encode(["a b\n\nc\n"])
    end = tokenizer.end_of_document
    assert (tokens == end).tolist() == [False, False, True, True, False]
    assert tokenizer.decode(tokens) == "a b\n\nc"


@examples()
@given(st.lists(texts, min_size=1, max_size=3))
def test_a_learnt_bpe_reads_back_any_text(parts: list[str]) -> None:
    tokenizer = JsonTokenizer.learn_bpe(300, ["the cat sat on the mat " * 20])
    assert [tokenizer.decode(tokens) for tokens in tokenizer.encode(parts)] == parts


def test_a_learnt_bpe_is_the_same_each_time() -> None:
    text = ["the cat sat on the mat, and the dog on the cat " * 50]
    assert JsonTokenizer.learn_bpe(400, text).save() == JsonTokenizer.learn_bpe(400, text).save()


@pytest.mark.parametrize("name", ["characters", "words", "bpe-300"])
def test_prepared_data_carry_their_tokenizer(tmp_path: Path, name: str) -> None:
    text = tmp_path / "a.txt"
    text.write_text("It was the best of times, it was the worst of times.\n" * 30)
    data, vocabulary = declare("text", name, 8, (str(text),))
    workspace = Workspace(tmp_path / "workspace")
    manifest = prepare(data, (str(text),), workspace)
    prepared = open_prepared(data, workspace)
    text.unlink()
    tokenizer = tokenizer_of(data, prepared.path)
    stream = prepared.stream("train")
    written = tokenizer.decode(stream.read(1, len(stream) - 1))
    assert written.startswith("It was the best of times, it was the worst of times.")
    assert vocabulary % 64 == 0
    assert manifest.vocabulary <= vocabulary
    assert (
        load_tokenizer(name, tokenizer.save()).encode(["times."])[0].tolist()
        == tokenizer.encode(["times."])[0].tolist()
    )


def test_a_file_is_named_by_its_content_and_refused_when_it_is_another(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("It was the age of wisdom. " * 30)
    first, second = tmp_path / "one.json", tmp_path / "two.json"
    first.write_text(JsonTokenizer.learn_bpe(260, ["one"]).save())
    second.write_text(JsonTokenizer.learn_bpe(261, ["two twos"]).save())
    data, _ = declare("text", str(first), 8, (str(text),))
    assert data.tokenizer == canonical_name(str(first)) != canonical_name(str(second))
    with pytest.raises(ValueError, match="the run declares json-"):
        prepare(data, (str(text),), Workspace(tmp_path / "workspace"), str(second))
    prepare(data, (str(text),), Workspace(tmp_path / "workspace"), str(first))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("byte", "unknown tokenizer 'byte'; known are bytes"),
        ("bpe-100", "at least 257"),
        ("x/y.json", "cannot be read"),
    ],
)
def test_wrong_names_are_explained(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        canonical_name(name)


def test_a_json_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"hello": 1}))
    text = tmp_path / "a.txt"
    text.write_text("some text")
    with pytest.raises(ValueError, match=r"not a tokenizer\.json"):
        declare("text", str(path), 8, (str(text),))


def test_vocabularies_are_rounded_as_in_the_papers() -> None:
    gpt2 = stated_vocabulary("gpt2")
    assert gpt2 is not None
    assert model_vocabulary(gpt2.size) == 50304
    assert model_vocabulary(256) == 256
    assert [np.dtype(token_dtype(v)).itemsize for v in (256, 257, 65536, 65537)] == [1, 2, 2, 4]


def test_published_tokenizers_are_what_is_said_of_them(reference_data: Callable[[str], Path]) -> None:
    for name, path in (("gpt2", "gpt2/tokenizer.json"), ("gpt-neox-20b", "gpt-neox-20b/20B_tokenizer.json")):
        tokenizer = JsonTokenizer(reference_data(f"tokenizers/{path}").read_text())
        stated = stated_vocabulary(name)
        assert stated is not None
        assert (tokenizer.vocabulary, tokenizer.end_of_document) == (stated.size, stated.end_of_document)


def test_wikitext_has_the_published_number_of_words(reference_data: Callable[[str], Path], tmp_path: Path) -> None:
    paths = (str(reference_data("corpora/wikitext-2")),)
    data, vocabulary = declare("text", "words", 64, paths)
    manifest = prepare(data, paths, Workspace(tmp_path))
    # One end of line is read as the context of the first word, and predicted nowhere.
    assert {name: split.tokens - 1 for name, split in manifest.splits.items()} == {
        "train": 2_088_628,
        "validation": 217_646,
        "test": 245_569,
    }
    assert manifest.vocabulary == 33_278
    assert vocabulary == 33_280
