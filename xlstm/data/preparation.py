"""From a declared corpus and tokenizer to token shards: `declare` validates and names, `prepare` makes them once.

Imports without torch: the planner declares, the launcher prepares, the trainer opens what was prepared.
"""

import functools
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from xlstm.data import overlap
from xlstm.data.corpora import Corpus, Mixture, SplitName, open_corpus, open_mixture
from xlstm.data.corpora.documents import CorpusError, Document, Reading
from xlstm.data.encoding import Encoded, batches, encode
from xlstm.data.shards import FORMAT_VERSION, Manifest, PreparedData, SplitWriter, damaged_beside, write_manifest
from xlstm.data.tokenizers import (
    Tokenizer,
    Vocabulary,
    canonical_name,
    end_of_text_beside,
    load_tokenizer,
    make_tokenizer,
    model_vocabulary,
    stated_vocabulary,
    token_dtype,
)
from xlstm.run.data import Portion
from xlstm.run.directory import Workspace
from xlstm.run.identity import canonical
from xlstm.run.locks import locked
from xlstm.run.spec import Data, IdType

T = TypeVar("T", Document, Encoded)

_TOKENIZER = "tokenizer.json"


def declare(
    corpus: str,
    tokenizer: str,
    context_length: int,
    paths: Sequence[str] = (),
    documents: Literal["continue", "reset"] = "continue",
    *,
    text_key: str = "text",
    end_of_text: str | None = None,
    id_type: IdType | None = None,
    portions: Sequence[Mapping[str, Any]] = (),
) -> tuple[Data, int]:
    """Validate a corpus and give it its revision: the data ring of a specification, and the model's vocabulary size.

    Every document is read once per content of the files, so that what cannot be trained on is found while planning.
    Corpus `mixture` is that of the `portions`, each fields of a `Portion` without its revision, with a path for each.
    `tokenizer` is a name, or a path to a tokenizer.json. CorpusError names the file and what is wrong; ValueError an
    unknown tokenizer.
    """
    name = canonical_name(tokenizer)
    path = tokenizer if tokenizer.endswith(".json") else None
    if path is not None and end_of_text is None:
        end_of_text = end_of_text_beside(path)
    opened = _opened(corpus, paths, Reading(text_key, id_type), portions)
    revision = opened.revision
    declared = zip(portions, opened.parts, strict=True) if portions else ()
    mixture = tuple(Portion(**fields, revision=part.revision) for fields, part in declared)
    vocabulary = stated_vocabulary(name)
    if vocabulary is None or end_of_text is not None:
        tokenizer_found = _tokenizer(opened, revision, name, path, end_of_text)
        vocabulary = Vocabulary(tokenizer_found.vocabulary, tokenizer_found.end_of_document)
    _validate(opened, revision, vocabulary)
    data = Data(
        corpus=corpus,
        revision=revision,
        tokenizer=name,
        context_length=context_length,
        documents=documents,
        text_key=text_key,
        end_of_text=end_of_text,
        id_type=id_type,
        mixture=mixture or None,
    )
    return data, model_vocabulary(vocabulary.size)


def prepare(
    data: Data,
    paths: Sequence[str],
    workspace: Workspace,
    tokenizer_path: str | None = None,
    engine: Literal["local", "ray"] = "local",
) -> Manifest:
    """Make the token shards of `data` under the workspace, or find them made. Safe to call from many processes.

    `tokenizer_path` is the file of a tokenizer that lives in one. `engine` says whether this machine tokenizes, or the
    workers of a Ray cluster: the shards are the same, bit for bit. CorpusError where the corpus of this machine is not
    the declared one; DataDriftError where prepared files changed.
    """
    folder = data_folder(data, workspace)
    return made_once(folder, lambda aside: _write(data, paths, tokenizer_path, engine, aside)).manifest


def made_once(folder: Path, write: Callable[[Path], None]) -> PreparedData:
    """What lies in a folder of prepared data; where there is none, what `write` puts into one, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_name(f".{folder.name}.lock")):
        if not folder.exists():
            aside = folder.with_name(f".{folder.name}.partial")
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            try:
                write(aside)
            except BaseException:
                shutil.rmtree(aside, ignore_errors=True)  # half-written, it only takes room
                raise
            os.rename(aside, folder)
        return PreparedData.open(folder)


def open_prepared(data: Data, workspace: Workspace) -> PreparedData:
    """Open what `prepare` made. FileNotFoundError where it was not called; DataDriftError where files changed."""
    return PreparedData.open(data_folder(data, workspace))


def data_folder(data: Data, workspace: Workspace) -> Path:
    """Where the shards of a corpus and tokenizer lie; the context length only cuts them and does not count."""
    payload = {"format": FORMAT_VERSION} | data.model_dump(mode="json", include={"corpus", "revision", "tokenizer"})
    later = {"text_key", "end_of_text", "id_type"}  # added later: a folder made before keeps its name
    payload |= data.model_dump(mode="json", include=later, exclude_defaults=True)
    return workspace.data / hashlib.sha256(canonical(payload).encode()).hexdigest()[:16]


def _opened(
    corpus: str, paths: Sequence[str], reading: Reading, portions: Sequence[Mapping[str, Any]]
) -> Corpus | Mixture:
    if not portions:
        return open_corpus(corpus, paths, reading)
    if len(paths) != len(portions):
        raise CorpusError(f"a mixture of {len(portions)} sources needs a path for each, and has {len(paths)}")
    return open_mixture([(one["corpus"], Reading(one.get("text_key", "text"))) for one in portions], paths)


def assigned_documents(
    corpus: Corpus | Mixture, vocabulary: Vocabulary | None = None
) -> Iterator[tuple[SplitName, Document]]:
    """Every document of a corpus with its split, of a mixture those of one part after the other.

    Where files do not state splits and chance leaves validation empty, the last document is held out; of a single
    document, the last tenth (the usual cut of tiny Shakespeare).
    """

    def divide(document: Document) -> tuple[Document, Document]:
        cut = document.length * 9 // 10
        if cut == 0:
            raise CorpusError(f"corpus {corpus.name} holds a single character: too little to train and to validate on")
        return document.part(0, cut), document.part(cut, document.length)

    for part in corpus.parts:
        stated = ((part.split_of(file, d), d) for file in part.files for d in part.documents(file, vocabulary))
        for split, document in _assigned(part, stated, divide):
            yield split, replace(document, source=part.title) if part.title else document


def _assigned(
    corpus: Corpus, stated: Iterator[tuple[SplitName, T]], divide: Callable[[T], tuple[T, T]]
) -> Iterator[tuple[SplitName, T]]:
    """`assigned_documents` for whatever stands for documents; `divide` cuts a single one in two."""
    held: tuple[SplitName, T] | None = None
    seen: set[SplitName] = set()
    for item in stated:
        if held is not None:
            seen.add(held[0])
            yield held
        held = item
    if held is None:
        raise CorpusError(f"corpus {corpus.name} holds no document")
    split, last = held
    if {"train", "validation"} <= seen | {split}:
        yield held
    elif "train" in seen:
        yield "validation", last
    elif seen:
        yield "train", last
    else:
        first, second = divide(last)
        yield "train", first
        yield "validation", second


def tokenizer_of(data: Data, folder: Path) -> Tokenizer:
    """The tokenizer that made the prepared data in `folder`. DamagedFileError where its file is not what was saved."""
    saved = folder / _TOKENIZER
    try:
        content = saved.read_text(encoding="utf-8") if saved.exists() else None
        return load_tokenizer(data.tokenizer, content, data.end_of_text)
    except Exception as error:  # the library behind a tokenizer raises what it likes
        if not saved.exists():
            raise
        raise damaged_beside(folder, _TOKENIZER, f"cannot be read: {' '.join(str(error).split())}") from None


def _write(
    data: Data, paths: Sequence[str], tokenizer_path: str | None, engine: Literal["local", "ray"], folder: Path
) -> None:
    portions = [one.model_dump(exclude={"revision", "weight"}) for one in data.mixture or ()]
    corpus = _opened(data.corpus, paths, Reading(data.text_key, data.id_type), portions)
    if corpus.revision != data.revision:
        raise CorpusError(
            f"corpus {data.corpus} here is {corpus.revision}, the run declares {data.revision}; "
            "plan again, or bring the declared files back"
        )
    tokenizer = _tokenizer(corpus, data.revision, data.tokenizer, tokenizer_path, data.end_of_text)
    dtype = token_dtype(tokenizer.vocabulary)
    encoded = _encoded_here if engine == "local" else _encoded_on_ray
    writers: dict[str, SplitWriter] = {}
    for split, document in encoded(corpus, data, tokenizer):
        if split not in writers:
            writers[split] = SplitWriter(folder, split, dtype, tokenizer.end_of_document)
        writers[split].add(document.tokens, document.text_bytes, document.source)
    saved = tokenizer.save()
    if saved is not None:
        (folder / _TOKENIZER).write_text(saved, encoding="utf-8")
    taken = corpus.taken(Vocabulary(tokenizer.vocabulary, tokenizer.end_of_document))
    if corpus.compares_splits and (line := _overlap(corpus)):
        taken.append(line)
    manifest = Manifest(
        corpus=data.corpus,
        revision=data.revision,
        tokenizer=data.tokenizer,
        vocabulary=tokenizer.vocabulary,
        end_of_document=tokenizer.end_of_document,
        dtype=dtype,
        splits={split: writer.close() for split, writer in writers.items()},
        taken=tuple(taken),
    )
    write_manifest(folder, manifest)


def _overlap(corpus: Corpus | Mixture) -> str | None:
    """How much of the validation split the training split holds as well, in a line; None for nothing."""
    texts: dict[SplitName, dict[str, bytes]] = {"train": {}, "validation": {}}
    for split, document in assigned_documents(corpus):
        texts.setdefault(split, {})[document.key] = document.text.encode()
    return overlap.described(texts["train"].values(), texts["validation"])


def _encoded_here(corpus: Corpus | Mixture, _: Data, tokenizer: Tokenizer) -> Iterator[tuple[SplitName, Encoded]]:
    vocabulary = Vocabulary(tokenizer.vocabulary, tokenizer.end_of_document)
    for batch in batches(assigned_documents(corpus, vocabulary)):
        yield from ((one.split, one) for one in encode(batch, tokenizer))


def _encoded_on_ray(corpus: Corpus | Mixture, data: Data, tokenizer: Tokenizer) -> Iterator[tuple[SplitName, Encoded]]:
    from xlstm.data.distributed import encoded_on_ray

    def divide(document: Encoded) -> tuple[Encoded, Encoded]:
        raise CorpusError(f"corpus {corpus.name} holds a single document: prepare it on one machine")

    for part in corpus.parts:
        encoded = encoded_on_ray(part, data.tokenizer, tokenizer, data.end_of_text)
        for split, one in _assigned(part, ((one.split, one) for one in encoded), divide):
            yield split, replace(one, source=part.title) if part.title else one


@functools.lru_cache(maxsize=64)
def _validate(corpus: Corpus | Mixture, revision: str, vocabulary: Vocabulary) -> None:
    """Read every document once. `revision` makes the memory of it one of contents, not of names."""
    for _ in assigned_documents(corpus, vocabulary):
        pass


@functools.lru_cache(maxsize=8)
def _tokenizer(
    corpus: Corpus | Mixture, revision: str, name: str, path: str | None, end_of_text: str | None
) -> Tokenizer:
    """The tokenizer; one that learns does so from the training split, once per content of the corpus."""
    if corpus.holds_tokens:
        if name in ("bytes", "characters", "words") or name.startswith("bpe-"):
            raise ValueError("corpus tokens holds ids already: its tokenizer is ids-<size>, or the one that made them")
        return make_tokenizer(name, path, (), end_of_text)
    texts = (d.text for split, d in assigned_documents(corpus) if split == "train")
    return make_tokenizer(name, path, texts, end_of_text)
