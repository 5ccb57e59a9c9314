"""Texts that trained models are measured on: another corpus, or documents by domain, in the tokens of a run.

They are tokenized once by the tokenizer that made the run's own data, into shards of their own. Imports without torch.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from xlstm.data.corpora import JSON, SplitName, content_digest, open_corpus
from xlstm.data.corpora.documents import CorpusError, Document, Reading, found_at, json_rows, of_row
from xlstm.data.encoding import batches, encode
from xlstm.data.preparation import assigned_documents, data_folder, made_once, tokenizer_of
from xlstm.data.shards import FORMAT_VERSION, Manifest, PreparedData, SplitWriter, write_manifest
from xlstm.data.tokenizers import Vocabulary, token_dtype
from xlstm.run.data import Data
from xlstm.run.directory import Workspace
from xlstm.run.evaluations import CorpusEvaluation, Domains, Harness
from xlstm.run.identity import canonical

OtherText: TypeAlias = CorpusEvaluation | Domains

SPLIT = "held-out"
"""The only split of the shards of such a text."""
_COUNTED_AT_ONCE = 1 << 24


def revision_of(text: OtherText | Harness) -> str:
    """The version of a text, or sha256:… over its files, or those of tasks. CorpusError where they are missing."""
    if isinstance(text, Harness):
        return _of_files([(Path(path).name, file) for path in text.paths for file in _inside(Path(path))])
    if isinstance(text, CorpusEvaluation):
        return open_corpus(text.corpus, text.paths, Reading(text.text_key)).revision
    return _of_files(_domain_files(text))


def _inside(folder: Path) -> list[Path]:
    """Every file of a folder. CorpusError where there is none."""
    if not folder.is_dir():
        raise CorpusError(f"{folder}: no such folder")
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _of_files(files: list[tuple[str, Path]]) -> str:
    digest = hashlib.sha256()
    for source, path in files:
        digest.update(f"{source} {content_digest(path)}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def prepare_text(text: OtherText, data: Data, workspace: Workspace) -> PreparedData:
    """Tokenize a text as runs on `data` were, or find it done; `data` are prepared already.

    CorpusError where a file cannot be read, has changed since it was declared, or holds no document that is asked for.
    """
    return made_once(_folder(text, data, workspace), lambda aside: _write(text, data, workspace, aside))


def open_text(text: OtherText, data: Data, workspace: Workspace) -> PreparedData:
    """What `prepare_text` made. FileNotFoundError where it was not called."""
    return PreparedData.open(_folder(text, data, workspace))


def occurrences(prepared: PreparedData) -> NDArray[np.int64]:
    """How often the training split holds each token, `(vocabulary,)`; counted once and kept beside the shards."""
    kept = prepared.path / "train.occurrences"
    if kept.is_file() and kept.stat().st_size == 8 * prepared.vocabulary:
        return np.fromfile(kept, dtype="<i8")
    stream, counts = prepared.stream("train"), np.zeros(prepared.vocabulary, dtype="<i8")
    for start in range(0, len(stream), _COUNTED_AT_ONCE):
        tokens = stream.read(start, min(start + _COUNTED_AT_ONCE, len(stream)))
        counts += np.bincount(tokens, minlength=prepared.vocabulary)
    aside = kept.with_name(f".{kept.name}.{os.getpid()}")
    counts.tofile(aside)
    os.replace(aside, kept)
    return counts


def _folder(text: OtherText, data: Data, workspace: Workspace) -> Path:
    """Named after the text and the tokenizer, one that was learnt by its content."""
    own = data_folder(data, workspace)
    saved = own / "tokenizer.json"
    made_by = hashlib.sha256(saved.read_bytes()).hexdigest() if saved.is_file() else data.tokenizer
    what = text.model_dump(mode="json", include={"kind", "corpus", "revision", "split", "text_key"})
    payload = {"format": FORMAT_VERSION, "held_out": what, "tokenizer": made_by, "end_of_text": data.end_of_text}
    return workspace.data / hashlib.sha256(canonical(payload).encode()).hexdigest()[:16]


def _write(text: OtherText, data: Data, workspace: Workspace, folder: Path) -> None:
    if text.revision.startswith("sha256:") and (here := revision_of(text)) != text.revision:
        raise CorpusError(
            f"the text here is {here}, the evaluation declares {text.revision}; bring the declared files back"
        )
    tokenizer = tokenizer_of(data, data_folder(data, workspace))
    dtype = token_dtype(tokenizer.vocabulary)
    vocabulary = Vocabulary(tokenizer.vocabulary, tokenizer.end_of_document)
    documents = _of_domains(text) if isinstance(text, Domains) else _of_corpus(text, vocabulary)
    writer = SplitWriter(folder, SPLIT, dtype, tokenizer.end_of_document)
    for batch in batches(documents):
        for one in encode(batch, tokenizer):
            writer.add(one.tokens, one.text_bytes, one.source)
    if not writer.rows:
        raise CorpusError("it holds no document")
    manifest = Manifest(
        corpus=text.corpus if isinstance(text, CorpusEvaluation) else text.kind,
        revision=text.revision,
        tokenizer=data.tokenizer,
        vocabulary=tokenizer.vocabulary,
        end_of_document=tokenizer.end_of_document,
        dtype=dtype,
        splits={SPLIT: writer.close()},
    )
    write_manifest(folder, manifest)


def _of_corpus(text: CorpusEvaluation, vocabulary: Vocabulary) -> Iterator[tuple[SplitName, Document]]:
    """The documents of a split. CorpusError, naming the splits that there are, where it has none."""
    corpus = open_corpus(text.corpus, text.paths, Reading(text.text_key))
    if text.split == "all":
        for file in corpus.files:
            yield from (("test", document) for document in corpus.documents(file, vocabulary))
        return
    found: dict[str, None] = {}
    for split, document in assigned_documents(corpus, vocabulary):
        found[split] = None
        if split == text.split:
            yield "test", document
    if text.split not in found:
        raise CorpusError(
            f"the corpus has no split {text.split}; there are {', '.join(sorted(found))}, and `all` is every document"
        )


def _of_domains(text: Domains) -> Iterator[tuple[SplitName, Document]]:
    """Every document with its domain as source: `<source>/<subdomain>`, or the source where there is none."""
    for source, path in _domain_files(text):
        for where, row in json_rows(path, "text"):
            document = of_row(where, row, "text", None, hint="")
            subdomain = row.get("subdomain")
            if subdomain is not None and not isinstance(subdomain, str):
                raise CorpusError(f"{where}: `subdomain` is of type {type(subdomain).__name__}, not a string")
            if document:
                yield "test", replace(document, source=f"{source}/{subdomain}" if subdomain else source)


def _domain_files(text: Domains) -> list[tuple[str, Path]]:
    """The files of every source, in the order of their names. CorpusError where there are none."""
    if not text.paths:
        raise CorpusError("domains need `paths`: folders that hold `<source>/val/*.jsonl.gz`, as PALOMA does")
    found: list[tuple[str, Path]] = []
    for path in text.paths:
        root = Path(found_at(path))
        if not root.is_dir():
            raise CorpusError(f"{root}: no such folder")
        inside = [file for file in root.glob(f"*/{text.split}/*") if file.name.endswith(JSON)]
        if not inside:
            raise CorpusError(f"{root}: no file `<source>/{text.split}/*.jsonl.gz` in this folder")
        found += sorted((file.parents[1].name, file) for file in inside)
    return found
