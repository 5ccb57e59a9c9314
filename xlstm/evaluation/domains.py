"""Perplexity by domain and by source of documents in PALOMA's layout and protocol. Imports without torch.

As in arXiv 2312.10523 and in lm-eval's rolling windows: every document for itself, an end of document before it,
windows of the context length that do not overlap in what they predict; the last is filled up with earlier tokens, and
only the new ones count. Ends of documents are not predicted. A source is the mean over its tokens, not its domains.
"""

import math
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xlstm.data.batches import Batch
from xlstm.data.held_out import SPLIT, open_text
from xlstm.data.shards import TokenStream
from xlstm.evaluation.passes import TOKENS_PER_PASS, Row, quality, table
from xlstm.models import IGNORED
from xlstm.run.directory import Workspace
from xlstm.run.evaluations import Domains
from xlstm.run.spec import RunSpec


@dataclass
class DocumentPasses:
    """Rolling windows over documents, longest first, so that what is read together is of one length."""

    stream: TokenStream
    end_of_document: int
    fringe: tuple[str, ...]
    starts: NDArray[np.int64]
    """Of each window, the position of the first token that is read."""
    lengths: NDArray[np.int64]
    counted: NDArray[np.int64]
    """How many of its last targets count."""
    domains: NDArray[np.int64]
    firsts: list[int]
    """The first window of each pass, and their number as the last."""
    notes: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, evaluation: Domains, spec: RunSpec, workspace: Workspace) -> "DocumentPasses":
        data = spec.physics.data
        prepared = open_text(evaluation, data, workspace)
        context = evaluation.context_length or data.context_length
        stream = prepared.stream(SPLIT)
        starts, lengths, counted, documents = rolling_windows(stream.token_at_end.astype(np.int64), context)
        order = np.argsort(-lengths, kind="stable")
        lengths = lengths[order]
        firsts = [0]
        while firsts[-1] < len(lengths):
            together = max(1, TOKENS_PER_PASS // int(lengths[firsts[-1]]))
            firsts.append(min(firsts[-1] + together, len(lengths)))
        domains = stream.source_of_document.astype(np.int64)[documents[order]]
        end = prepared.manifest.end_of_document
        return cls(stream, end, evaluation.fringe, starts[order], lengths, counted[order], domains, firsts)

    @property
    def count(self) -> int:
        return len(self.firsts) - 1

    @property
    def groups(self) -> int:
        return len(self.stream.sources)

    def batch(self, number: int) -> tuple[Batch, NDArray[np.int64]]:
        first, last = self.firsts[number], self.firsts[number + 1]
        longest = int(self.lengths[first])
        tokens = np.full((last - first, longest), self.end_of_document, dtype=np.int64)
        targets = np.full_like(tokens, IGNORED)
        for row, window in enumerate(range(first, last)):
            start, length, counted = int(self.starts[window]), int(self.lengths[window]), int(self.counted[window])
            span = self.stream.read(start, start + length + 1)
            tokens[row, :length] = span[:-1]
            targets[row, length - counted : length] = span[1 + length - counted :]
        domains = np.broadcast_to(self.domains[first:last, None], tokens.shape)
        return Batch(tokens, targets, tokens == self.end_of_document), domains

    def measures(self, nats: NDArray[np.float64], tokens: NDArray[np.int64]) -> dict[str, float]:
        """Over all tokens, and the mean over sources of their perplexities, the fringe left out."""
        rows = self.tables(nats, tokens)["source"]
        usual = [float(row["perplexity"]) for row in rows if not row["fringe"] and row["tokens"]]  # type: ignore[arg-type]
        found = quality(nats.sum(), tokens.sum(), float(self._of_domains()["bytes"].sum()))
        return found | ({"average_perplexity": fmean(usual)} if usual else {}) | {"domains": float(self.groups)}

    def tables(self, nats: NDArray[np.float64], tokens: NDArray[np.int64]) -> dict[str, list[Row]]:
        counts, names = self._of_domains(), self.stream.sources
        further: list[dict[str, Any]] = [
            {"source": name.partition("/")[0], "documents": int(documents), "bytes": int(text_bytes)}
            for name, documents, text_bytes in zip(names, counts["documents"], counts["bytes"], strict=True)
        ]
        by_domain = table("domain", names, nats.tolist(), tokens.tolist(), further)
        sources = sorted({more["source"] for more in further})
        members = [[i for i, more in enumerate(further) if more["source"] == source] for source in sources]
        about = [
            {
                "fringe": source in self.fringe,
                "domains": len(mine),
                "documents": sum(further[i]["documents"] for i in mine),
                "bytes": sum(further[i]["bytes"] for i in mine),
            }
            for source, mine in zip(sources, members, strict=True)
        ]
        sums = [math.fsum(nats[mine]) for mine in members]
        by_source = table("source", sources, sums, [int(tokens[mine].sum()) for mine in members], about)
        return {"source": by_source, "domain": by_domain}

    def _of_domains(self) -> dict[str, NDArray[np.float64]]:
        of_document = self.stream.source_of_document.astype(np.int64)
        text_bytes = np.diff(self.stream.text_bytes_at_end.astype(np.int64), prepend=0)
        return {
            "documents": np.bincount(of_document, minlength=self.groups).astype(np.float64),
            "bytes": np.bincount(of_document, text_bytes, minlength=self.groups).astype(np.float64),
        }


def rolling_windows(ends: NDArray[np.int64], context: int) -> tuple[NDArray[np.int64], ...]:
    """The windows of documents that end, with their ends of document, at these positions of a stream.

    Start, length, counted targets and document of each. A document without a token has none.
    """
    before = np.concatenate([[0], ends[:-1] - 1])  # the end of document that each is read after
    sizes = ends - before - 2
    parts = -(-sizes // context)
    documents = np.repeat(np.arange(len(ends)), parts)
    number = np.arange(len(documents)) - np.repeat(np.cumsum(parts) - parts, parts)
    size = sizes[documents]
    done = number * context
    counted = np.minimum(context, size - done)
    lengths = np.minimum(context, size)
    starts = before[documents] + done + counted - lengths
    return starts, lengths, counted, documents
