"""Loss, perplexity and bits per byte on any corpus, by its sources: read as a validation is. Imports without torch."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from xlstm.data.batches import Batch, Windows
from xlstm.data.held_out import SPLIT, open_text
from xlstm.data.preparation import data_folder, tokenizer_of
from xlstm.evaluation.passes import ChosenWindows, Row, quality, table
from xlstm.models import IGNORED
from xlstm.run.directory import Workspace
from xlstm.run.evaluations import CorpusEvaluation
from xlstm.run.spec import RunSpec


@dataclass
class CorpusPasses:
    """Windows over the documents of a corpus, one after the other; every token is predicted once."""

    read: ChosenWindows
    token_bytes: NDArray[np.int64] | None
    """Bytes that each token of the tokenizer stands for, where each stands for bytes."""
    notes: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, evaluation: CorpusEvaluation, spec: RunSpec, workspace: Workspace) -> "CorpusPasses":
        data = spec.physics.data
        prepared = open_text(evaluation, data, workspace)
        context = evaluation.context_length or data.context_length
        windows = Windows(prepared.stream(SPLIT), context, prepared.manifest.end_of_document)
        read = ChosenWindows.of(windows, evaluation.sequences)
        return cls(read, None if read.are_all else tokenizer_of(data, data_folder(data, workspace)).token_bytes())

    @property
    def count(self) -> int:
        return self.read.count

    @property
    def groups(self) -> int:
        return len(self.read.windows.stream.sources)

    def batch(self, number: int) -> tuple[Batch, NDArray[np.int64]]:
        return self.read.batch(number), self.read.windows.sources(self.read.numbers(number))

    def measures(self, nats: NDArray[np.float64], tokens: NDArray[np.int64]) -> dict[str, float]:
        return quality(nats.sum(), tokens.sum(), float(self._text_bytes(tokens).sum()))

    def tables(self, nats: NDArray[np.float64], tokens: NDArray[np.int64]) -> dict[str, list[Row]]:
        names = self.read.windows.stream.sources
        further = [{"bytes": float(count)} for count in self._text_bytes(tokens)]
        return {"source": table("source", names, nats.tolist(), tokens.tolist(), further)} if len(names) > 1 else {}

    def _text_bytes(self, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """UTF-8 bytes of what was predicted, by source.

        Exact for a whole split, and where tokens stand for bytes; else by the bytes per token of the source.
        """
        stream = self.read.windows.stream
        of_document = np.diff(stream.text_bytes_at_end.astype(np.int64), prepend=0)
        sources = stream.source_of_document.astype(np.int64)
        whole = np.bincount(sources, of_document, minlength=self.groups).astype(np.float64)
        if self.read.are_all:
            return whole
        if self.token_bytes is not None:
            counted = np.zeros(self.groups)
            for number in range(self.count):
                batch, groups = self.batch(number)
                asked = batch.targets != IGNORED
                of_token = self.token_bytes[batch.targets[asked]]
                if (of_token < 0).any():
                    break
                counted += np.bincount(groups[asked], of_token, minlength=self.groups)
            else:
                return counted
        lengths = np.diff(stream.token_at_end.astype(np.int64), prepend=1)
        in_all = np.bincount(sources, lengths, minlength=self.groups)
        return whole / in_all * tokens
