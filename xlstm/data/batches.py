"""Batches: from a stream of tokens to the sequences of a step. Plain arrays; imports without torch.

A training sequence is a window of `context_length` tokens of the stream with the token that follows each as its target.
Windows do not overlap. Which window comes when, `order.Order` says: a batch depends on the seed and the step alone.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xlstm.data.shards import TokenStream
from xlstm.models import IGNORED


@dataclass(frozen=True)
class Batch:
    """Some sequences: int64 arrays `(sequences, context_length)`; `resets` is true where a document starts.

    Tasks may have real numbers instead; see `xlstm.tasks.contract.Examples`.
    """

    tokens: NDArray[Any]
    targets: NDArray[Any]
    resets: NDArray[np.bool_]

    @property
    def counted(self) -> int:
        """Positions that have a target."""
        return int(np.count_nonzero(self.targets != IGNORED))

    def rows(self, start: int, stop: int) -> "Batch":
        """Some of the sequences, as views."""
        return Batch(self.tokens[start:stop], self.targets[start:stop], self.resets[start:stop])


@dataclass(frozen=True)
class Windows:
    """The stream of a split, cut into sequences."""

    stream: TokenStream
    context_length: int
    end_of_document: int

    @property
    def whole(self) -> int:
        """Number of windows whose every position has a target: those that are trained on."""
        return (len(self.stream) - 1) // self.context_length

    @property
    def covering(self) -> int:
        """Number of windows that hold every target once, the last perhaps padded: those that are validated on."""
        return -(-(len(self.stream) - 1) // self.context_length)

    def sources(self, windows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of the source of the document that each target belongs to, `(sequences, context_length)`."""
        positions = windows[:, None] * self.context_length + np.arange(1, self.context_length + 1)
        documents = np.searchsorted(self.stream.token_at_end, positions, side="right")
        last = len(self.stream.source_of_document) - 1
        return self.stream.source_of_document[np.minimum(documents, last)].astype(np.int64)

    def batch(self, windows: NDArray[np.int64]) -> Batch:
        """The given windows as a batch; a number past the end gives a window without targets."""
        length, end = self.context_length, len(self.stream)
        tokens = np.empty((len(windows), length), dtype=np.int64)
        targets = np.empty_like(tokens)
        for row, window in enumerate(windows.tolist()):
            start = min(window * length, end)
            span = self.stream.read(start, min(start + length + 1, end))
            if len(span) > length:
                tokens[row], targets[row] = span[:-1], span[1:]
            else:  # padding is read as ends of documents
                tokens[row], targets[row] = self.end_of_document, IGNORED
                tokens[row, : len(span)] = span
                targets[row, : max(len(span) - 1, 0)] = span[1:]
        # The end of a document is read as the start of the next: the state is reset where it is read.
        return Batch(tokens, targets, tokens == self.end_of_document)


def evenly(count: int, of: int) -> NDArray[np.int64]:
    """The middles of `count` equal parts of so many windows: ascending numbers, each once."""
    return (2 * np.arange(count) + 1) * of // (2 * count)
