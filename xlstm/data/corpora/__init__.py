"""Corpora: where documents come from, in which order, and to which split each belongs.

A corpus is a list of files and a way to read documents from one of them; `CORPORA` is the table: the text of Python's
own library, text files, JSON lines (also .gz and .zst), Parquet, Arrow as `datasets` saves it, whatever that library
opens (`hf`), folders that hold several of these kinds (`files`), and ready token files. A `Mixture` is several corpora.
Documents are read in the order of the files' names, so a corpus is the same on every machine that holds the same files.
Bad input raises `CorpusError`, which names the file, the place and what would be right. Imports without torch.
"""

import functools
import hashlib
import io
import platform
import re
import sysconfig
import tokenize
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeAlias

from xlstm.data.corpora import columnar, hub, layouts
from xlstm.data.corpora.documents import CorpusError, Document, Reading, found_at, json_rows, of_row
from xlstm.data.tokenizers import Vocabulary
from xlstm.run.data import MIXTURE
from xlstm.run.identity import canonical

SplitName: TypeAlias = Literal["train", "validation", "test"]

JSON = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".json.zst", ".jsonl.zstd")
"""How names of files of JSON end."""
VALIDATION_SHARE = 20
"""One document in twenty is held out, by a hash of its key, where files are not named after splits."""

_SPLIT_WORDS: dict[str, SplitName] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}


@dataclass(frozen=True)
class CorpusFile:
    """A file of a corpus: where it lies, its name within the corpus, and the split that its name states."""

    path: Path
    name: str
    split: SplitName | None = None


@dataclass(frozen=True)
class CorpusKind:
    """How a corpus is found and read, and which fields of `Reading` mean something for it."""

    find: Callable[[Sequence[str]], list[CorpusFile]]
    read: Callable[[CorpusFile, Reading, Vocabulary | None], Iterator[Document]]
    revision: Callable[[Sequence[CorpusFile], Reading], str]
    takes: tuple[str, ...] = ()
    compares_splits: bool = False
    """Whether it is known to repeat itself and small, so that what its splits share is counted when it is prepared."""


def open_corpus(corpus: str, paths: Sequence[str], reading: Reading = Reading()) -> "Corpus":
    """Find the files of a corpus. CorpusError for an unknown name, and for paths that are missing or hold nothing."""
    if corpus not in CORPORA:
        raise CorpusError(
            f"unknown corpus {corpus!r}; known are {', '.join(sorted(CORPORA))}; "
            "for files of yours: --set data.corpus=KIND:PATH, such as jsonl:PATH"
        )
    for name in ("text_key", "id_type"):
        if name not in CORPORA[corpus].takes and getattr(reading, name) != getattr(Reading(), name):
            takers = ", ".join(kind for kind in CORPORA if name in CORPORA[kind].takes)
            raise CorpusError(f"corpus {corpus} knows no `{name}`, which is for {takers}; leave it out")
    return Corpus(corpus, tuple(CORPORA[corpus].find(paths)), reading)


@dataclass(frozen=True)
class Corpus:
    """A named corpus with its files."""

    name: str
    files: tuple[CorpusFile, ...]
    reading: Reading = field(default_factory=Reading)
    title: str = ""
    """What it is called among the sources of a mixture; there, it stands for the sources that its documents state."""

    @property
    def parts(self) -> "tuple[Corpus, ...]":
        """The corpora that are read one after the other: itself."""
        return (self,)

    @property
    def revision(self) -> str:
        """The version of a named corpus, or `sha256:…` over the contents of local files."""
        return CORPORA[self.name].revision(self.files, self.reading)

    @property
    def holds_tokens(self) -> bool:
        """Whether its files hold token ids rather than text."""
        return self.name == "tokens"

    @property
    def compares_splits(self) -> bool:
        """Whether what the splits share is counted when it is prepared."""
        return CORPORA[self.name].compares_splits

    def documents(self, file: CorpusFile, vocabulary: Vocabulary | None = None) -> Iterator[Document]:
        """The documents of one file, in order; an empty one is none. `vocabulary` is needed to read token ids."""
        return (document for document in CORPORA[self.name].read(file, self.reading, vocabulary) if document)

    def taken(self, vocabulary: Vocabulary) -> list[str]:
        """What each file was taken for, in lines: its split, and of token files the layout.

        Files of one kind share a line, which names the first and the last of many.
        """
        groups: dict[str, list[str]] = {}
        for file in self.files:
            what = file.split or f"train, one document in {VALIDATION_SHARE} to validation"
            if self.holds_tokens:
                what += f", {layouts.described(file.path, vocabulary.size, self.reading.id_type)}"
            if file.split is None and (word := _stated_split(file.name)):
                what += f" (named {word}, which counts where files for train and for validation are named)"
            groups.setdefault(what, []).append(file.name)
        return [f"{what}: {_listed(names)}" for what, names in groups.items()]

    def split_of(self, file: CorpusFile, document: Document) -> SplitName:
        """The split that the file's name states, else one document in twenty to validation by a hash of its key."""
        if file.split is not None:
            return file.split
        digest = hashlib.sha256(document.key.encode()).digest()
        return "validation" if int.from_bytes(digest[:8], "big") % VALIDATION_SHARE == 0 else "train"


@dataclass(frozen=True)
class Mixture:
    """Several corpora of text, each with splits of its own, in the place of one."""

    parts: tuple[Corpus, ...]
    name: str = MIXTURE
    compares_splits: bool = False
    holds_tokens: bool = False

    @property
    def revision(self) -> str:
        """One SHA-256 over what the parts are and how they are read, in order; their weights do not count."""
        read = [[part.name, part.revision, part.reading.text_key] for part in self.parts]
        return f"sha256:{hashlib.sha256(canonical(read).encode()).hexdigest()}"

    def taken(self, vocabulary: Vocabulary) -> list[str]:
        """What the files of each part were taken for, in lines."""
        return [f"{part.title}: {line}" for part in self.parts for line in part.taken(vocabulary)]


def open_mixture(portions: Sequence[tuple[str, Reading]], paths: Sequence[str]) -> Mixture:
    """Find the files of every part: a corpus by name, how it is read, and its path, empty where it needs none.

    CorpusError as from `open_corpus`, and for corpora of token ids.
    """
    titles = [Path(path).name or name for (name, _), path in zip(portions, paths, strict=True)]
    parts = []
    for number, ((name, reading), path) in enumerate(zip(portions, paths, strict=True)):
        if name in ("tokens", MIXTURE):
            raise CorpusError(f"a mixture is of texts, and `{name}` is none; mix the texts, or tokenize them together")
        title = titles[number] if titles.count(titles[number]) == 1 else f"{titles[number]} ({number + 1})"
        parts.append(replace(open_corpus(name, [path] if path else [], reading), title=title))
    return Mixture(tuple(parts))


def _find_python_stdlib(paths: Sequence[str]) -> list[CorpusFile]:
    if paths:
        raise CorpusError(f"corpus python-stdlib takes no paths, but {paths[0]!r} was given")
    root = Path(sysconfig.get_path("stdlib"))
    # Tests are left out: distributions differ in whether they ship them.
    elsewhere = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    names = sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if not elsewhere.intersection(path.relative_to(root).parts) and path.is_file()
    )
    if not names:
        raise CorpusError(f"{root}: this Python carries no source of its standard library; use corpus `text`")
    return [CorpusFile(root / name, name) for name in names]


def _read_python_source(file: CorpusFile, _: Reading, __: Vocabulary | None) -> Iterator[Document]:
    content = file.path.read_bytes()
    encoding = tokenize.detect_encoding(io.BytesIO(content).readline)[0]
    yield Document(content.decode(encoding), key=file.name)


def _find_files(suffixes: tuple[str, ...], paths: Sequence[str]) -> list[CorpusFile]:
    if not paths:
        raise CorpusError("this corpus needs `paths`: files or folders to read")
    found: list[tuple[Path, str]] = []
    for path in [Path(found_at(path)) for path in paths]:
        if path.is_dir():
            inside = [p for p in path.rglob("*") if p.is_file() and p.name.endswith(suffixes)]
            if not inside:
                raise CorpusError(f"{path}: no file ending in {', '.join(suffixes)} in this folder")
            found += sorted((p, p.relative_to(path).as_posix()) for p in inside)
        elif path.is_file():
            found.append((path, path.name))
        else:
            raise CorpusError(f"{path}: no such file or folder")
    for path, _ in found:
        if path.stat().st_size == 0:
            raise CorpusError(f"{path}: the file is empty")
    return _assign_splits(found)


def _assign_splits(found: Sequence[tuple[Path, str]]) -> list[CorpusFile]:
    splits = [_stated_split(name) for _, name in found]
    if not {"train", "validation"} <= set(splits):
        splits = [None] * len(found)  # names that state no whole split state none
    elif None in splits:
        path, name = found[splits.index(None)]
        what = path if path.name == Path(name).name else f"{path}: {name}"
        raise CorpusError(f"{what}: others are named after splits (train, validation, test), this one is not")
    return [CorpusFile(path, name, split) for (path, name), split in zip(found, splits, strict=True)]


def _stated_split(name: str) -> SplitName | None:
    """The split in the first or last word of the file's name, else of a folder above it, else within its name.

    Within the name stand the words of WikiText (`wiki.train.tokens`) and of Megatron, which appends the key of the text
    and what a sequence is (`books_train_text_document`).
    """
    *folders, last = name.split("/")
    first, *others = [re.findall(r"[a-z]+", part) for part in last.lower().split(".")]
    words = [*first[:1], *first[-1:], *(folder.lower() for folder in reversed(folders))]
    if first[-1:] in (["document"], ["sentence"]):
        words += first[-3:-2]
    words += [word for part in others for word in (*part[:1], *part[-1:])]
    return next((_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS), None)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{len(names):,} files, {names[0]} to {names[-1]}"


def _read_text(file: CorpusFile, _: Reading, __: Vocabulary | None) -> Iterator[Document]:
    content = file.path.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{file.path}: not UTF-8 at byte {error.start} ({error.reason})") from None
    yield Document(text, key=text)


def _read_columns(file: CorpusFile, reading: Reading, _: Vocabulary | None) -> Iterator[Document]:
    for number, (row, meta) in enumerate(columnar.rows(file.path, reading.text_key)):
        yield of_row(f"{file.path}: row {number}", row, reading.text_key, meta)


def _read_jsonl(file: CorpusFile, reading: Reading, _: Vocabulary | None) -> Iterator[Document]:
    for where, row in json_rows(file.path, reading.text_key):
        yield of_row(where, row, reading.text_key, row.get("meta"))


_READERS: dict[str, Callable[[CorpusFile, Reading, Vocabulary | None], Iterator[Document]]] = {
    ".txt": _read_text,
    ".md": _read_text,
    **dict.fromkeys(JSON, _read_jsonl),
    **dict.fromkeys((".parquet", ".arrow"), _read_columns),
}
"""How a file of a mixed folder is read, by how its name ends."""


def _read_any(file: CorpusFile, reading: Reading, vocabulary: Vocabulary | None) -> Iterator[Document]:
    read = next((read for ending, read in _READERS.items() if file.path.name.endswith(ending)), None)
    if read is None:
        raise CorpusError(f"{file.path}: its name says not how it is read; known are {', '.join(_READERS)}")
    return read(file, reading, vocabulary)


def _find_dataset(paths: Sequence[str]) -> list[CorpusFile]:
    """The splits of a dataset, as if each were a file of that name."""
    paths = [found_at(path) for path in paths]
    if len(paths) != 1:
        raise CorpusError("corpus hf takes one dataset: hf:NAME on the Hub, hf:NAME:SUBSET, or hf:FOLDER")
    return _assign_splits([(Path(paths[0]), name) for name in hub.splits(paths[0])])


def _read_dataset(file: CorpusFile, reading: Reading, _: Vocabulary | None) -> Iterator[Document]:
    for number, (text, meta) in enumerate(hub.rows(str(file.path), file.name, reading.text_key)):
        where = f"hf:{file.path}: row {number} of {file.name}"
        yield of_row(where, {reading.text_key: text}, reading.text_key, meta)


def _dataset_revision(files: Sequence[CorpusFile], reading: Reading) -> str:
    return hub.revision(str(files[0].path), reading.text_key)


def _read_tokens(file: CorpusFile, reading: Reading, vocabulary: Vocabulary | None) -> Iterator[Document]:
    assert vocabulary is not None
    for tokens in layouts.documents(file.path, vocabulary.size, vocabulary.end_of_document, reading.id_type):
        yield Document("", key=hashlib.sha256(tokens.tobytes()).hexdigest(), tokens=tokens)


def _token_revision(files: Sequence[CorpusFile], _: Reading) -> str:
    """Over the token files and the indices beside them."""
    indices = [CorpusFile(file.path.with_suffix(".idx"), file.name, file.split) for file in files]
    return _content_revision([*files, *(index for index in indices if index.path.is_file())], _)


def _content_revision(files: Sequence[CorpusFile], _: Reading) -> str:
    """One SHA-256 over the splits and contents of the files, in order; their names and folders do not count.

    Nor does how they are read, which is declared beside it.
    """
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.split or ''} {content_digest(file.path)}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def content_digest(path: Path) -> str:
    """SHA-256 of a file's content in hex digits, which is read once while size and time stay as they are."""
    stat = path.stat()
    return _digest(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _digest(path: Path, size: int, modified: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


CORPORA: dict[str, CorpusKind] = {
    "python-stdlib": CorpusKind(
        _find_python_stdlib, _read_python_source, lambda files, _: platform.python_version(), compares_splits=True
    ),
    "text": CorpusKind(functools.partial(_find_files, (".txt",)), _read_text, _content_revision),
    "jsonl": CorpusKind(
        functools.partial(_find_files, JSON),
        _read_jsonl,
        _content_revision,
        ("text_key",),
    ),
    "parquet": CorpusKind(
        functools.partial(_find_files, (".parquet",)), _read_columns, _content_revision, ("text_key",)
    ),
    "arrow": CorpusKind(functools.partial(_find_files, (".arrow",)), _read_columns, _content_revision, ("text_key",)),
    "hf": CorpusKind(_find_dataset, _read_dataset, _dataset_revision, ("text_key",)),
    "files": CorpusKind(functools.partial(_find_files, tuple(_READERS)), _read_any, _content_revision, ("text_key",)),
    "tokens": CorpusKind(functools.partial(_find_files, (".bin",)), _read_tokens, _token_revision, ("id_type",)),
}
