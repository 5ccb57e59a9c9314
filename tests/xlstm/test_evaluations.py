"""Evaluations of a model, against naive readings of the same text: one sequence or one document at a time."""

import gzip
import itertools
import json
import math
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from xlstm.data import declare, open_prepared, prepare
from xlstm.data.corpora.documents import CorpusError
from xlstm.data.held_out import revision_of
from xlstm.data.preparation import tokenizer_of
from xlstm.distributed import World
from xlstm.evaluation.kinds import check
from xlstm.evaluation.measure import measure
from xlstm.models.configs import GPTConfig, LlamaConfig
from xlstm.run.directory import Workspace
from xlstm.run.evaluations import AnyEvaluation, fingerprint
from xlstm.run.records import Measured
from xlstm.run.spec import Data, Optimizer, Physics, RunSpec

CONTEXT = 16
TRAINED_ON = ["a cat sat on the mat " * 8, "one two three " * 20, "“naïve” café äöü " * 4]
HELD_OUT = ["a dog sat on the log " * 8, "two three zwölf " * 30]

MeasuredRun = tuple[RunSpec, Workspace]


class Prefix(nn.Module):
    """A model whose loss of a token depends on all that was read before it, so that every context has its own."""

    def forward(self, tokens: Tensor, *, resets: Tensor | None, targets: Tensor, z_loss: float) -> tuple[Tensor, None]:
        losses = 1.0 + ((3 * tokens.cumsum(1) + 5 * targets) % 17).float()
        return torch.where(targets == -100, 0.0, losses), None


def prepared(folder: Path, tokenizer: str) -> tuple[RunSpec, Workspace]:
    """A run on a small corpus of two splits, whose text is prepared."""
    for split, texts in (("train", TRAINED_ON), ("validation", HELD_OUT)):
        (folder / "corpus" / split).mkdir(parents=True)
        for number, text in enumerate(texts):
            (folder / "corpus" / split / f"{number}.txt").write_text(text)
    paths, workspace = (str(folder / "corpus"),), Workspace(folder / "workspace")
    data, vocabulary = declare("text", tokenizer, CONTEXT, paths)
    prepare(data, paths, workspace)
    model = LlamaConfig(vocab_size=vocabulary, embedding_dim=16, num_blocks=2, num_heads=2)
    physics = Physics(
        model=model, data=data, tokens=CONTEXT, batch_tokens=CONTEXT, optimizer=Optimizer(learning_rate=1e-3)
    )
    return RunSpec(physics=physics), workspace


@pytest.fixture(params=["bytes", "words", "bpe-300"], scope="module")
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MeasuredRun:
    spec, workspace = prepared(tmp_path_factory.mktemp("evaluated"), request.param)
    return spec, workspace


def asked(**said: Any) -> AnyEvaluation:
    if said["kind"] in ("corpus", "domains"):
        unnamed = TypeAdapter(AnyEvaluation).validate_python(said | {"name": "it", "revision": "unknown"})
        said["revision"] = revision_of(unnamed)
    evaluation: AnyEvaluation = TypeAdapter(AnyEvaluation).validate_python(said | {"name": "it"})
    return evaluation


def evaluated(run: MeasuredRun, **said: Any) -> Measured:
    spec, workspace = run
    evaluation = asked(**said)
    check(evaluation, spec, workspace)
    world = World.init(spec.execution)
    found = measure(Prefix(), evaluation, spec, workspace.run(spec.run_id), world)
    world.destroy()
    assert found.evaluation == fingerprint(evaluation, spec.physics.data)
    return found


def nats(span: list[int]) -> list[float]:
    """Of every token but the first, each predicted from all those before it in the span."""
    read, found = 0, []
    for token, target in itertools.pairwise(span):
        read += token
        found.append(1.0 + (3 * read + 5 * target) % 17)
    return found


def encoded(run: MeasuredRun, text: str) -> tuple[list[int], int]:
    """The ids of a text, and the end of a document."""
    data = run[0].physics.data
    tokenizer = tokenizer_of(data, open_prepared(data, run[1]).path)
    return tokenizer.encode([text])[0].tolist(), tokenizer.end_of_document


def in_windows(stream: list[int], context: int) -> list[float]:
    """Of every token of a stream but the first, in windows that do not overlap."""
    found: list[float] = []
    for start in range(0, len(stream) - 1, context):
        found += nats(stream[start : start + context + 1])
    return found


def test_another_corpus_is_read_as_a_validation_is_and_counts_its_own_bytes(run: MeasuredRun, tmp_path: Path) -> None:
    rows = [("RedPajamaBook", "the cat and the dög. " * 9), ("RedPajamaWiki", "one and two " * 12)]
    lines = [json.dumps({"text": text, "meta": {"redpajama_set_name": source}}) for source, text in rows]
    (tmp_path / "talk.jsonl").write_text("\n".join(lines))
    found = evaluated(run, kind="corpus", corpus="jsonl", paths=[str(tmp_path / "talk.jsonl")], split="all")
    ids, sources = [], []
    for source, text in rows:
        tokens, end = encoded(run, text)
        ids += [*tokens, end]
        sources += [source] * (len(tokens) + 1)
    naive = in_windows([end, *ids], CONTEXT)
    assert found.measures["loss"] == pytest.approx(np.mean(naive), rel=1e-5)
    assert found.tokens == len(ids)
    written = sum(len(text.encode()) for _, text in rows)
    assert found.measures["bits_per_byte"] == pytest.approx(sum(naive) / math.log(2) / written, rel=1e-5)
    for row, (source, text) in zip(found.tables["source"], rows, strict=True):
        own = [value for value, its in zip(naive, sources, strict=True) if its == source]
        assert (row["source"], row["tokens"]) == (source, len(own))
        assert row["loss"] == pytest.approx(np.mean(own), rel=1e-5)
        assert row["bits_per_byte"] == pytest.approx(sum(own) / math.log(2) / len(text.encode()), rel=1e-5)


def test_every_context_predicts_the_same_tokens_and_positions_sum_to_the_whole(run: MeasuredRun) -> None:
    found = evaluated(run, kind="length-extrapolation", contexts=[8, 16, 64], sequences=1)
    spec, workspace = run
    stream = open_prepared(spec.physics.data, workspace).stream("validation")
    whole = (len(stream) - 1) // 64
    first = whole // 2 * 64
    span = stream.read(first, first + 65).astype(int).tolist()
    for row in found.tables["context"]:
        naive = in_windows(span, int(row["context"]))  # type: ignore[arg-type]
        assert (row["tokens"], len(naive)) == (64, 64)
        assert row["loss"] == pytest.approx(np.mean(naive), rel=1e-5)
        by_position = [one for one in found.tables["position"] if one["context"] == row["context"]]
        assert sum(one["tokens"] * one["loss"] for one in by_position) == pytest.approx(sum(naive), rel=1e-5)  # type: ignore[operator,misc]
    last = [one for one in found.tables["position"] if one["context"] == 64][-1]
    assert (last["position"], last["last"]) == (32, 63)
    assert last["loss"] == pytest.approx(np.mean(nats(span)[32:]), rel=1e-5)


def test_bands_of_frequency_sum_to_the_whole_and_hold_the_tokens_that_they_say(run: MeasuredRun) -> None:
    found = evaluated(run, kind="token-frequency", bands=[1, 10, 40])
    spec, workspace = run
    data = open_prepared(spec.physics.data, workspace)
    counts = Counter(data.stream("train").read(0, len(data.stream("train"))).tolist())
    stream = data.stream("validation").read(0, len(data.stream("validation"))).astype(int).tolist()
    naive = in_windows(stream, CONTEXT)
    bounds = {"0": (0, 0), "1-9": (1, 9), "10-39": (10, 39), "40 or more": (40, 10**9)}
    assert [row["band"] for row in found.tables["band"]] == list(bounds)
    for row, (low, high) in zip(found.tables["band"], bounds.values(), strict=True):
        own = [value for value, token in zip(naive, stream[1:], strict=True) if low <= counts[token] <= high]
        assert row["tokens"] == len(own)
        assert row.get("loss") == (pytest.approx(np.mean(own), rel=1e-5) if own else None)
    rows = [row for row in found.tables["band"] if row["tokens"]]
    whole = math.fsum(row["tokens"] * row["loss"] for row in rows)  # type: ignore[operator,misc]
    assert whole / sum(row["tokens"] for row in rows) == pytest.approx(found.measures["loss"], rel=1e-12)  # type: ignore[misc]
    assert found.measures["loss"] == pytest.approx(np.mean(naive), rel=1e-5)


def rolling(tokens: list[int], end: int, context: int) -> list[float]:
    """The protocol as lm-eval's `get_rolling_token_windows` and `make_disjoint_window` write it, a token at a time."""
    text, found = [end, *tokens], []
    for start in range(0, len(tokens), context):
        stop = min(start + context, len(tokens))
        read = text[max(0, stop - context) : stop + 1]
        found += nats(read)[-(stop - start) :]
    return found


def write_domains(root: Path, documents: list[tuple[str, str | None, str]]) -> None:
    """Documents (source, subdomain, text) in PALOMA's layout, a file for each source."""
    for source in dict.fromkeys(source for source, _, _ in documents):
        folder = root / source / "val"
        folder.mkdir(parents=True)
        with gzip.open(folder / f"{source}_0.jsonl.gz", "wt") as file:
            for number, (of, subdomain, text) in enumerate(documents):
                if of == source:
                    row = {"text": text, "id": str(number), "source": source, "metadata": {"n": number}}
                    file.write(json.dumps(row | ({"subdomain": subdomain} if subdomain else {})) + "\n")


def test_domains_are_counted_from_the_data_and_read_document_by_document(run: MeasuredRun, tmp_path: Path) -> None:
    documents = [
        ("c4", None, "a cat sat on the mat and one dog sat on two logs. " * 3),
        ("reddit", "cats", "the cat"),
        ("reddit", "dogs", "the dog sat, äh, on the log " * 4),
        ("reddit", "cats", "one cat, two cats, three cats " * 2),
        ("gab", None, "a mat"),
    ]
    write_domains(tmp_path / "paloma", documents)
    found = evaluated(run, kind="domains", paths=[str(tmp_path / "paloma")], context_length=8)
    naive: dict[str, list[float]] = {}
    written: Counter[str] = Counter()
    for source, subdomain, text in documents:
        for name in {source, f"{source}/{subdomain}" if subdomain else source}:
            naive.setdefault(name, []).extend(rolling(*encoded(run, text), 8))
            written[name] += len(text.encode())
    assert found.measures["domains"] == 4
    by_name = {row["domain"]: row for row in found.tables["domain"]}
    assert set(by_name) == {"c4", "gab", "reddit/cats", "reddit/dogs"}
    sources = {row["source"]: row for row in found.tables["source"]}
    assert {name: row["domains"] for name, row in sources.items()} == {"c4": 1, "gab": 1, "reddit": 2}
    for name, row in [*by_name.items(), *sources.items()]:
        values = naive[str(name)]
        assert (row["tokens"], row["bytes"]) == (len(values), written[str(name)])
        assert row["loss"] == pytest.approx(np.mean(values), rel=1e-5)
        assert row["bits_per_byte"] == pytest.approx(sum(values) / math.log(2) / written[str(name)], rel=1e-5)
    usual = [math.exp(np.mean(naive[name])) for name in ("c4", "reddit")]
    assert found.measures["average_perplexity"] == pytest.approx(np.mean(usual), rel=1e-5)
    assert sources["gab"]["fringe"] is True


def test_the_real_domain_file_is_read_as_a_naive_script_reads_it(
    tmp_path: Path, reference_data: Callable[[str], Path]
) -> None:
    root = reference_data("evaluation/paloma")
    run = prepared(tmp_path, "bytes")
    found = evaluated(run, kind="domains", paths=[str(root)], context_length=256)
    naive: list[float] = []
    (path,) = root.glob("*/val/*.gz")
    with gzip.open(path, "rt") as file:
        texts = [json.loads(line)["text"] for line in file]
    for text in texts:
        naive += rolling(*encoded(run, text), 256)
    assert found.tokens == len(naive) == sum(len(text.encode()) for text in texts)
    assert found.measures["loss"] == pytest.approx(np.mean(naive), rel=1e-5)
    assert found.tables["domain"][0]["documents"] == 10


def test_a_family_that_cannot_read_a_context_says_so(tmp_path: Path) -> None:
    spec, workspace = prepared(tmp_path, "bytes")
    config = GPTConfig(vocab_size=256, embedding_dim=16, num_blocks=1, num_heads=2, context_length=16)
    spec = spec.with_physics(spec.physics.model_copy(update={"model": config}))
    found = evaluated((spec, workspace), kind="length-extrapolation", contexts=[8, 16, 32, 64])
    assert [row["context"] for row in found.tables["context"]] == [8, 16]
    assert found.notes == ["gpt has 16 positions and cannot read contexts of 32, 64 tokens"]


def test_a_fingerprint_tells_what_is_measured_and_not_where_it_lies(tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("a text of some length")
    data = Data(corpus="text", revision="sha256:0", context_length=16)
    here, there = (asked(kind="corpus", corpus="text", paths=[str(tmp_path / name)]) for name in ("here", "there"))
    assert fingerprint(here, data) == fingerprint(there, data)
    others = [
        fingerprint(here.model_copy(update={"context_length": 32}), data),
        fingerprint(here, data.model_copy(update={"tokenizer": "gpt2"})),
        fingerprint(here.model_copy(update={"revision": "sha256:1"}), data),
    ]
    assert len({fingerprint(here, data), *others}) == 4


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"kind": "length-extrapolation", "contexts": [4096]}, "no sequence of 4096"),
        ({"kind": "length-extrapolation", "contexts": [16, 24]}, "16 is no divisor of the longest, 24"),
        ({"kind": "length-extrapolation", "split": "test"}, "no split 'test'; there are"),
        ({"kind": "token-frequency", "bands": [10, 1]}, "do not ascend"),
    ],
)
def test_what_cannot_be_read_is_said_before_anything_runs(tmp_path: Path, said: dict[str, Any], told: str) -> None:
    spec, workspace = prepared(tmp_path, "bytes")
    with pytest.raises(ValueError, match=told):
        check(asked(**said), spec, workspace)


def test_broken_texts_are_located_and_leave_nothing_behind(tmp_path: Path) -> None:
    spec, workspace = prepared(tmp_path, "bytes")
    before = sorted(path.name for path in workspace.data.iterdir())
    folder = tmp_path / "paloma" / "c4" / "val"
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_text('{"text": "whole"}\n{"text": "bro\n')
    broken = asked(kind="domains", paths=[str(tmp_path / "paloma")])
    with pytest.raises(CorpusError, match=r"c4/val/a\.jsonl:2: not JSON"):
        check(broken, spec, workspace)
    (folder / "a.jsonl").write_text('{"text": "whole", "subdomain": 3}\n')
    with pytest.raises(CorpusError, match="the evaluation declares sha256:"):
        check(broken, spec, workspace)
    with pytest.raises(CorpusError, match=r"a\.jsonl:1: `subdomain` is of type int"):
        check(asked(kind="domains", paths=[str(tmp_path / "paloma")]), spec, workspace)
    corpus = asked(kind="corpus", corpus="text", paths=[str(tmp_path / "corpus")], split="test")
    with pytest.raises(CorpusError, match="no split test; there are train, validation"):
        check(corpus, spec, workspace)
    assert sorted(path.name for path in workspace.data.iterdir() if not path.name.startswith(".")) == [
        name for name in before if not name.startswith(".")
    ]


def test_tasks_without_lm_eval_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, workspace = prepared(tmp_path, "bytes")
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "xlstm.evaluation.harness", raising=False)
    with pytest.raises(ValueError, match=r"lm_eval is not installed: pip install .*\[harness\]"):
        check(asked(kind="harness", tasks=["hellaswag"]), spec, workspace)


def test_a_run_is_the_same_whatever_is_measured_on_it(tmp_path: Path) -> None:
    spec, _ = prepared(tmp_path, "bytes")
    measured = spec.model_copy(update={"evaluations": (asked(kind="token-frequency"),)})
    assert measured.run_id == spec.run_id
    measured.save(tmp_path / "spec.json")
    assert RunSpec.load(tmp_path / "spec.json") == measured
    spec.save(tmp_path / "spec.json")
    assert "evaluations" not in json.loads((tmp_path / "spec.json").read_text())
