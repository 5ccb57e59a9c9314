"""Tokenizers: text to token ids and back.

By name in a specification: `bytes`; `characters`, `words` and `bpe-<size>`, which learn from the training split; a
`tokenizer.json` of the Hugging Face library, named by its content as `json-<12 hex digits>`; a published one by name
(`gpt2`, `gpt-neox-20b`), whose `tokenizer.json` is needed only to prepare data; `ids-<size>` for token files whose
tokenizer is not at hand. Every tokenizer has a token that ends a document. Imports without torch.
"""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xlstm.data.locations import located

Tokens = NDArray[Any]
"""One-dimensional array of unsigned token ids."""


@dataclass(frozen=True)
class Vocabulary:
    """Number of token ids, and the one that ends a document."""

    size: int
    end_of_document: int


PUBLISHED = {"gpt2": Vocabulary(50257, 50256), "gpt-neox-20b": Vocabulary(50277, 0)}
"""Vocabularies of published tokenizers: known without their files, so that planning needs none."""

_ENDS_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<EOS>", "[EOS]")
_UNKNOWN = "<unk>"
_CONFIG = "tokenizer_config.json"


class Tokenizer(ABC):
    """What the preparation of data and the generation of text need to know of a tokenizer."""

    vocabulary: int
    """Number of token ids, the end of document among them."""
    end_of_document: int

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Token ids of each text, without the end of document."""

    @abstractmethod
    def decode(self, tokens: Tokens) -> str:
        """Text of token ids; what is not valid text becomes the replacement character."""

    def token_bytes(self) -> NDArray[np.int64] | None:
        """UTF-8 bytes of text that each token stands for: 0 at an end of document, -1 where the token does not tell.

        None where no token does: how much text a word stands for depends on what lies between two.
        """
        return None

    def save(self) -> str | None:
        """What `load_tokenizer` makes it from again; None where the name says all."""
        return None


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes. The end of document is 0xFF, which UTF-8 never holds, so the vocabulary is exactly 256."""

    vocabulary = 256
    end_of_document = 0xFF

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        return [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]

    def decode(self, tokens: Tokens) -> str:
        content: bytes = tokens[tokens != self.end_of_document].astype(np.uint8).tobytes()
        return content.decode(errors="replace")

    def token_bytes(self) -> NDArray[np.int64]:
        return np.where(np.arange(self.vocabulary) == self.end_of_document, 0, 1)


class CharacterTokenizer(Tokenizer):
    """Characters of the training split in the order of their code points, then the unknown one, then the end."""

    def __init__(self, characters: str) -> None:
        self.characters = characters
        self._points = np.array([ord(c) for c in characters], dtype=np.uint32)
        self.vocabulary = len(characters) + 2
        self.end_of_document = len(characters) + 1

    @classmethod
    def learn(cls, texts: Iterable[str]) -> "CharacterTokenizer":
        seen: set[str] = set()
        for text in texts:
            seen.update(text)
        return cls("".join(sorted(seen)))

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        return [self._encode(np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)) for text in texts]

    def _encode(self, points: NDArray[np.uint32]) -> Tokens:
        places = np.minimum(np.searchsorted(self._points, points), len(self._points) - 1)
        return np.where(self._points[places] == points, places, len(self._points))

    def decode(self, tokens: Tokens) -> str:
        known = self.characters + "\ufffd"
        return "".join(known[token] for token in tokens.tolist() if token != self.end_of_document)

    def token_bytes(self) -> NDArray[np.int64]:
        return np.array([*(len(character.encode()) for character in self.characters), -1, 0])

    def save(self) -> str:
        return json.dumps({"kind": "characters", "characters": self.characters})


class WordTokenizer(Tokenizer):
    """Words between white space, most frequent first; the end of a line is a token, and ends documents too.

    So WikiText's convention of one end per line is kept to the token: a file of lines has as many tokens as words and
    lines. Words that the training split lacks are `<unk>`.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self._ids = {word: index for index, word in enumerate(self.words)}
        self._unknown = self._ids[_UNKNOWN]
        self.end_of_document = len(self.words)
        self.vocabulary = len(self.words) + 1

    @classmethod
    def learn(cls, texts: Iterable[str]) -> "WordTokenizer":
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(text.split())
        counts.setdefault(_UNKNOWN, 0)
        return cls(sorted(counts, key=lambda word: (-counts[word], word)))

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> Tokens:
        find, unknown, end = self._ids.get, self._unknown, self.end_of_document
        ids: list[int] = []
        for line in text.removesuffix("\n").split("\n"):
            ids += [find(word, unknown) for word in line.split()]
            ids.append(end)
        return np.array(ids[:-1], dtype=np.uint32)

    def decode(self, tokens: Tokens) -> str:
        lines: list[list[str]] = [[]]
        for token in tokens.tolist():
            if token == self.end_of_document:
                lines.append([])
            else:
                lines[-1].append(self.words[token] if token < len(self.words) else "\ufffd")
        return "\n".join(" ".join(line) for line in lines)

    def save(self) -> str:
        return json.dumps({"kind": "words", "words": self.words})


class JsonTokenizer(Tokenizer):
    """A `tokenizer.json` of the Hugging Face `tokenizers` library.

    `end_of_text` is the token that ends a text, where it is none of the usual ones. ValueError where there is none. A
    text that quotes a special token is encoded as any other text, and reads back as it was.
    """

    def __init__(self, content: str, end_of_text: str | None = None) -> None:
        import tokenizers

        self._content = content
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_str(content)
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"not a tokenizer.json: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        known = self._tokenizer.get_vocab(with_added_tokens=True)
        if not known:
            raise ValueError("the tokenizer.json has no tokens")
        self.vocabulary: int = max(known.values()) + 1
        candidates = _ENDS_OF_TEXT if end_of_text is None else (end_of_text,)
        numbered = [(end, self._tokenizer.token_to_id(end)) for end in candidates]
        found = [(end, number) for end, number in numbered if number is not None]
        if not found and end_of_text is not None:
            raise ValueError(f"the tokenizer.json has no token {end_of_text!r} to end a text with")
        if not found:
            raise ValueError(
                f"the tokenizer.json has no token that ends a text; known are {', '.join(_ENDS_OF_TEXT)}; for another, "
                "say data.end_of_text, or lay its tokenizer_config.json beside it"
            )
        self._end, self.end_of_document = found[0]
        self._tokenizer.add_special_tokens([self._end])  # keeps its id; one that is not special would be found in texts
        self._tokenizer.encode_special_tokens = True

    @classmethod
    def learn_bpe(cls, size: int, texts: Iterable[str]) -> "JsonTokenizer":
        """A byte-level BPE of `size` tokens (Sennrich et al. 2016; bytes as in GPT-2), learnt from texts."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[_ENDS_OF_TEXT[0]],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer.to_str())

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ids = [np.array(one.ids, dtype=np.uint32) for one in encoded]
        if any((one == self.end_of_document).any() for one in ids):  # some models know it as a piece of text, too
            raise ValueError(f"a text holds {self._end!r}, which this tokenizer cannot tell from the end of a text")
        return ids

    def decode(self, tokens: Tokens) -> str:
        text: str = self._tokenizer.decode(tokens.tolist(), skip_special_tokens=True)
        return text

    def token_bytes(self) -> NDArray[np.int64] | None:
        # A byte-level vocabulary (GPT-2) writes each byte of a token as one character; added tokens are plain text.
        content = json.loads(self._content)
        if (content.get("decoder") or {}).get("type") != "ByteLevel" or content.get("normalizer"):
            return None
        counts = np.full(self.vocabulary, -1)
        for token, index in self._tokenizer.get_vocab(with_added_tokens=False).items():
            counts[index] = len(token)
        for added in content.get("added_tokens", ()):
            counts[added["id"]] = 0 if added["id"] == self.end_of_document else len(added["content"].encode())
        return counts

    def save(self) -> str:
        return self._content


class PlainIds(Tokenizer):
    """Token ids without a tokenizer: they can be trained on and shown, but neither made nor read."""

    def __init__(self, size: int) -> None:
        self.vocabulary, self.end_of_document = size + 1, size

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        try:
            return [np.array([int(word) for word in text.split()], dtype=np.uint32) for text in texts]
        except ValueError:
            raise ValueError("a run on plain ids reads numbers between blanks, not text") from None

    def decode(self, tokens: Tokens) -> str:
        return " ".join(str(token) for token in tokens.tolist() if token != self.end_of_document)


def canonical_name(tokenizer: str) -> str:
    """The name under which a specification holds a tokenizer: a path to a `tokenizer.json` becomes its content's.

    ValueError for a name that is none, and for a file that cannot be read.
    """
    if tokenizer.endswith(".json"):
        return f"json-{hashlib.sha256(_read(tokenizer).encode()).hexdigest()[:12]}"
    if not re.fullmatch(r"bytes|characters|words|bpe-\d+|ids-\d+|json-[0-9a-f]{12}", tokenizer) and (
        tokenizer not in PUBLISHED
    ):
        known = ["bytes", "characters", "words", "bpe-<size>", "ids-<size>", *PUBLISHED, "a path to a tokenizer.json"]
        raise ValueError(f"unknown tokenizer {tokenizer!r}; known are {', '.join(known)}")
    if (size := _size(tokenizer)) is not None and tokenizer.startswith("bpe-") and size < 257:
        raise ValueError(f"tokenizer {tokenizer}: a byte-level vocabulary has at least 257 tokens")
    return tokenizer


def end_of_text_beside(path: str) -> str | None:
    """The token that ends a text, where the `tokenizer.json` at `path` has none of the usual ones.

    It is the `eos_token` of the `tokenizer_config.json` in the same folder; of `NAME.json`, also of
    `NAME.tokenizer_config.json`. None where the usual ones suffice, or none is said. ValueError for a file that is no
    JSON.
    """
    file, content = Path(located(path)), _json(path, _read(path))
    try:
        known = {token["content"] for token in content.get("added_tokens") or ()}
        known |= {item if isinstance(item, str) else item[0] for item in content["model"]["vocab"]}
    except (KeyError, TypeError, IndexError):
        return None  # no tokenizer.json, as is said where it is opened
    if not known.isdisjoint(_ENDS_OF_TEXT):
        return None
    for beside in (file.with_name(f"{file.stem}.{_CONFIG}"), file.with_name(_CONFIG)):
        if beside.is_file():
            said = _json(str(beside), _read(str(beside))).get("eos_token")
            token = said.get("content") if isinstance(said, dict) else said
            if isinstance(token, str) and token:
                return token
    return None


def make_tokenizer(name: str, path: str | None, texts: Iterable[str], end_of_text: str | None = None) -> Tokenizer:
    """The tokenizer called `name`: opened, read from the file at `path`, or learnt from the training split's texts.

    `end_of_text` is for one in a file. ValueError where a file is needed and missing, or is not the one that the name
    says.
    """
    if end_of_text is not None and not name.startswith("json-"):
        raise ValueError(f"tokenizer {name}: its end of text is known; data.end_of_text is for a tokenizer.json")
    if name == "bytes":
        return ByteTokenizer()
    if name == "characters":
        return CharacterTokenizer.learn(texts)
    if name == "words":
        return WordTokenizer.learn(texts)
    size = _size(name)
    if size is not None:
        return JsonTokenizer.learn_bpe(size, texts) if name.startswith("bpe-") else PlainIds(size)
    if path is None:
        raise ValueError(f"tokenizer {name}: its tokenizer.json is needed; give its path as the tokenizer")
    if name.startswith("json-") and canonical_name(path) != name:
        raise ValueError(f"{path}: this is {canonical_name(path)}, the run declares {name}")
    tokenizer = JsonTokenizer(_read(path), end_of_text)
    found = Vocabulary(tokenizer.vocabulary, tokenizer.end_of_document)
    if found != PUBLISHED.get(name, found):
        raise ValueError(f"{path}: {found}, but {name} has {PUBLISHED[name]}")
    return tokenizer


def load_tokenizer(name: str, saved: str | None, end_of_text: str | None = None) -> Tokenizer:
    """The tokenizer that prepared data hold: `saved` is what its `save` gave."""
    if saved is None:
        return make_tokenizer(name, None, ())
    kind = json.loads(saved).get("kind")
    if kind == "characters":
        return CharacterTokenizer(json.loads(saved)["characters"])
    if kind == "words":
        return WordTokenizer(json.loads(saved)["words"])
    return JsonTokenizer(saved, end_of_text)


def stated_vocabulary(name: str) -> Vocabulary | None:
    """Vocabulary of a tokenizer whose name says it; None where the corpus or a file decides."""
    size = _size(name)
    if size is not None:
        return Vocabulary(size, 0) if name.startswith("bpe-") else Vocabulary(size + 1, size)
    return {"bytes": Vocabulary(256, 0xFF), **PUBLISHED}.get(name)


def model_vocabulary(vocabulary: int) -> int:
    """Rows of the embedding: 256 for bytes, else rounded up to a multiple of 64 (GPT-2's 50257 -> 50304)."""
    return vocabulary if vocabulary == 256 else -(-vocabulary // 64) * 64


def token_dtype(vocabulary: int) -> str:
    """The narrowest little-endian unsigned type that holds every id."""
    return "<u1" if vocabulary <= 1 << 8 else "<u2" if vocabulary <= 1 << 16 else "<u4"


def _size(name: str) -> int | None:
    match = re.fullmatch(r"(?:bpe|ids)-(\d+)", name)
    return int(match[1]) if match else None


def _json(path: str, content: str) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError as error:
        raise ValueError(f"tokenizer {path}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"tokenizer {path}: not a mapping, as a tokenizer's files are")
    return found


def _read(path: str) -> str:
    try:
        return Path(located(path)).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ValueError(f"tokenizer {path}: cannot be read: {error}") from None
