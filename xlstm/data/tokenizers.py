"""Tokenizers: text to token ids and back. `open_tokenizer` finds one by the name a specification carries.

Every tokenizer has a token that ends a document. Vocabularies other than bytes are rounded up to a multiple of 64 for
the model (`model_vocabulary`). Imports without torch.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[Any]
"""One-dimensional array of unsigned token ids."""


class Tokenizer(Protocol):
    """What the preparation and the generation of text need to know of a tokenizer."""

    vocabulary: int
    """Number of token ids, the end of document among them."""
    end_of_document: int

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Token ids of each text, without the end of document."""
        ...

    def decode(self, tokens: Tokens) -> str:
        """Text of token ids; what is not valid text becomes the replacement character."""
        ...


class ByteTokenizer:
    """UTF-8 bytes. The end of document is 0xFF, which UTF-8 never holds, so the vocabulary is exactly 256."""

    vocabulary = 256
    end_of_document = 0xFF

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        return [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]

    def decode(self, tokens: Tokens) -> str:
        content: bytes = tokens[tokens != self.end_of_document].astype(np.uint8).tobytes()
        return content.decode(errors="replace")


def open_tokenizer(name: str) -> Tokenizer:
    """The tokenizer called `name` in a specification. ValueError with the known names for another."""
    if name == "bytes":
        return ByteTokenizer()
    raise ValueError(f"unknown tokenizer {name!r}; known are bytes")


def model_vocabulary(tokenizer: Tokenizer) -> int:
    """Rows of the embedding: 256 for bytes, else rounded up to a multiple of 64 (GPT-2's 50257 -> 50304)."""
    return tokenizer.vocabulary if tokenizer.vocabulary == 256 else -(-tokenizer.vocabulary // 64) * 64


def token_dtype(vocabulary: int) -> str:
    """The narrowest little-endian unsigned type that holds every id."""
    return "<u1" if vocabulary <= 1 << 8 else "<u2" if vocabulary <= 1 << 16 else "<u4"
