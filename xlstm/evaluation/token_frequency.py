"""Loss and perplexity by how often the training split holds a token. Imports without torch."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from xlstm.data.batches import Batch
from xlstm.data.held_out import occurrences
from xlstm.data.preparation import open_prepared
from xlstm.data.sequences import windows_of
from xlstm.evaluation.passes import ChosenWindows, Row, quality, table
from xlstm.models import IGNORED
from xlstm.run.directory import Workspace
from xlstm.run.evaluations import TokenFrequency
from xlstm.run.spec import RunSpec


@dataclass
class BandPasses:
    """Windows of a held-out split; a group is a band of occurrences in the training split."""

    read: ChosenWindows
    names: list[str]
    band_of_token: NDArray[np.int64]
    tokens_of_band: list[int]
    """Different tokens of each band."""
    notes: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, evaluation: TokenFrequency, spec: RunSpec, workspace: Workspace) -> "BandPasses":
        """ValueError where bands do not ascend, or there is no such split."""
        edges = list(evaluation.bands)
        if edges != sorted(set(edges)):
            raise ValueError(f"bands: {edges} do not ascend")
        prepared = open_prepared(spec.physics.data, workspace)
        read = ChosenWindows.of(windows_of(prepared, spec.physics, evaluation.split), evaluation.sequences)
        counts = occurrences(prepared)
        bands = np.searchsorted(edges, counts, side="right").astype(np.int64)
        spans = zip([0, *edges[:-1]], edges, strict=True)
        names = [*(_named(first, end - 1) for first, end in spans), f"{edges[-1]} or more"]
        return cls(read, names, bands, np.bincount(bands, minlength=len(names)).tolist())

    @property
    def count(self) -> int:
        return self.read.count

    @property
    def groups(self) -> int:
        return len(self.names)

    def batch(self, number: int) -> tuple[Batch, NDArray[np.int64]]:
        batch = self.read.batch(number)
        return batch, self.band_of_token[np.where(batch.targets == IGNORED, 0, batch.targets)]

    def measures(self, nats: NDArray[np.float64], tokens: NDArray[np.int64]) -> dict[str, float]:
        return quality(nats.sum(), tokens.sum())

    def tables(self, nats: NDArray[np.float64], tokens: NDArray[np.int64]) -> dict[str, list[Row]]:
        further = [{"different_tokens": count} for count in self.tokens_of_band]
        return {"band": table("band", self.names, nats.tolist(), tokens.tolist(), further)}


def _named(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"
