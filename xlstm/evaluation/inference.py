"""How long a trained model takes to answer: to the first token and per token after it, against what it has read.

As arXiv 2510.02228 measures inference: a prompt of each length is read, and tokens are generated one at a time from the
model's own state, the likeliest each time, without a round trip to the host. Rounds go through all lengths in turn, so
that what slows the machine slows all. A law of each is a power of the length, by least squares of logarithms.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from scipy import special
from torch import Tensor, nn

from xlstm import accounting
from xlstm.evaluation.passes import Row, StoppedError, prompts
from xlstm.models.attention import KeysAndValues
from xlstm.run.evaluations import Inference
from xlstm.run.spec import RunSpec

WARM_TOKENS = 2
"""Generated once at every length before anything is timed."""
TIMED = ("seconds_to_first_token", "seconds_per_token")


@dataclass
class Timings:
    """What was measured of one model: seconds by length, a value for each round."""

    evaluation: Inference
    spec: RunSpec
    device: torch.device
    contexts: list[int] = field(init=False)
    notes: list[str] = field(init=False)
    seconds: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    """To the first token, and per token after it."""
    state_bytes: dict[int, int] = field(default_factory=dict)
    """Of what is kept of a prompt, for the whole batch."""

    def __post_init__(self) -> None:
        self.contexts, self.notes = prompts(self.evaluation, self.spec)

    def run(self, model: nn.Module, stopped: Callable[[], bool]) -> None:
        """Time every round; the ranks of a sharded model go along. StoppedError where `stopped` says so."""
        for context in self.contexts:
            self._once(model, context, WARM_TOKENS)
        for _ in range(self.evaluation.rounds):
            for context in self.contexts:
                if stopped():
                    raise StoppedError
                self.seconds.setdefault(context, []).append(self._once(model, context, self.evaluation.generated))

    def _once(self, model: nn.Module, context: int, count: int) -> tuple[float, float]:
        vocabulary = self.spec.physics.model.vocab_size
        generator = torch.Generator().manual_seed(context)
        prompt = torch.randint(vocabulary, (self.evaluation.batch, context), generator=generator).to(self.device)
        begin = self._now()
        logits, state = model(prompt, last=True)
        token = logits[:, -1:].argmax(-1)
        first = self._now()
        self.state_bytes[context] = _bytes(state)
        for _ in range(count - 1):
            logits, state = model(token, state, last=True)
            token = logits[:, -1:].argmax(-1)
        return first - begin, (self._now() - first) / max(count - 1, 1)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @property
    def tokens(self) -> int:
        """Read and generated, in all rounds."""
        each = sum(context + self.evaluation.generated for context in self.contexts)
        return self.evaluation.batch * self.evaluation.rounds * each

    def tables(self) -> dict[str, list[Row]]:
        """By context the medians with the least and the most of all rounds, then the laws."""
        rows: list[Row] = []
        config = self.spec.physics.model
        for context in self.contexts:
            row: Row = {"context": context, "batch": self.evaluation.batch}
            for name, values in zip(TIMED, zip(*self.seconds[context], strict=True), strict=True):
                row |= {name: float(np.median(values)), f"{name}_least": min(values), f"{name}_most": max(values)}
            flops = accounting.flops_per_token(config, context).flops * context * self.evaluation.batch
            row |= {"state_mib": self.state_bytes[context] / 2**20, "flops_to_first_token": flops}
            rows.append(row)
        laws = [self._law(rows, name) for name in (*TIMED, "state_mib")] if len(rows) > 2 else []
        return {"context": rows} | ({"law": laws} if laws else {})

    def measures(self) -> dict[str, float]:
        """Of the longest prompt, and the exponents."""
        tables = self.tables()
        if not tables["context"]:
            return {}
        last = tables["context"][-1]
        found = {name: float(last[name]) for name in (*TIMED, "state_mib")}  # type: ignore[arg-type]
        return found | {f"{row['law']}_exponent": float(row["exponent"]) for row in tables.get("law", [])}  # type: ignore[arg-type]

    def _law(self, rows: list[Row], name: str) -> Row:
        """The power of the context by which something goes, with its 95 % interval."""
        x = np.log([float(row["context"]) for row in rows])  # type: ignore[arg-type]
        y = np.log([max(float(row[name]), 1e-12) for row in rows])  # type: ignore[arg-type]
        about = x - x.mean()
        exponent = float(about @ y / (about @ about))
        missed = y - y.mean() - exponent * about
        error = float(np.sqrt((missed @ missed) / (len(x) - 2) / (about @ about)))
        apart = float(special.stdtrit(len(x) - 2, 0.975)) * error
        return {"law": name, "exponent": exponent, "low": exponent - apart, "high": exponent + apart}


def _bytes(state: Any) -> int:
    """Of all tensors in a state, whatever the family keeps them in."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, KeysAndValues):
        return _bytes((state.keys, state.values))
    if is_dataclass(state):
        return sum(_bytes(getattr(state, part.name)) for part in fields(state))
    return sum(map(_bytes, state)) if isinstance(state, tuple | list) else 0
