"""What a run is trained on, whatever it learns: numbered sequences, in an order that depends on the seed alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from xlstm.data.batches import Batch, Windows
from xlstm.data.generated import GeneratedData
from xlstm.data.mixing import MixedOrder, windows_of_sources
from xlstm.data.order import Order
from xlstm.data.preparation import open_prepared
from xlstm.data.shards import PreparedData
from xlstm.run.directory import Workspace
from xlstm.run.spec import Data, Physics

RunData: TypeAlias = PreparedData | GeneratedData


def open_data(data: Data, workspace: Workspace, paths: Sequence[str] = ()) -> RunData:
    """The data of a run: what `prepare` made of a corpus, or a task; files that it reads lie in `paths`."""
    return open_prepared(data, workspace) if data.generated is None else GeneratedData.open(data, paths)


def windows_of(data: PreparedData, physics: Physics, split: str) -> Windows:
    """A split of a corpus, cut as a run reads it."""
    return Windows(data.stream(split), physics.data.context_length, data.manifest.end_of_document)


@dataclass
class TrainingSequences:
    """The training sequences of a run. ValueError where its corpus holds none."""

    data: RunData
    physics: Physics

    def __post_init__(self) -> None:
        if isinstance(self.data, GeneratedData):
            self._windows, self.different = None, self.data.task.different
        else:
            self._windows = windows_of(self.data, self.physics, "train")
            self.different = self._windows.whole
        self._order: Order | MixedOrder | None = None
        if self.physics.data.mixture is not None:
            self._order = _mixed(self._windows, self.physics)
            self.different = self._order.different
            return
        if self.different == 0:
            assert self._windows is not None
            raise ValueError(
                f"the training split holds {len(self._windows.stream)} tokens: "
                f"not one sequence of {self.physics.data.context_length}"
            )
        self._order = Order(self.different, self.physics.seed) if self.different else None

    def batch(self, first: int, count: int) -> Batch:
        """The sequences at the global indices [first, first + count) of the run."""
        if self._order is None:
            return self.numbered(np.arange(first, first + count))
        return self.numbered(self._order.take(first, count))

    def numbered(self, numbers: NDArray[np.int64]) -> Batch:
        """The sequences of these numbers."""
        if self._windows is not None:
            return self._windows.batch(numbers)
        assert isinstance(self.data, GeneratedData)
        return self.data.training(self.physics.seed, numbers)

    @property
    def every_position_counts(self) -> bool:
        """Whether each position has a target, as in every window of a corpus that is trained on."""
        return self._windows is not None


def _mixed(windows: Windows | None, physics: Physics) -> MixedOrder:
    """The order of a mixture. ValueError naming the source that holds no sequence."""
    assert windows is not None
    assert physics.data.mixture is not None
    stream, context_length = windows.stream, physics.data.context_length
    ends = [
        int(stream.token_at_end[stream.source_of_document == number].max()) for number in range(len(stream.sources))
    ]
    ranges = windows_of_sources(ends, context_length)
    for name, (_, size) in zip(stream.sources, ranges, strict=True):
        if not size:
            raise ValueError(f"the training split of {name} holds not one sequence of {context_length} tokens")
    firsts, sizes = zip(*ranges, strict=True)
    return MixedOrder(firsts, sizes, tuple(one.weight for one in physics.data.mixture), physics.seed)
