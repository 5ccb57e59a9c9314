"""From a declared corpus and tokenizer to token shards: `declare` validates and names, `prepare` makes them once.

Imports without torch: the planner declares, the launcher prepares, the trainer opens what was prepared.
"""

import fcntl
import functools
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from xlstm.data.corpora import Corpus, CorpusError, Document, SplitName, open_corpus
from xlstm.data.shards import FORMAT_VERSION, Manifest, PreparedData, SplitWriter, write_manifest
from xlstm.data.tokenizers import Tokenizer, model_vocabulary, open_tokenizer, token_dtype
from xlstm.records import Workspace
from xlstm.spec import Data, canonical

_BATCH_CHARACTERS = 1 << 22


def declare(corpus: str, tokenizer: str, context_length: int, paths: Sequence[str] = ()) -> tuple[Data, int]:
    """Validate a corpus and give it its revision: the data ring of a specification, and the model's vocabulary size.

    Every document is read once per content of the files, so that what cannot be trained on is found while planning.
    CorpusError names the file and what is wrong; ValueError an unknown tokenizer.
    """
    vocabulary = model_vocabulary(open_tokenizer(tokenizer))
    opened = open_corpus(corpus, paths)
    revision = opened.revision
    _validate(opened, revision)
    data = Data(corpus=corpus, revision=revision, tokenizer=tokenizer, context_length=context_length)
    return data, vocabulary


def prepare(data: Data, paths: Sequence[str], workspace: Workspace) -> Manifest:
    """Make the token shards of `data` under the workspace, or find them made. Safe to call from many processes.

    CorpusError where the corpus of this machine is not the declared one; DataDriftError where prepared files changed.
    """
    folder = data_folder(data, workspace)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f".{folder.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            aside = folder.with_name(f".{folder.name}.partial")
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            _write(data, paths, aside)
            os.rename(aside, folder)
        return PreparedData.open(folder).manifest


def open_prepared(data: Data, workspace: Workspace) -> PreparedData:
    """Open what `prepare` made. FileNotFoundError where it was not called; DataDriftError where files changed."""
    return PreparedData.open(data_folder(data, workspace))


def data_folder(data: Data, workspace: Workspace) -> Path:
    """Where the shards of a corpus and tokenizer lie; the context length only cuts them and does not count."""
    payload = {"format": FORMAT_VERSION} | data.model_dump(mode="json", include={"corpus", "revision", "tokenizer"})
    return workspace.data / hashlib.sha256(canonical(payload).encode()).hexdigest()[:16]


def assigned_documents(corpus: Corpus) -> Iterator[tuple[SplitName, Document]]:
    """Every document of a corpus with its split.

    Where files do not state splits and chance leaves validation empty, the last document is held out; of a single
    document, the last tenth (the usual cut of tiny Shakespeare).
    """
    held: tuple[SplitName, Document] | None = None
    seen: set[SplitName] = set()
    for file in corpus.files:
        for document in corpus.documents(file):
            if held is not None:
                seen.add(held[0])
                yield held
            held = (corpus.split_of(file, document), document)
    if held is None:
        raise CorpusError(f"corpus {corpus.name} holds no document with text")
    split, last = held
    if {"train", "validation"} <= seen | {split}:
        yield held
    elif "train" in seen:
        yield "validation", last
    elif seen:
        yield "train", last
    else:
        cut = len(last.text) * 9 // 10
        if cut == 0:
            raise CorpusError(f"corpus {corpus.name} holds a single character: too little to train and to validate on")
        yield "train", Document(last.text[:cut], last.key, last.source)
        yield "validation", Document(last.text[cut:], last.key, last.source)


def _write(data: Data, paths: Sequence[str], folder: Path) -> None:
    corpus = open_corpus(data.corpus, paths)
    if corpus.revision != data.revision:
        raise CorpusError(
            f"corpus {data.corpus} here is {corpus.revision}, the run declares {data.revision}; "
            "plan again, or bring the declared files back"
        )
    tokenizer = open_tokenizer(data.tokenizer)
    dtype = token_dtype(tokenizer.vocabulary)
    writers: dict[str, SplitWriter] = {}
    for batch in _batches(assigned_documents(corpus)):
        for (split, document), tokens in zip(batch, tokenizer.encode([d.text for _, d in batch]), strict=True):
            if split not in writers:
                writers[split] = SplitWriter(folder, split, dtype, tokenizer.end_of_document)
            writers[split].add(tokens, len(document.text.encode()), document.source)
    manifest = Manifest(
        corpus=data.corpus,
        revision=data.revision,
        tokenizer=data.tokenizer,
        vocabulary=tokenizer.vocabulary,
        end_of_document=tokenizer.end_of_document,
        dtype=dtype,
        splits={split: writer.close() for split, writer in writers.items()},
    )
    write_manifest(folder, manifest)


def _batches(documents: Iterator[tuple[SplitName, Document]]) -> Iterator[list[tuple[SplitName, Document]]]:
    batch, size = [], 0
    for item in documents:
        batch.append(item)
        size += len(item[1].text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


@functools.lru_cache(maxsize=64)
def _validate(corpus: Corpus, revision: str) -> None:
    """Read every document once. `revision` makes the memory of it one of contents, not of names."""
    for _ in assigned_documents(corpus):
        pass


def tokenizer_of(data: Data, folder: Path) -> Tokenizer:
    """The tokenizer that made the prepared data in `folder`."""
    return open_tokenizer(data.tokenizer)
