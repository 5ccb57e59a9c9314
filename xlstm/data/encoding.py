"""From documents to token ids, a batch at a time: the tokenizer's own threads share a batch. Imports without torch."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from xlstm.data.corpora import SplitName
from xlstm.data.corpora.documents import Document
from xlstm.data.tokenizers import PlainIds, Tokenizer, Tokens

_BATCH_LENGTH = 1 << 22
"""Characters, or tokens of a corpus that holds them, that are tokenized at once."""


@dataclass(frozen=True)
class Encoded:
    """One document as token ids."""

    split: SplitName
    tokens: Tokens
    text_bytes: int
    """UTF-8 bytes of its text; 0 where ids stand for no known text."""
    source: str


def batches(documents: Iterable[tuple[SplitName, Document]]) -> Iterator[list[tuple[SplitName, Document]]]:
    """Documents with their splits, in lists of which each holds enough to keep the tokenizer's threads busy."""
    batch, size = [], 0
    for item in documents:
        batch.append(item)
        size += item[1].length
        if size >= _BATCH_LENGTH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def encode(batch: list[tuple[SplitName, Document]], tokenizer: Tokenizer) -> Iterator[Encoded]:
    """Each document of a batch, in order."""
    if batch[0][1].tokens is None:
        encoded = tokenizer.encode([document.text for _, document in batch])
        for (split, document), tokens in zip(batch, encoded, strict=True):
            yield Encoded(split, tokens, len(document.text.encode()), document.source)
        return
    for split, document in batch:
        assert document.tokens is not None
        text = "" if isinstance(tokenizer, PlainIds) else tokenizer.decode(document.tokens)
        yield Encoded(split, document.tokens, len(text.encode()), document.source)
