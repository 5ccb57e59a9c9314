"""How long a trained model takes to answer: to the first token and per token after it, against what it has read.

As arXiv 2510.02228 measures inference: a prompt of each length is read, and tokens are generated one at a time from the
model's own state, the likeliest each time, without a round trip to the host. Rounds go through all lengths in turn, so
that what slows the machine slows all. A law of each is a power of the length, by least squares of logarithms; its parts
that are constant, linear and quadratic in the length, none below 0; and, of times, the roofline's: seconds whatever the
work, and the exact FLOPs (to the first token) or bytes that must be read (per token) in a second.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xlstm import accounting
from xlstm.evaluation.passes import Row, StoppedError, prompts
from xlstm.models.attention import KeysAndValues
from xlstm.run.evaluations import Inference
from xlstm.run.spec import RunSpec
from xlstm.sampling import Sampler

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
    weight_bytes: int = 0
    """Of the weights that every token needs, all but the embedding's."""

    def __post_init__(self) -> None:
        self.contexts, self.notes = prompts(self.evaluation, self.spec)

    def run(self, model: nn.Module, stopped: Callable[[], bool]) -> None:
        """Time every round; the ranks of a sharded model go along. StoppedError where `stopped` says so."""
        weights = accounting.parameters(self.spec.physics.model).non_embedding_with_head
        self.weight_bytes = weights * next(model.parameters()).element_size()
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
        prompts = torch.randint(vocabulary, (self.evaluation.batch, context), generator=generator)
        sampler = Sampler(model, prompts, count)
        begin = self._now()
        sampler.advance(1)
        first = self._now()
        self.state_bytes[context] = bytes_of(sampler.state)
        sampler.advance(count - 1)
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
            row |= {"bytes_per_token": self.weight_bytes + self.state_bytes[context]}
            rows.append(row)
        works = {TIMED[0]: "flops_to_first_token", TIMED[1]: "bytes_per_token", "state_mib": None}
        laws = [_law(rows, name, work) for name, work in works.items()] if len(rows) > 2 else []
        return {"context": rows} | ({"law": laws} if laws else {})

    def measures(self) -> dict[str, float]:
        """Of the longest prompt, and the exponents."""
        tables = self.tables()
        if not tables["context"]:
            return {}
        last = tables["context"][-1]
        found = {name: float(last[name]) for name in (*TIMED, "state_mib")}  # type: ignore[arg-type]
        return found | {f"{row['law']}_exponent": float(row["exponent"]) for row in tables.get("law", [])}  # type: ignore[arg-type]


def _law(rows: list[Row], name: str, work: str | None) -> Row:
    """How a number goes with the context: its power with the 95 % interval, its parts, and those by the work."""
    from scipy import special  # every trainer imports this module, and few ask for this

    context, y = _column(rows, "context"), np.maximum(_column(rows, name), 1e-12)
    x = np.log(context)
    about = x - x.mean()
    exponent = float(about @ np.log(y) / (about @ about))
    missed = np.log(y) - np.log(y).mean() - exponent * about
    error = float(np.sqrt((missed @ missed) / (len(x) - 2) / (about @ about)))
    apart = float(special.stdtrit(len(x) - 2, 0.975)) * error
    law: Row = {"law": name, "exponent": exponent, "low": exponent - apart, "high": exponent + apart}
    law |= dict(zip(("constant", "linear", "quadratic"), _parts(y, context**0, context, context**2), strict=True))
    if work is not None:
        fixed, per_unit = _parts(y, context**0, _column(rows, work))
        law |= {"fixed": fixed, "work_per_second": 1 / per_unit if per_unit else None}
    return law


def _column(rows: list[Row], name: str) -> NDArray[np.float64]:
    return np.array([float(row[name]) for row in rows])  # type: ignore[arg-type]


def _parts(y: NDArray[np.float64], *terms: NDArray[np.float64]) -> list[float]:
    """How much of each term makes up `y`, none below 0, by least squares of relative errors."""
    from scipy import optimize

    scales = [term.max() for term in terms]
    shares = [term / scale / y for term, scale in zip(terms, scales, strict=True)]
    found, _ = optimize.nnls(np.stack(shares, axis=1), np.ones_like(y))
    return [float(part / scale) for part, scale in zip(found, scales, strict=True)]


def bytes_of(state: Any) -> int:
    """Of all tensors in a state, whatever the family keeps them in."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, KeysAndValues):
        return bytes_of((state.keys, state.values))
    if is_dataclass(state):
        return sum(bytes_of(getattr(state, part.name)) for part in fields(state))
    return sum(map(bytes_of, state)) if isinstance(state, tuple | list) else 0
