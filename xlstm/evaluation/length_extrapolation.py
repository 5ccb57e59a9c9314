"""Loss at contexts beyond those of training, on the same tokens, and by position. Imports without torch.

The longest windows are spread over the split; a shorter context cuts each of them into windows of its own, so that at
every context the same tokens are predicted, with less before them.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from xlstm.data.batches import Batch, Windows, evenly
from xlstm.data.preparation import open_prepared
from xlstm.evaluation.passes import ChosenWindows, Row, quality, table
from xlstm.models.naming import family_label
from xlstm.run.directory import Workspace
from xlstm.run.evaluations import LengthExtrapolation
from xlstm.run.spec import RunSpec


@dataclass
class ContextPasses:
    """The passes of one context after those of another, the shortest first; a group is a context and a doubling of the
    position: 0, 1, 2 to 3, 4 to 7 and so on."""

    contexts: list[int]
    reads: list[ChosenWindows]
    notes: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, evaluation: LengthExtrapolation, spec: RunSpec, workspace: Workspace) -> "ContextPasses":
        """ValueError where the split holds no window of the longest context, or a context does not divide it."""
        physics = spec.physics
        prepared = open_prepared(physics.data, workspace)
        stream, end = prepared.stream(evaluation.split), prepared.manifest.end_of_document
        asked = evaluation.contexts_of(physics.data)
        longest = asked[-1]
        if odd := [context for context in asked if longest % context]:
            raise ValueError(f"contexts: {odd[0]} is no divisor of the longest, {longest}, so that tokens would differ")
        whole = Windows(stream, longest, end).whole
        if not whole:
            raise ValueError(f"the {evaluation.split} split holds {len(stream)} tokens: no sequence of {longest}")
        chosen = evenly(min(evaluation.sequences or whole, whole), whole)
        limit: int | None = getattr(physics.model, "context_length", None)
        contexts = [context for context in asked if limit is None or context <= limit]
        reads = []
        for context in contexts:
            parts = longest // context
            numbers = (chosen[:, None] * parts + np.arange(parts)).reshape(-1)
            reads.append(ChosenWindows(Windows(stream, context, end), numbers))
        notes = []
        if beyond := [str(context) for context in asked if context not in contexts]:
            told = f"{family_label(physics.model)} has {limit} positions and cannot read contexts of"
            notes.append(f"{told} {', '.join(beyond)} tokens")
        return cls(contexts, reads, notes)

    @property
    def count(self) -> int:
        return sum(read.count for read in self.reads)

    @property
    def groups(self) -> int:
        return len(self.contexts) * self._doublings

    @property
    def _doublings(self) -> int:
        return max(self.contexts, default=1).bit_length() + 1

    def batch(self, number: int) -> tuple[Batch, NDArray[np.int64]]:
        index = 0
        while number >= self.reads[index].count:
            number -= self.reads[index].count
            index += 1
        batch = self.reads[index].batch(number)
        positions = np.arange(self.contexts[index])
        doublings = np.frexp(positions)[1].astype(np.int64)  # 0, 1, 2, 2, 3, 3, 3, 3, …
        return batch, np.broadcast_to(index * self._doublings + doublings, batch.tokens.shape)

    def measures(self, nats: NDArray[np.float64], tokens: NDArray[np.int64]) -> dict[str, float]:
        """Those of the longest context that could be read."""
        if not self.contexts:
            return {}
        return quality(nats.reshape(-1, self._doublings)[-1].sum(), tokens.reshape(-1, self._doublings)[-1].sum())

    def tables(self, nats: NDArray[np.float64], tokens: NDArray[np.int64]) -> dict[str, list[Row]]:
        by_context, counts = nats.reshape(-1, self._doublings), tokens.reshape(-1, self._doublings)
        plain: list[dict[str, int]] = [{} for _ in self.contexts]
        overall = table("context", self.contexts, by_context.sum(1).tolist(), counts.sum(1).tolist(), plain)
        by_position: list[Row] = []
        for context, sums, seen in zip(self.contexts, by_context, counts, strict=True):
            firsts = [0, *(1 << power for power in range(context.bit_length()))]
            kept = [index for index, first in enumerate(firsts) if first < context]
            further = [{"context": context, "last": min(max(2 * firsts[i] - 1, i), context - 1)} for i in kept]
            by_position += table(
                "position", [firsts[i] for i in kept], sums[kept].tolist(), seen[kept].tolist(), further
            )
        return {"context": overall, "position": by_position}
