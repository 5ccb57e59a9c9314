"""From corpora to shards, and what is said about corpora that cannot be used."""

import gzip
import json
import multiprocessing
import os
import random
import re
from pathlib import Path

import numpy as np
import pytest

from sweeps.sweep import Sweep
from xlstm.data import CorpusError, DataDriftError, declare, open_prepared, overlap, prepare
from xlstm.data.batches import Windows
from xlstm.data.preparation import data_folder
from xlstm.data.sequences import TrainingSequences
from xlstm.models import IGNORED
from xlstm.run.directory import Workspace

TEXT = "Alas, poor Yorick! I knew him, Horatio: ä fellow of infinite jest. " * 50


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def test_a_single_text_is_cut_nine_to_one_and_kept_to_the_byte(tmp_path: Path, workspace: Workspace) -> None:
    paths = (write(tmp_path / "input.txt", TEXT),)
    data, vocabulary = declare("text", "bytes", 16, paths)
    prepare(data, paths, workspace)
    prepared = open_prepared(data, workspace)
    parts = []
    for split in ("train", "validation"):
        stream = prepared.stream(split)
        tokens = stream.read(0, len(stream))
        assert tokens[0] == tokens[-1] == 255
        parts.append(tokens[1:-1].tobytes().decode())
        assert prepared.manifest.splits[split].text_bytes == len(parts[-1].encode())
    assert vocabulary == 256
    assert "".join(parts) == TEXT
    assert len(parts[0]) == len(TEXT) * 9 // 10


def test_files_named_after_splits_are_those_splits(tmp_path: Path, workspace: Workspace) -> None:
    for name in ("train", "valid", "test"):
        write(tmp_path / "corpus" / f"{name}.txt", f"this is {name}")
    paths = (str(tmp_path / "corpus"),)
    data, _ = declare("text", "bytes", 4, paths)
    manifest = prepare(data, paths, workspace)
    prepared = open_prepared(data, workspace)
    texts = {split: prepared.stream(split).read(1, manifest.splits[split].tokens - 1) for split in manifest.splits}
    assert {split: tokens.tobytes().decode() for split, tokens in texts.items()} == {
        "train": "this is train",
        "validation": "this is valid",
        "test": "this is test",
    }


@pytest.mark.parametrize(
    "compress", [lambda b: b, gzip.compress, lambda b: __import__("pyarrow").compress(b, "zstd", asbytes=True)]
)
def test_jsonl_gives_every_text_once_with_its_source(tmp_path: Path, workspace: Workspace, compress) -> None:  # type: ignore[no-untyped-def]
    metas = [
        {"redpajama_set_name": "RedPajamaC4"},
        json.dumps({"redpajama_set_name": "RedPajamaBook"}),
        str({"redpajama_set_name": "RedPajamaC4"}),
    ]
    rows = [{"text": f"document {i}", "meta": metas[i % 3]} for i in range(90)]
    paths = (write(tmp_path / "c.jsonl", compress("".join(json.dumps(r) + "\n" for r in rows).encode())),)
    data, _ = declare("jsonl", "bytes", 8, paths)
    manifest = prepare(data, paths, workspace)
    prepared = open_prepared(data, workspace)
    found: list[str] = []
    counts: dict[str, int] = {}
    for split in manifest.splits:
        stream = prepared.stream(split)
        found += bytes(stream.read(0, len(stream))).decode("latin-1").strip("\xff").split("\xff")
        for source, number in manifest.splits[split].sources.items():
            counts[source] = counts.get(source, 0) + number
    assert sorted(found) == sorted(row["text"] for row in rows)
    assert counts == {"RedPajamaC4": 60, "RedPajamaBook": 30}


def test_the_same_documents_fall_into_the_same_split_wherever_they_lie(tmp_path: Path, workspace: Workspace) -> None:
    rows = [json.dumps({"text": f"document {i}"}) + "\n" for i in range(400)]
    splits = []
    for order in (rows, rows[::-1]):
        paths = (write(tmp_path / f"{len(splits)}.jsonl", "".join(order)),)
        data, _ = declare("jsonl", "bytes", 8, paths)
        prepare(data, paths, workspace)
        stream = open_prepared(data, workspace).stream("validation")
        splits.append(set(bytes(stream.read(0, len(stream))).split(b"\xff")))
    assert splits[0] == splits[1]
    assert 5 < len(splits[0]) < 50  # a twentieth of 400


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", r"a\.txt: the file is empty"),
        ("a.txt", b"good \xff bad", r"a\.txt: not UTF-8 at byte 5"),
        ("a.jsonl", '{"text": "x"}\n{"content": "y"}\n', r"a\.jsonl:2: no `text` of type string; found content"),
        ("a.jsonl", '{"text": "x"}\n{"text": 3}\n', r"a\.jsonl:2: no `text`"),
        ("a.jsonl", '{"text": "x"}\nnot json\n', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", '{"text": "\\ud800"}\n', r"a\.jsonl:1: .*surrogate"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 9, mtime=0)[:-9], r"a\.jsonl\.gz: cannot be decompressed"),
        ("a.jsonl", "\n\n", "holds no document"),
    ],
)
def test_bad_input_is_named_with_its_place(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(CorpusError, match=message):
        declare(name.split(".")[1].replace("txt", "text"), "bytes", 8, (path,))


@pytest.mark.parametrize(
    ("corpus", "tokenizer", "paths", "message"),
    [
        ("wiki", "bytes", (), "unknown corpus 'wiki'; known are .*python-stdlib"),
        ("text", "bytes", (), "needs `paths`"),
        ("text", "bytes", ("/nowhere/at/all",), "/nowhere/at/all: no such file"),
        ("python-stdlib", "bytes", ("x",), "takes no paths"),
        ("python-stdlib", "byte", (), "unknown tokenizer 'byte'"),
    ],
)
def test_wrong_declarations_are_explained(corpus: str, tokenizer: str, paths: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        declare(corpus, tokenizer, 8, paths)


def test_the_default_corpus_is_on_every_machine(workspace: Workspace) -> None:
    data, vocabulary = declare("python-stdlib", "bytes", 128)
    manifest = prepare(data, (), workspace)
    assert vocabulary == 256
    assert manifest.splits["train"].text_bytes > 5_000_000
    assert 0.005 < manifest.splits["validation"].text_bytes / manifest.splits["train"].text_bytes < 0.2
    # Generated tables and copied boilerplate: no document twice, but parts of documents.
    share, *_ = re.findall(r"validation: ([0-9.]+)% of its text stands in train, too", manifest.taken[-1])
    assert 2 < float(share) < 40


def test_what_two_splits_share_is_counted_span_by_span() -> None:
    generator = random.Random(1)

    def text(length: int) -> bytes:
        return bytes(generator.choices(b"ab", k=length))

    train = [text(500), text(63), text(64), b""]
    held = {
        "copied": text(30) + train[0][100:200] + text(30) + train[2],
        "short": train[1],
        "63 of them": text(99) + b"c" + train[0][:63] + b"c",
        "own": text(300),
    }
    spans = {one[at : at + 64] for one in train for at in range(len(one) - 63)}
    naive = {
        name: len({at + step for at in range(len(one) - 63) if one[at : at + 64] in spans for step in range(64)})
        for name, one in held.items()
    }
    assert overlap.shared_bytes(train, held) == naive
    assert naive["copied"] >= 164
    assert set(naive.values()) == {naive["copied"], 0}
    assert overlap.described(train, {"own": held["own"]}) is None


def test_the_revision_is_one_of_contents_not_of_places(tmp_path: Path) -> None:
    one = declare("text", "bytes", 8, (write(tmp_path / "here" / "a.txt", TEXT),))[0]
    two = declare("text", "bytes", 8, (write(tmp_path / "there" / "b.txt", TEXT),))[0]
    other = declare("text", "bytes", 8, (write(tmp_path / "c.txt", TEXT + "!"),))[0]
    assert one.revision == two.revision != other.revision


def test_a_corpus_that_changed_since_it_was_declared_is_refused(tmp_path: Path, workspace: Workspace) -> None:
    paths = (write(tmp_path / "a.txt", TEXT),)
    data, _ = declare("text", "bytes", 8, paths)
    write(tmp_path / "a.txt", TEXT + "?")
    with pytest.raises(CorpusError, match="the run declares sha256:"):
        prepare(data, paths, workspace)
    assert not list(workspace.data.glob("[0-9a-f]*"))


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_shard_is_named(tmp_path: Path, workspace: Workspace, damage: str) -> None:
    paths = (write(tmp_path / "a.txt", TEXT),)
    data, _ = declare("text", "bytes", 8, paths)
    prepare(data, paths, workspace)
    (shard,) = workspace.data.glob("*/train-00000.tokens")
    content = bytearray(shard.read_bytes())
    content[7] ^= 1
    if damage == "remove":
        shard.unlink()
    else:
        shard.write_bytes(content if damage == "flip" else content[:-1])
    os.utime(shard.parent, (0, 0)) if damage == "remove" else os.utime(shard, (1, 1))
    with pytest.raises(DataDriftError, match=r"train-00000\.tokens.*delete .* and prepare"):
        open_prepared(data, workspace)


def _prepare_in_process(text: str, root: str) -> str:
    data, _ = declare("text", "bytes", 8, (text,))
    return prepare(data, (text,), Workspace(Path(root))).fingerprint


def test_eight_processes_prepare_one_corpus_once(tmp_path: Path, workspace: Workspace) -> None:
    path = write(tmp_path / "a.txt", TEXT * 20)
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        fingerprints = pool.starmap(_prepare_in_process, [(path, str(workspace.root))] * 8)
    assert len(set(fingerprints)) == 1
    assert len(list(workspace.data.glob("[0-9a-f]*"))) == 1


def test_windows_predict_every_token_once(tmp_path: Path, workspace: Workspace) -> None:
    paths = (write(tmp_path / "a.txt", TEXT),)
    data, _ = declare("text", "bytes", 13, paths)
    prepare(data, paths, workspace)
    stream = open_prepared(data, workspace).stream("validation")
    windows = Windows(stream, 13, 255)
    batch = windows.batch(np.arange(windows.covering + 2))
    targets = batch.targets[batch.targets != IGNORED]
    np.testing.assert_array_equal(targets, stream.read(1, len(stream)))
    whole = windows.batch(np.arange(windows.whole))
    np.testing.assert_array_equal(whole.tokens[:, 1:], whole.targets[:, :-1])
    assert (whole.targets != IGNORED).all()
    assert batch.resets[0, 0]
    assert not batch.resets[0, 1]


def test_streams_over_many_shards_read_as_one(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = (write(tmp_path / "a.txt", TEXT),)
    data, _ = declare("text", "bytes", 8, paths)
    prepare(data, paths, workspace)
    one = open_prepared(data, workspace).stream("train")
    monkeypatch.setattr("xlstm.data.shards.SHARD_TOKENS", 100)
    elsewhere = Workspace(tmp_path / "elsewhere")
    prepare(data, paths, elsewhere)
    many = open_prepared(data, elsewhere).stream("train")
    assert len(many.shards) > 10
    np.testing.assert_array_equal(one.read(0, len(one)), many.read(0, len(many)))
    for start, stop in [(0, 0), (99, 101), (100, 100), (50, 350), (len(one), len(one))]:
        np.testing.assert_array_equal(one.read(start, stop), many.read(start, stop))


def test_bytes_of_text_are_exact_at_the_ends_of_documents(tmp_path: Path, workspace: Workspace) -> None:
    texts = ["a" * 5, "ä" * 5, "z" * 3]
    for split in ("train", "valid"):
        write(tmp_path / "c" / f"{split}.jsonl", "".join(json.dumps({"text": t}) + "\n" for t in texts))
    paths = (str(tmp_path / "c"),)
    data, _ = declare("jsonl", "bytes", 8, paths)
    prepare(data, paths, workspace)
    stream = open_prepared(data, workspace).stream("train")
    # EOD a×5 EOD ä×10 EOD z×3 EOD
    assert [stream.text_bytes_before(p) for p in (1, 7, 18, 22)] == [0, 5, 15, 18]
    assert len(stream) == 22


def test_a_mixture_draws_each_source_by_its_weight_and_trains_on_no_window_of_two(
    tmp_path: Path, workspace: Workspace
) -> None:
    for number in range(30):
        write(tmp_path / f"words/{number}.txt", "word " * 200 + f"{number}")
    rows = "".join(json.dumps({"text": "word " * 30 + f"{number}"}) + "\n" for number in range(40))
    write(tmp_path / "words/more.jsonl", rows)  # a folder of several kinds
    code = "".join(json.dumps({"content": "0123 " * 100 + f"{number}"}) + "\n" for number in range(60))
    write(tmp_path / "code.jsonl", code)
    sweep = tmp_path / "mix.yaml"
    write(
        sweep,
        "name: mix\n"
        "data:\n  context_length: 32\n  mixture:\n"
        "    - {corpus: 'files:words', weight: 3}\n"
        "    - {corpus: 'jsonl:code.jsonl', weight: 1, text_key: content}\n"
        "sizes: {s: {embedding_dim: 16, num_blocks: 1, num_heads: 2}}\n"
        "grid: {model: [llama], size: [s], steps: [600]}\n"
        "train: {batch_sequences: 8, learning_rate: 1e-2}\n",
    )
    (run,) = Sweep.load(str(sweep)).runs
    spec = run.spec
    prepare(spec.physics.data, spec.execution.data_paths, workspace)
    prepared = open_prepared(spec.physics.data, workspace)
    assert list(prepared.manifest.splits["train"].sources) == ["words", "code.jsonl"]
    assert list(prepared.manifest.splits["validation"].sources) == ["words", "code.jsonl"]
    batch = TrainingSequences(prepared, spec.physics).batch(0, 4096)
    digits = np.isin(batch.tokens, list(b"0123")).mean(axis=1) > 0.5
    assert digits.sum() == 1024
    assert spec.physics.data.mixture is not None
    heavier = [one.model_copy(update={"weight": 1.0}) for one in spec.physics.data.mixture]
    evenly = spec.physics.data.model_copy(update={"mixture": tuple(heavier)})
    assert data_folder(evenly, workspace) == prepared.path  # the shards are those of any weights
    assert spec.with_physics(spec.physics.model_copy(update={"data": evenly})).run_id != spec.run_id
