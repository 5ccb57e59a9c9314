"""What an evaluation reads, cut into passes of the model, and what the sums over them mean. Imports without torch.

Every kind is a sum of nats and of tokens over groups of predicted tokens: sources, bands, positions, domains. A pass
holds the same sequences whoever makes it, so that neither the number of ranks nor an interruption changes a sum.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from xlstm.data.batches import Batch, Windows, evenly
from xlstm.models.naming import family_label
from xlstm.run.evaluations import Inference
from xlstm.run.spec import RunSpec

TOKENS_PER_PASS = 1 << 14
"""Of one rank; a longer sequence is a pass of its own."""

KEPT_EVERY_SECONDS = 30.0
"""Between two times that what was measured so far is kept, from which the next attempt goes on."""

Row = dict[str, str | bool | int | float | None]


class StoppedError(Exception):
    """A rank was asked to stop: what was measured so far is kept."""


class Passes(Protocol):
    """One evaluation of one run: so many passes, which give sums of nats and tokens by so many groups."""

    notes: list[str]
    """What cannot be measured, and why."""

    @property
    def count(self) -> int: ...

    @property
    def groups(self) -> int: ...

    def batch(self, number: int) -> tuple[Batch, NDArray[np.int64]]:
        """A pass, and for every target the number of its group, `(sequences, time)`."""
        ...

    def measures(self, nats: NDArray[np.float64], tokens: NDArray[np.int64]) -> dict[str, float]:
        """The numbers that stand for the whole."""
        ...

    def tables(self, nats: NDArray[np.float64], tokens: NDArray[np.int64]) -> dict[str, list[Row]]:
        """The numbers by what they are told apart, each table under the name of its first column."""
        ...


@dataclass(frozen=True)
class ChosenWindows:
    """Some windows of a stream, in passes of as many as `TOKENS_PER_PASS` allows."""

    windows: Windows
    chosen: NDArray[np.int64]

    @classmethod
    def of(cls, windows: Windows, sequences: int | None) -> "ChosenWindows":
        """All windows of a stream, or so many of them, evenly."""
        count = min(sequences or windows.covering, windows.covering)
        return cls(windows, evenly(count, windows.covering))

    @property
    def are_all(self) -> bool:
        return len(self.chosen) == self.windows.covering

    @property
    def together(self) -> int:
        return max(1, TOKENS_PER_PASS // self.windows.context_length)

    @property
    def count(self) -> int:
        return -(-len(self.chosen) // self.together)

    def numbers(self, number: int) -> NDArray[np.int64]:
        """The windows of a pass."""
        return self.chosen[number * self.together : (number + 1) * self.together]

    def batch(self, number: int) -> Batch:
        return self.windows.batch(self.numbers(number))


def prompts(evaluation: Inference, spec: RunSpec) -> tuple[list[int], list[str]]:
    """Lengths of prompts that a model can read and go on from, ascending, and what is to be said of the others."""
    config, asked = spec.physics.model, sorted(set(evaluation.contexts))
    limit: int | None = getattr(config, "context_length", None)
    readable = [one for one in asked if limit is None or one + evaluation.generated <= limit]
    beyond = [str(one) for one in asked if one not in readable]
    told = f"{family_label(config)} has {limit} positions: none for {evaluation.generated} tokens after prompts of"
    return readable, [f"{told} {', '.join(beyond)}"] if beyond else []


def quality(nats: float, tokens: int, text_bytes: float | None = None) -> dict[str, float]:
    """Loss in nats per token, perplexity, and, where bytes are known, bits per byte; empty of no tokens."""
    if not tokens:
        return {}
    loss = float(nats) / int(tokens)
    found = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
    if text_bytes:
        found["bits_per_byte"] = float(nats) / math.log(2) / text_bytes
    return found


def table(
    axis: str, names: Sequence[Any], nats: Sequence[float], tokens: Sequence[int], further: Sequence[Mapping[str, Any]]
) -> list[Row]:
    """A row for each name: what is further said of it, how many tokens were predicted, and how well."""
    return [
        {axis: name, **more, "tokens": int(count), **quality(total, count, more.get("bytes"))}
        for name, total, count, more in zip(names, nats, tokens, further, strict=True)
    ]
